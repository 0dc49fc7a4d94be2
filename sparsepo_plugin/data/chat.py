"""Chat-format pairs, rendered with a tokenizer's template."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from ..errors import SparsePOError, fault
from .base import Pair, Row, load_tokenizer, usable

Messages = list[dict[str, str]]
Render = Callable[..., str]


def chat(
    rows: Iterable[Row], dropped: Counter[str], *, tokenizer: str, chat_template: Path | None = None
) -> Iterator[Pair]:
    """Render conversations, so that prompt + response is the template's own text (paper §D).

    Raw row: {"prompt": …, "chosen": …, "rejected": …}, each text or a list of {"role", "content"}. Where `chosen` and
    `rejected` are whole conversations, as in argilla/dpo-mix-7k, the prompt is what both have before their last
    message, and `prompt` is not read.

    Args:
        rows: Raw rows.
        dropped: Counts what is left out, by reason.
        tokenizer: Folder or hub name of the tokenizer to train with.
        chat_template: Jinja file, for a tokenizer that has no template of its own.

    Raises:
        SparsePOError: the tokenizer cannot be loaded or has no template, or a row has no such form.
    """
    render = renderer(tokenizer, chat_template)
    for row in rows:
        (prompt, chosen), (other_prompt, rejected) = (_conversation(row, key) for key in ("chosen", "rejected"))
        if prompt != other_prompt:
            dropped["the conversations differ before their last message"] += 1
        elif {chosen["role"], rejected["role"]} != {"assistant"}:
            dropped["a conversation does not end with the assistant's answer"] += 1
        elif usable(Pair("", chosen["content"], rejected["content"]), dropped):
            yield from rendered(render, prompt, chosen, rejected, dropped)


def renderer(tokenizer: str, chat_template: Path | None) -> Render:
    """What renders messages with a tokenizer's chat template.

    Raises:
        SparsePOError: the tokenizer cannot be loaded or has no template.
    """
    loaded = load_tokenizer(tokenizer)
    try:
        if chat_template:
            loaded.chat_template = chat_template.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise SparsePOError(f"--chat-template {chat_template} cannot be read: {fault(error)}") from error
    if not loaded.chat_template:
        raise SparsePOError(f"chat: the tokenizer {tokenizer} has no chat template; give --chat-template FILE")
    return loaded.apply_chat_template


def _conversation(row: Row, key: str) -> tuple[Messages, dict[str, str]]:
    """What comes before the answer on one side, and the answer."""
    messages = _messages(row, key, "assistant")
    if len(messages) > 1:
        return messages[:-1], messages[-1]
    return _messages(row, "prompt", "user"), messages[0]


def _messages(row: Row, key: str, role: str) -> Messages:
    if not isinstance(row.values.get(key), list):
        return [{"role": role, "content": row.take(key, str)}]
    if not row.values[key]:
        raise row.error(f"{key} is an empty list, text or messages are needed")
    return [{name: message.take(name, str) for name in ("role", "content")} for message in row.items(key, "message")]


def rendered(
    render: Render, prompt: Messages, chosen: dict[str, str], rejected: dict[str, str], dropped: Counter[str]
) -> Iterator[Pair]:
    """The pair as the template's own text, unless that refuses it or does not begin with the prompt's text."""
    try:
        text = render(prompt, tokenize=False, add_generation_prompt=True)
        whole = [render([*prompt, answer], tokenize=False) for answer in (chosen, rejected)]
    except Exception as error:  # whatever the template raises
        dropped[f"the chat template refuses the conversation: {error}"] += 1
        return
    if all(side.startswith(text) for side in whole):
        yield Pair(text, *(side.removeprefix(text) for side in whole))
    else:
        dropped["the template's text of the conversation does not begin with its text of the prompt"] += 1
