"""TL;DR: comparisons and ratings of summaries (Stiennon et al. 2020)."""

import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from functools import partial
from statistics import fmean
from typing import Literal

import typer

from ..errors import SparsePOError
from .base import Pair, Row, spaced, usable

WORDS_APART = 100


# The data's own splits that each part of the paper's is taken from: nobody rated summaries of training posts.
_SPLITS = {
    "train": {"summaries": ("train",), "summary": ("valid1", "valid2")},
    "test": {"summaries": ("valid1", "valid2"), "summary": ("test",)},
}


def tldr(
    rows: Iterable[Row],
    dropped: Counter[str],
    *,
    seed: int,
    per_subset: int | None = None,
    split: Literal["train", "test"] | None = None,
) -> Iterator[Pair]:
    """Pair summaries of both subsets, as many from each (paper §B.2).

    Raw rows, of both kinds in any order:

    - comparisons: {"info": {"id", "post", "title", "subreddit"}, "summaries": [{"text"}, {"text"}], "choice": 0 | 1,
      "split": "train" | "valid1" | "valid2"};
    - axis: {"info": …, "summary": {"text", "axes": {"overall": 1 … 7}}, "split": "valid1" | "valid2" | "test"}. Per
      post the summaries of highest and lowest overall score make the pair; a summary rated more than once has its
      mean score, of equals the first is taken.

    Pairs whose responses differ by more than 100 words are left out, then both subsets are sampled alike; for that
    the pairs are held until the last row is read.

    Args:
        rows: Raw rows.
        dropped: Counts what is left out, by reason.
        seed: Of the sample.
        per_subset: Pairs from each subset, or all that there are; by default all of the smaller one.
        split: `train` takes the comparisons of training posts and the ratings of validation posts; `test` takes the
            comparisons of validation posts and the ratings of test posts. By default all rows.

    Raises:
        SparsePOError: a row has neither form, or a subset is missing.
    """
    close = partial(_close, dropped=dropped)
    comparisons: list[Pair] = []
    ratings: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        if (prompt := _prompt(row)) is None:
            dropped["a news article, not a TL;DR post"] += 1
        elif split and not _belongs(row, split):
            dropped[f"a row of another split than {split}"] += 1
        elif row.has("summaries"):
            comparisons += filter(close, [_compared(row, prompt)])
        elif row.has("summary.axes") and not row.has("summary.axes.overall"):
            dropped["a rating without an overall score"] += 1
        else:
            overall = row.take("summary.axes.overall", float)
            ratings[prompt][spaced(prompt, row.take("summary.text", str))].append(overall)
    axis = list(filter(close, _rated(ratings, dropped)))
    yield from _sample({"comparisons": comparisons, "axis": axis}, dropped, seed, per_subset)


def _prompt(row: Row) -> str | None:
    """The query of Stiennon et al. (2020); None for the news articles among the evaluation data."""
    row.take("info", dict)
    if row.has("info.article") and not row.has("info.post"):
        return None
    subreddit, title, post = (row.take(f"info.{key}", str) for key in ("subreddit", "title", "post"))
    return f"SUBREDDIT: r/{subreddit}\n\nTITLE: {title}\n\nPOST: {post}\n\nTL;DR:"


def _belongs(row: Row, split: str) -> bool:
    kind = "summaries" if row.has("summaries") else "summary"
    return row.take("split", str) in _SPLITS[split][kind]


def _compared(row: Row, prompt: str) -> Pair:
    summaries = [spaced(prompt, item.take("text", str)) for item in row.items("summaries", "item")]
    choice = row.take("choice", int)
    if len(summaries) != 2 or choice not in (0, 1):
        raise row.error(f"choice is {choice} of {len(summaries)} summaries, 0 or 1 of two is needed")
    return Pair(prompt, summaries[choice], summaries[1 - choice])


def _rated(ratings: dict[str, dict[str, list[float]]], dropped: Counter[str]) -> Iterator[Pair]:
    for prompt, scores in ratings.items():
        means = {text: fmean(values) for text, values in scores.items()}
        best, worst = max(means, key=means.__getitem__), min(means, key=means.__getitem__)
        if means[best] > means[worst]:
            yield Pair(prompt, best, worst)
        else:
            dropped["a post's ratings are all the same"] += 1


def _close(pair: Pair, dropped: Counter[str]) -> bool:
    if abs(len(pair.chosen.split()) - len(pair.rejected.split())) > WORDS_APART:
        dropped[f"the responses differ by more than {WORDS_APART} words"] += 1
        return False
    return usable(pair, dropped)


def _sample(
    subsets: dict[str, list[Pair]], dropped: Counter[str], seed: int, per_subset: int | None
) -> Iterator[Pair]:
    """The same number of pairs from each subset, or all that there are, in their order."""
    available = {name: len(pairs) for name, pairs in subsets.items()}
    wanted = min(available.values()) if per_subset is None else per_subset
    for name, number in available.items():
        if not number:
            reasons = "; ".join(f"{count} dropped: {reason}" for reason, count in dropped.items())
            raise SparsePOError(f"tldr: there is no pair of {name} rows; {reasons or 'give both subsets as --input'}")
        if number < wanted:
            typer.echo(f"tldr: {number} pairs of {name} rows, {wanted - number} short of {wanted}", err=True)
    generator = random.Random(seed)
    for name, pairs in subsets.items():
        taken = min(wanted, len(pairs))
        dropped[f"more pairs of {name} rows than the sample takes"] += len(pairs) - taken
        for index in sorted(generator.sample(range(len(pairs)), taken)):
            yield pairs[index]
