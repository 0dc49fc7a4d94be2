"""Pairs with labelled sentences in the form of Mask-DPO's release (Gu et al. 2025)."""

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

from .base import Pair, Row, WeightedPair, usable

# The sentences that the loss leaves out, by response.
_LEFT_OUT = {"chosen": "hallucination", "rejected": "no_hallucination"}


def mask_dpo(rows: Iterable[Row], dropped: Counter[str]) -> Iterator[WeightedPair]:
    """Weigh 0 the hallucinated sentences of chosen responses and the others of rejected ones, all else 1.

    Raw row: {"prompt": …, "chosen": …, "rejected": …}, texts or lists of messages, with `chosen_item` and
    `rejected_item` = {"sents": […], "type": […]}: the sentences of a response (of its last message) in order, and what
    each is, hallucination, no_hallucination or something else. A sentence is looked for from the end of the last one,
    where the release adds up lengths in tokens.

    Args:
        rows: Raw rows.
        dropped: Counts what is left out, by reason.

    Raises:
        SparsePOError: a row has no such form, or a sentence is not in its response.
    """
    for row in rows:
        texts = {key: _text(row, key) for key in Pair._fields}
        weights = [_spans(row, side, texts[side]) for side in _LEFT_OUT]
        if usable(Pair(**texts), dropped):
            yield WeightedPair(*(row.values[key] for key in Pair._fields), *weights)


def _text(row: Row, key: str) -> str:
    """A text, or that of the last message."""
    if not isinstance(row.values.get(key), list):
        return row.take(key, str)
    if not row.values[key]:
        raise row.error(f"{key} is an empty list, text or messages are needed")
    messages = [(message.take("role", str), message.take("content", str)) for message in row.items(key, "message")]
    return messages[-1][1]


def _spans(row: Row, side: str, text: str) -> list[dict[str, Any]]:
    sentences, types = (row.take(f"{side}_item.{key}", list) for key in ("sents", "type"))
    if len(sentences) != len(types):
        raise row.error(f"{side}_item has {len(sentences)} sents and {len(types)} types, one of each is needed")
    spans, end = [], 0
    for number, (sentence, kind) in enumerate(zip(sentences, types, strict=True), start=1):
        if not isinstance(sentence, str) or not sentence.strip():
            raise row.error(f"sentence {number} of {side}_item is {sentence!r:.60}, text is needed")
        start = text.find(sentence, end)
        if start < 0:
            raise row.error(f"sentence {number} of {side}_item, {sentence!r:.60}, is not in {side} after the last one")
        end = start + len(sentence)
        if kind == _LEFT_OUT[side]:
            spans.append({"start": start, "end": end, "weight": 0.0})
    return spans
