"""How a prompt and a response become one sequence of tokens: in training, in checks, and when a run is asked."""

from itertools import takewhile
from typing import Any, Literal

from pydantic import BaseModel, Field

from .errors import SparsePOError
from .options import STRICT
from .spans import WeightColumn, offsets_of_tokens, read_spans, weigh_tokens

Text = str | list[dict[str, str]]


class Joining(BaseModel):
    """What a run does to the texts of its data before they are joined."""

    model_config = STRICT

    input_template: str | None = Field(None, description="a format string around each prompt, with {} for it")
    output_template: str | None = Field(None, description="a format string around each response")
    chat_template: bool = Field(False, description="messages go through the tokenizer's chat template instead")
    end: Literal["spaced", "appended"] = Field(
        "spaced",
        description="where the end-of-sequence token stands: after a space; or right after a response, unless a chat "
        "template ends it, in a text that begins with the tokenizer's special tokens",
    )
    unknown: str | None = Field(None, description="why it cannot be said how texts are joined, if so")

    def encode(self, tokenizer: Any, prompt: Text, responses: list[Text]) -> list[tuple[list[int], int]]:
        """Token ids of the sequence of each response, not truncated, and how many of them are the prompt's.

        Args:
            tokenizer: The run's, with its chat template.
            prompt: As for `texts`.
            responses: The same; those of a pair together, because their prompt ends at the same token.
        """
        pairs = [self.texts(tokenizer, prompt, response) for response in responses]
        if self.end == "spaced":
            return [encode(tokenizer, *pair) for pair in pairs]

        def ids(text: str) -> list[int]:
            return tokenizer(text, add_special_tokens=self.special_tokens)["input_ids"]

        sequences = [ids(self.joined(tokenizer, *pair)) for pair in pairs]
        alike = takewhile(lambda column: len(set(column)) == 1, zip(ids(pairs[0][0]), *sequences, strict=False))
        prompt_len = len(list(alike))
        return [(sequence, prompt_len) for sequence in sequences]

    @property
    def special_tokens(self) -> bool:
        """Whether the tokenizer adds its special tokens to a sequence."""
        return self.end == "appended" and not self.chat_template

    def joined(self, tokenizer: Any, prompt: str, response: str) -> str:
        """The text of a sequence, of what `texts` gives."""
        if self.end == "spaced":
            return joined(tokenizer, prompt, response)
        end = "" if self.chat_template else tokenizer.eos_token
        return prompt + (response if response.endswith(end) else response + end)

    def weigh(
        self, tokenizer: Any, prompt: Text, response: Text, value: Any, column: WeightColumn
    ) -> tuple[list[int], list[float]]:
        """Ids of the sequence of one response, and the weight of each token; those of the prompt's mean nothing.

        Args:
            tokenizer: The run's, a fast one.
            prompt: As for `texts`.
            response: The same.
            value: Spans of the response as a file has them, None being none.
            column: How they are read.

        Raises:
            SparsePOError: they are no spans of the response, or the tokenizer cannot say where its tokens stand.
        """
        spans = read_spans(value, content_of(response), column.signed)
        text, base = self._placed(tokenizer, prompt, response)
        return weigh_tokens(tokenizer, text, base, content_of(response), spans, column, self.special_tokens)

    def offsets(self, tokenizer: Any, prompt: Text, response: Text) -> list[tuple[int, int]]:
        """Characters of one response, as it stands in the file, that each token of its sequence stands for.

        Half-open; (0, 0) for tokens of what is around the response.

        Args:
            tokenizer: The run's, a fast one.
            prompt: As for `texts`.
            response: The same.

        Raises:
            SparsePOError: the tokenizer is a slow one, or the template changes the response.
        """
        text, base = self._placed(tokenizer, prompt, response)
        return offsets_of_tokens(tokenizer, text, base, content_of(response), self.special_tokens)

    def _placed(self, tokenizer: Any, prompt: Text, response: Text) -> tuple[str, int]:
        """The text of a sequence, and from where on it has the response."""
        start, rest = self.texts(tokenizer, prompt, response)
        before = (self.output_template or "{}").format("\0").partition("\0")[0]
        return self.joined(tokenizer, start, rest), len(start + before)

    def encode_prompt(self, tokenizer: Any, prompt: Text) -> list[int]:
        """Token ids that a response goes on from, as it did in training.

        Args:
            tokenizer: The run's, with its chat template.
            prompt: As for `texts`.
        """
        text, _ = self.texts(tokenizer, prompt, "")
        ids = tokenizer(text, add_special_tokens=self.special_tokens)["input_ids"]
        closed = ids[-1:] == [tokenizer.eos_token_id] and not text.endswith(tokenizer.eos_token)
        return ids[:-1] if closed else ids  # some tokenizers end whatever they are given

    def texts(self, tokenizer: Any, prompt: Text, response: Text) -> tuple[str, str]:
        """Prompt and response as `encode` takes them.

        Args:
            tokenizer: The run's, with its chat template.
            prompt: Text; where the run has a chat template also messages, text being one message of the user.
            response: The same, text being one message of the assistant.

        Raises:
            SparsePOError: it cannot be said how the run joined them, or it has no chat template for messages.
        """
        if self.unknown:
            raise SparsePOError(f"tokens: how the run joined prompt and response cannot be said: {self.unknown}")
        if not self.chat_template:
            return _within(self.input_template, prompt), _within(self.output_template, response)
        asked, answered = _messages(prompt, "user"), _messages(response, "assistant")
        start = tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
        return start, tokenizer.apply_chat_template(asked + answered, tokenize=False)[len(start) :]


def encode(tokenizer: Any, prompt: str, response: str) -> tuple[list[int], int]:
    """Token ids of a sequence with a spaced end, not truncated, and how many of them are the prompt's."""
    ids = tokenizer(joined(tokenizer, prompt, response), add_special_tokens=False)["input_ids"]
    ids[-1] = tokenizer.eos_token_id
    return ids, len(tokenizer(prompt, add_special_tokens=False)["input_ids"])


def content_of(response: Text) -> str:
    """The text that a file's spans are of: the response, or the content of its last message.

    Raises:
        SparsePOError: that message has no text.
    """
    content = response if isinstance(response, str) else response[-1].get("content")
    if not isinstance(content, str):
        raise SparsePOError("the last message has no text, which spans are of")
    return content


def token_text(tokenizer: Any, label: int) -> str:
    """A token as text, with the spaces that it has; decoders of SentencePiece's tokens drop the one in front."""
    piece = tokenizer.convert_ids_to_tokens(label)
    return piece.replace("▁", " ") if "▁" in piece else tokenizer.decode([label])


def joined(tokenizer: Any, prompt: str, response: str) -> str:
    """The text of a sequence: line feeds at its end dropped, its end-of-sequence token after a space unless there."""
    text = (prompt + response).rstrip("\n")
    return text if text.endswith(tokenizer.eos_token) else f"{text} {tokenizer.eos_token}"


def _within(template: str | None, text: Text) -> str:
    if not isinstance(text, str):
        raise SparsePOError("tokens: text is needed, the run had no chat template that takes messages")
    return template.format(text) if template else text


def _messages(text: Text, role: str) -> list[dict[str, str]]:
    return [{"role": role, "content": text}] if isinstance(text, str) else text
