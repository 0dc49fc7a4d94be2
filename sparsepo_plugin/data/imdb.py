"""IMDB sentiment: completions scored by a classifier."""

from collections import Counter
from collections.abc import Iterable, Iterator

from .base import Pair, Row, spaced, usable

Scored = tuple[str, float]


def imdb(rows: Iterable[Row], dropped: Counter[str]) -> Iterator[Pair]:
    """Pair two completions of each prompt; the higher score is chosen (paper §3.2).

    Raw rows have one of two forms:

    - one completion each, as Amini et al. (2024) released them: {"prompt": "…", "text": "…", "reward": 1.99};
      rows of one prompt need not be neighbours;
    - one prompt each: {"prompt": "…", "completions": ["…", "…"], "scores": [0.98, 0.12]}.

    A score is a number, or the classifier's own answer {"label": "POSITIVE" | "NEGATIVE", "score": p}: p if positive,
    1 − p if negative. A completion that continues the prompt with a word is joined to it by a space.

    Args:
        rows: Raw rows.
        dropped: Counts what is left out, by reason.

    Raises:
        SparsePOError: a row has neither form.
    """
    waiting: dict[str, Scored | None] = {}  # None: the prompt has its pair
    for row in rows:
        prompt = row.take("prompt", str)
        for text, score in _completions(row):
            if prompt not in waiting:
                waiting[prompt] = (text, score)
            elif (first := waiting[prompt]) is None:
                dropped["the prompt already has two completions"] += 1
            else:
                waiting[prompt] = None
                yield from _pair(prompt, first, (text, score), dropped)
    dropped["the prompt has a single completion"] += sum(first is not None for first in waiting.values())


def _completions(row: Row) -> list[Scored]:
    if not row.has("completions"):
        return [(row.take("text", str), _score(row, "reward"))]
    texts, scores = row.take("completions", list), row.take("scores", list)
    if len(texts) != len(scores):
        raise row.error(f"{len(texts)} completions have {len(scores)} scores, as many are needed")
    items = [
        Row({"text": text, "score": score}, f"{row.place}: completion {number}")
        for number, (text, score) in enumerate(zip(texts, scores, strict=True), start=1)
    ]
    return [(item.take("text", str), _score(item, "score")) for item in items]


def _score(row: Row, key: str) -> float:
    if not isinstance(row.values.get(key), dict):
        return row.take(key, float)
    label, probability = row.take(f"{key}.label", str).upper(), row.take(f"{key}.score", float)
    if label not in ("POSITIVE", "NEGATIVE"):
        raise row.error(f"{key}.label is {label!r}, POSITIVE or NEGATIVE is needed")
    return probability if label == "POSITIVE" else 1 - probability


def _pair(prompt: str, first: Scored, second: Scored, dropped: Counter[str]) -> Iterator[Pair]:
    if first[1] == second[1]:
        dropped["both completions have the same score"] += 1
        return
    better, worse = (first, second) if first[1] > second[1] else (second, first)
    if usable(pair := Pair(prompt, spaced(prompt, better[0]), spaced(prompt, worse[0])), dropped):
        yield pair
