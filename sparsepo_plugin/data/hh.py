"""Anthropic HH: dialogues as one text a side."""

from collections import Counter
from collections.abc import Iterable, Iterator

from .base import Pair, Row, usable

_ASSISTANT = "\n\nAssistant:"
_HUMAN = "\n\nHuman:"


def hh(rows: Iterable[Row], dropped: Counter[str]) -> Iterator[Pair]:
    r"""Split each dialogue at its last assistant turn (paper §B.3).

    Raw row: {"chosen": "\n\nHuman: … \n\nAssistant: …", "rejected": …}. The prompt ends with `\n\nAssistant:`, the
    responses keep the space that follows it.

    Args:
        rows: Raw rows.
        dropped: Counts what is left out, by reason.

    Raises:
        SparsePOError: a side is missing or is not text.
    """
    for row in rows:
        sides = [_split(row.take(key, str)) for key in ("chosen", "rejected")]
        (prompt, chosen), (other_prompt, rejected) = sides
        if not (prompt and other_prompt):
            dropped["a dialogue has no assistant turn"] += 1
        elif prompt != other_prompt:
            dropped["the dialogues differ before their last assistant turn"] += 1
        elif _HUMAN in chosen or _HUMAN in rejected:
            dropped["a dialogue ends with a human turn"] += 1
        elif usable(pair := Pair(prompt, chosen, rejected), dropped):
            yield pair


def _split(dialogue: str) -> tuple[str, str]:
    before, turn, response = dialogue.rpartition(_ASSISTANT)
    return before + turn, response
