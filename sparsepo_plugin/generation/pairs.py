"""Of the samples of a prompt, the best and the worst as a pair."""

from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import groupby
from operator import itemgetter
from typing import Any

from ..texts import Text

Sample = dict[str, Any]


def pairs_of(samples: Iterable[Sample], min_difference: float, dropped: Counter[str]) -> Iterator[dict[str, Any]]:
    """The completion with the highest reward and the one with the lowest, the first of those that are alike.

    Args:
        samples: `prompt_index`, `prompt`, `completion`, `reward`; those of a prompt together.
        min_difference: Of the rewards of a pair, at least.
        dropped: Counts what is left out, by reason.

    Returns:
        `prompt`, `chosen`, `rejected`, `chosen_score`, `rejected_score`; where the prompt is a list of messages, so
        are the responses.
    """
    for _, group in groupby(samples, key=itemgetter("prompt_index")):
        completions = list(group)
        best, worst = (pick(completions, key=itemgetter("reward")) for pick in (max, min))
        if reason := _why_not(completions, best, worst, min_difference):
            dropped[reason] += 1
        else:
            yield {
                "prompt": best["prompt"],
                "chosen": _response(best),
                "rejected": _response(worst),
                "chosen_score": best["reward"],
                "rejected_score": worst["reward"],
            }


def _why_not(completions: list[Sample], best: Sample, worst: Sample, min_difference: float) -> str | None:
    if len({sample["completion"] for sample in completions}) == 1:
        return "the completions are the same"
    if best["reward"] == worst["reward"]:
        return "the scores are the same"
    if best["completion"] == worst["completion"]:
        return "the reward gave the same text different scores"
    if best["reward"] - worst["reward"] < min_difference:
        return "the scores differ less than --min-difference"
    if not (best["completion"].strip() and worst["completion"].strip()):
        return "a completion is empty"
    return None


def _response(sample: Sample) -> Text:
    text = sample["completion"]
    return text if isinstance(sample["prompt"], str) else [{"role": "assistant", "content": text}]
