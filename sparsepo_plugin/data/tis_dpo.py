"""Pairs with token weights in the form of TIS-DPO's release (Liu et al. 2025)."""

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

from ..analysis.tis import transform_of
from ..spans import refuse_slow, spans_of_tokens
from .base import Pair, Row, WeightedPair, load_tokenizer, usable


def tis_dpo(
    rows: Iterable[Row], dropped: Counter[str], *, tokenizer: str, transform: str | None = None
) -> Iterator[WeightedPair]:
    """Make weights of characters of scores of tokens.

    Raw row: {"prompt": …, "chosen": …, "rejected": …, "chosen_weight": […], "rejected_weight": […]}, a number for each
    token of the response tokenised by itself, without special tokens: log π₂(y_t) − log π₁(y_t), π₁ trained with DPO
    and π₂ with DPO on swapped pairs. As in the release, those of chosen responses are negated before the transform.

    Args:
        rows: Raw rows.
        dropped: Counts what is left out, by reason.
        tokenizer: Folder or hub name of the tokenizer that the scores are of; a fast one.
        transform: What makes weights of a response's scores; see `analysis.tis`.

    Raises:
        SparsePOError: the tokenizer cannot be loaded, or a row has no such form, or another number of scores than its
            response has tokens.
    """
    weigh, loaded = transform_of(transform), load_tokenizer(tokenizer)
    refuse_slow(loaded)
    for row in rows:
        pair = Pair(*(row.take(key, str) for key in Pair._fields))
        scores = {side: _scores(row, side) for side in ("chosen", "rejected")}
        if usable(pair, dropped):
            scores["chosen"] = [-score for score in scores["chosen"]]
            yield WeightedPair(*pair, *(_spans(row, side, loaded, weigh(scores[side])) for side in scores))


def _scores(row: Row, side: str) -> list[float]:
    key = f"{side}_weight"
    scores = row.take(key, list)
    for number, score in enumerate(scores, start=1):
        if isinstance(score, bool) or not isinstance(score, int | float) or not abs(score) < float("inf"):
            raise row.error(f"number {number} of {key} is {score!r:.60}, a finite number is needed")
    return scores


def _spans(row: Row, side: str, tokenizer: Any, weights: list[float]) -> list[dict[str, Any]]:
    encoded = tokenizer(row.values[side], add_special_tokens=False, return_offsets_mapping=True)
    if len(weights) != len(encoded["input_ids"]):
        raise row.error(
            f"{side}_weight has {len(weights)} numbers, {side} has {len(encoded['input_ids'])} tokens: "
            "the tokenizer is needed that the scores were made with"
        )
    return spans_of_tokens(encoded["offset_mapping"], weights)
