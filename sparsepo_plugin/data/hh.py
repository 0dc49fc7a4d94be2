"""Anthropic HH: dialogues as one text a side."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from ..errors import SparsePOError
from .base import Pair, Row, usable
from .chat import rendered, renderer

_ASSISTANT = "\n\nAssistant:"
_HUMAN = "\n\nHuman:"


def hh(
    rows: Iterable[Row],
    dropped: Counter[str],
    *,
    single_turn: bool = False,
    tokenizer: str | None = None,
    chat_template: Path | None = None,
) -> Iterator[Pair]:
    r"""Split each dialogue at its last assistant turn (paper §B.3).

    Raw row: {"chosen": "\n\nHuman: … \n\nAssistant: …", "rejected": …}. The prompt ends with `\n\nAssistant:`, the
    responses keep the space that follows it; with a tokenizer the turns are messages of its chat template.

    Args:
        rows: Raw rows.
        dropped: Counts what is left out, by reason.
        single_turn: Only dialogues with one human turn, as the paper evaluates on.
        tokenizer: Folder or hub name of the tokenizer to train with.
        chat_template: Jinja file, for a tokenizer that has no template of its own.

    Raises:
        SparsePOError: a side is missing or is not text, or the tokenizer cannot be loaded or has no template.
    """
    if chat_template and not tokenizer:
        raise SparsePOError("--chat-template has no effect for hh without --tokenizer")
    render = renderer(tokenizer, chat_template) if tokenizer else None
    for row in rows:
        sides = [_split(row.take(key, str)) for key in ("chosen", "rejected")]
        (prompt, chosen), (other_prompt, rejected) = sides
        if not (prompt and other_prompt):
            dropped["a dialogue has no assistant turn"] += 1
        elif prompt != other_prompt:
            dropped["the dialogues differ before their last assistant turn"] += 1
        elif _HUMAN in chosen or _HUMAN in rejected:
            dropped["a dialogue ends with a human turn"] += 1
        elif single_turn and prompt.count(_HUMAN) != 1:
            dropped["a dialogue has more than one human turn"] += 1
        elif usable(pair := Pair(prompt, chosen, rejected), dropped):
            if render is None:
                yield pair
            else:
                answers = [{"role": "assistant", "content": text.strip()} for text in (chosen, rejected)]
                yield from rendered(render, _messages(prompt), *answers, dropped)


def _messages(prompt: str) -> list[dict[str, str]]:
    """The turns of a prompt; the last one, which the response fills, is no message yet."""
    turns = re.split(r"\n\n(Human|Assistant):", prompt.removesuffix(_ASSISTANT))[1:]
    roles = {"Human": "user", "Assistant": "assistant"}
    return [{"role": roles[who], "content": text.strip()} for who, text in zip(turns[::2], turns[1::2], strict=True)]


def _split(dialogue: str) -> tuple[str, str]:
    before, turn, response = dialogue.rpartition(_ASSISTANT)
    return before + turn, response
