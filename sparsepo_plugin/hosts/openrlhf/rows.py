"""Whether a row can be trained on, and why not."""

from types import SimpleNamespace
from typing import Any, NamedTuple

from ...decoder import max_positions
from ...errors import SparsePOError, first_line
from ...spans import WeightColumn, read_spans, refuse_slow
from ...texts import content_of, joined

_TEXT = "text is needed (data.apply_chat_template turns messages into text)"
_MESSAGES = "a list of messages is needed (data.apply_chat_template)"


class Verdict(NamedTuple):
    """What becomes of a row."""

    fault: str | None = None  # why it cannot be trained on
    left_out: bool = False  # OpenRLHF leaves it out, for the length of its prompt
    same: bool = False  # both responses are the same text
    unweighed: bool = False  # it has none of the weights that a mask reads


class Texts(NamedTuple):
    """A row as OpenRLHF's RewardDataset makes it."""

    prompt: str
    chosen: str
    rejected: str


def load_tokenizer(args: SimpleNamespace, strategy: Any, model_config: Any) -> Any:
    """The policy's tokenizer, as OpenRLHF loads it, with the chat template of the run.

    Raises:
        SparsePOError: there is none, or it has no end-of-sequence token that the model knows; or a chat template is
            asked for and there is none, or it is no template.
    """
    from openrlhf.utils import get_tokenizer

    key, name = "model.model_name_or_path", args.model.model_name_or_path
    fast, remote_code = not args.data.disable_fast_tokenizer, args.model.trust_remote_code
    try:
        tokenizer = get_tokenizer(name, None, "right", strategy, use_fast=fast, trust_remote_code=remote_code)
    except Exception as error:  # whatever its files make the libraries raise
        raise SparsePOError(f"{key}: no tokenizer can be loaded from {name}: {_told(error)}") from error
    if set(tokenizer.get_vocab().values()) <= set(tokenizer.all_special_ids):  # transformers makes one of nothing
        raise SparsePOError(f"{key}: {name} has no tokenizer, or an empty one; tokenizer.json is needed in its folder")
    if not tokenizer.eos_token or tokenizer.eos_token_id is None:
        raise SparsePOError(f"{key}: the tokenizer of {name} has no eos_token, with which every response ends")
    vocabulary = model_config.get_text_config().vocab_size
    for token in ("eos_token", "pad_token"):
        if (number := getattr(tokenizer, f"{token}_id")) >= vocabulary:
            raise SparsePOError(f"{key}: {token} of {name} is number {number}, the model has {vocabulary} tokens")
    if args.data.apply_chat_template:
        _set_template(tokenizer, args.data.tokenizer_chat_template)
    return tokenizer


def _set_template(tokenizer: Any, given: str | None) -> None:
    from jinja2 import TemplateSyntaxError

    tokenizer.chat_template = given or tokenizer.chat_template
    if not tokenizer.chat_template:
        raise SparsePOError("data.apply_chat_template: the tokenizer has none; give data.tokenizer_chat_template")
    try:
        tokenizer.apply_chat_template([{"role": "user", "content": ""}], tokenize=False)
    except TemplateSyntaxError as error:
        key = "data.tokenizer_chat_template" if given else "data.apply_chat_template: the tokenizer's chat template"
        raise SparsePOError(f"{key} is not Jinja: {_told(error)}") from error
    except Exception:  # whatever the template raises
        pass  # it wants other messages: what it says of the rows will be told


class RowJudge:
    """Judges rows as OpenRLHF will read them.

    Args:
        args: OpenRLHF's arguments.
        tokenizer: The policy's, with the chat template of the run.
        model_config: Hugging Face config of the policy.
        column: How masks read weights of the rows; None where none does.

    Raises:
        SparsePOError: masks read weights, and the tokenizer does not know the characters of its tokens.
    """

    def __init__(
        self, args: SimpleNamespace, tokenizer: Any, model_config: Any, column: WeightColumn | None = None
    ) -> None:
        self.data, self.tokenizer = args.data, tokenizer
        self.vocabulary = model_config.get_text_config().vocab_size
        self.prompt_key = args.data.prompt_key
        self.response_keys = (args.data.chosen_key, args.data.rejected_key)
        self.positions = max_positions(model_config)
        self.column = column
        self.weight_keys = [] if column is None else [key + column.suffix for key in self.response_keys]
        if column is not None:
            refuse_slow(tokenizer)

    @property
    def columns(self) -> list[str]:
        """The columns that are needed; those of weights may be missing."""
        return [key for key in (self.prompt_key, *self.response_keys) if key]

    def refuse_columns(self, found: list[str], name: str) -> None:
        """Refuse a data set that lacks a column.

        Raises:
            SparsePOError: names its key and the columns that there are.
        """
        keys = ("prompt_key", "chosen_key", "rejected_key")
        for key, column in zip(keys, (self.prompt_key, *self.response_keys), strict=True):
            if column and column not in found:
                there = ", ".join(found)
                raise SparsePOError(f"data.{key}: {name} has no column {column!r}; columns are {there:.300}")

    def __call__(self, rows: list[dict[str, Any]]) -> list[Verdict]:
        """A verdict for each of some rows, which go through the tokenizer together."""
        texts = [self.texts(row) for row in rows]
        pairs = [pair for pair in texts if isinstance(pair, Texts)]
        try:
            prompts = self._ids([pair.prompt for pair in pairs])
            chosen = self._ids([joined(self.tokenizer, pair.prompt, pair.chosen) for pair in pairs])
            rejected = self._ids([joined(self.tokenizer, pair.prompt, pair.rejected) for pair in pairs])
        except Exception as error:  # whatever the tokenizer raises
            if len(rows) > 1:
                return [verdict for row in rows for verdict in self([row])]
            return [Verdict(f"the tokenizer refuses its text: {_told(error)}")]
        judged = map(self._judge, pairs, prompts, chosen, rejected)
        verdicts = [Verdict(pair) if isinstance(pair, str) else next(judged) for pair in texts]
        return [self._weighed(verdict, row) for verdict, row in zip(verdicts, rows, strict=True)]

    def _weighed(self, verdict: Verdict, row: dict[str, Any]) -> Verdict:
        nothing = bool(self.weight_keys) and all(row.get(key) is None for key in self.weight_keys)
        return verdict._replace(unweighed=nothing and verdict.fault is None)

    def wrong_kind(self, row: dict[str, Any]) -> str | None:
        """Which column of a row is neither text nor, for a chat template, messages."""
        fault_of = _messages_fault if self.data.apply_chat_template else _text_fault
        found = next((f"{key} {fault}" for key in self.columns if (fault := fault_of(row.get(key)))), None)
        return found or self._wrong_weights(row)

    def _wrong_weights(self, row: dict[str, Any]) -> str | None:
        """What is wrong with the spans of a row whose responses are right."""
        for key, own in zip(self.response_keys, self.weight_keys, strict=False):
            try:
                read_spans(row.get(own), content_of(row[key]), self.column.signed)
            except SparsePOError as error:
                return f"{own}: {error}"
        return None

    def texts(self, row: dict[str, Any]) -> Texts | str:
        """The texts of a row, or why there are none."""
        from openrlhf.datasets.reward_dataset import preprocess_data

        if fault := self.wrong_kind(row):
            return fault
        keys, chat = (self.prompt_key, *self.response_keys), self.data.apply_chat_template
        rendered: list[str] = []

        def render(messages: Any, **options: Any) -> str:
            rendered.append(self.tokenizer.apply_chat_template(messages, **options))
            return rendered[-1]

        try:
            *texts, _ = preprocess_data(row, self.data.input_template, *keys, chat and render, is_dpo=True)
        except Exception as error:  # whatever the template raises
            return f"the chat template refuses it: {_told(error)}"
        if not all(text.startswith(texts[0]) for text in rendered):
            return "the chat template's text of the conversation does not begin with its text of the prompt"
        for key, text in zip(keys, texts, strict=True):
            if key in self.response_keys and not text.strip():
                return f"{key} is empty; a response needs at least one word"
            if key in self.response_keys and self.weight_keys and content_of(row[key]).strip() not in text:
                return f"{key}: the chat template changes its text, which spans of weights are of"
        return Texts(*texts)

    def _ids(self, texts: list[str]) -> list[list[int]]:
        if not texts:
            return []
        return self.tokenizer(texts, add_special_tokens=False, return_attention_mask=False)["input_ids"]

    def _judge(self, pair: Texts, prompt: list[int], *responses: list[int]) -> Verdict:
        if len(prompt) >= self.data.max_len - 2:
            return Verdict(left_out=True)
        for key, ids in zip(self.response_keys, responses, strict=True):
            if fault := self._fault(key, len(prompt), ids):
                return Verdict(fault)
        return Verdict(same=pair.chosen == pair.rejected)

    def _fault(self, key: str, prompt: int, ids: list[int]) -> str | None:
        """What is wrong with the tokens of one sequence, the last of which is its end."""
        if len(ids) > self.data.max_len:
            return f"prompt and {key} have {len(ids)} tokens, data.max_len is {self.data.max_len}; raise it"
        if self.positions is not None and len(ids) > self.positions:
            return f"prompt and {key} have {len(ids)} tokens, the model has positions for {self.positions}"
        if len(ids) < prompt + 2:
            return f"the tokenizer makes no token of {key}"
        if (greatest := max(ids[:-1])) >= self.vocabulary:  # the last becomes the end of sequence
            return f"the tokenizer makes token {greatest} of prompt and {key}, the model has {self.vocabulary} tokens"
        return None


def _text_fault(text: Any) -> str | None:
    return None if isinstance(text, str) else f"is {_kind(text)}, {_TEXT}"


def _messages_fault(messages: Any) -> str | None:
    if not isinstance(messages, list) or not messages:
        return f"is {'an empty list' if messages == [] else _kind(messages)}, {_MESSAGES}"
    for number, message in enumerate(messages, start=1):
        if not isinstance(message, dict):
            return f"has {_kind(message)} as message {number}, role and content are needed"
        if not isinstance(message.get("role"), str):
            return f"has no role in message {number}, text such as user or assistant is needed"
        if not isinstance(message.get("content"), str | list) and not message.get("tool_calls"):
            return f"has {_kind(message.get('content'))} as content of message {number}, text is needed"
    answer = messages[-1].get("content")
    return "ends with an empty message" if isinstance(answer, str) and not answer.strip() else None


def _kind(value: Any) -> str:
    return "null" if value is None else type(value).__name__


def _told(error: BaseException) -> str:
    """What somebody else's code says, in one line that is not endless."""
    return f"{first_line(error):.200}"
