"""Weights of characters that a file of pairs brings, and what they make of the tokens of any tokenizer.

A response's column is a list of spans, `{"start": 19, "end": 36, "weight": 0.0}`: half-open, in Unicode code points of
the response as it stands in the file, for messages of the last message's content. docs/weights.md has all rules.
"""

import math
from collections.abc import Callable, Sequence
from itertools import groupby, takewhile
from statistics import fmean
from typing import Any, Literal, NamedTuple

from .errors import SparsePOError, shown

SHAPE = '{"start": 0, "end": 5, "weight": 0.5}'
_KEYS = ("start", "end", "weight", "text")
_LARGEST = 3.4028234e38  # of float32, which weights are trained with

Offsets = Sequence[tuple[int, int]]


class Span(NamedTuple):
    """The weight of some characters of a response, from `start` to before `end`."""

    start: int
    end: int
    weight: float


class WeightColumn(NamedTuple):
    """How a run reads the weights of its data; the options of mask `column`.

    Attributes:
        suffix: What a response's column has after the response's own key.
        default: Weight of characters in no span.
        end: Weight of tokens that are not of the response's text: its end, and what a template puts around it.
        reduce: What a token gets whose characters have several weights.
        signed: Whether weights may be negative.
    """

    suffix: str = "_weights"
    default: float = 1.0
    end: float = 1.0
    reduce: Literal["mean", "max", "min"] = "mean"
    signed: bool = False


_REDUCE: dict[str, Callable[[Sequence[float]], float]] = {"mean": fmean, "max": max, "min": min}


def read_spans(value: Any, response: str, signed: bool = False) -> list[Span]:
    """The spans of one response, checked.

    Args:
        value: What the file has, None being nothing.
        response: The text that they are of.
        signed: Whether weights may be negative.

    Raises:
        SparsePOError: they are no spans of that text; the line names the first wrong one, counted from 1.
    """
    if value is not None and not isinstance(value, list | tuple):
        raise SparsePOError(f"{_kind(value)} is no list of spans such as {SHAPE}")
    spans: list[Span] = []
    for number, each in enumerate(value or [], start=1):
        span = _read_span(each, f"span {number}", response, signed)
        if spans and span.start < spans[-1].end:
            raise SparsePOError(
                f"span {number} starts at {span.start}, before span {number - 1} ends at {spans[-1].end}; "
                "spans are sorted and do not overlap"
            )
        spans.append(span)
    return spans


def _read_span(value: Any, name: str, response: str, signed: bool) -> Span:
    if not isinstance(value, dict):
        raise SparsePOError(f"{name} is {_kind(value)}, an object such as {SHAPE} is needed")
    given = {key: each for key, each in value.items() if each is not None}  # Arrow puts null where a key is missing
    if unknown := sorted(given.keys() - set(_KEYS)):
        raise SparsePOError(f"{name} has {shown(unknown[0])}, which is none of {', '.join(_KEYS)}")
    if missing := [key for key in _KEYS[:3] if key not in given]:
        raise SparsePOError(f"{name} has no {missing[0]}, an object such as {SHAPE} is needed")
    start, end = (_whole(given[key], f"{name} has {key}") for key in ("start", "end"))
    if not 0 <= start < end <= len(response):
        raise SparsePOError(
            f"{name} is from {start} to {end}, 0 ≤ start < end ≤ {len(response)} is needed, the length of the response"
        )
    weight = given["weight"]
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not abs(weight) <= _LARGEST:
        raise SparsePOError(f"{name} has weight {shown(weight)}, a finite number is needed")
    if weight < 0 and not signed:
        raise SparsePOError(f"{name} has weight {weight:g}, below 0 only with signed: true")
    if "text" in given and given["text"] != response[start:end]:
        raise SparsePOError(
            f"{name} has text {shown(given['text'])}, from {start} to {end} is {shown(response[start:end])}"
        )
    return Span(start, end, float(weight))


def _whole(value: Any, what: str) -> int:
    # Arrow turns the whole numbers of a column into floats where one of them is.
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value // 1 or abs(value) > 2**53:
        raise SparsePOError(f"{what} {shown(value)}, a whole number is needed")
    return int(value)


def _kind(value: Any) -> str:
    return "null" if value is None else type(value).__name__


def spans_of_tokens(offsets: Offsets, weights: Sequence[float]) -> list[dict[str, Any]]:
    """The column of a response whose tokens have weights; neighbours of equal weight are one span.

    Tokens that share a character, as the bytes of an emoji do, leave it their mean.

    Args:
        offsets: Characters of the response that each token stands for, half-open; a token without any is left out.
        weights: Their weights.

    Raises:
        SparsePOError: there are not as many offsets as weights, an offset is none, or a weight is not finite.
    """
    if len(offsets) != len(weights):
        raise SparsePOError(f"{len(offsets)} offsets and {len(weights)} weights, one of each token is needed")
    of_characters: dict[int, list[float]] = {}
    for (start, end), weight in zip(offsets, weights, strict=True):
        if not 0 <= start <= end:
            raise SparsePOError(f"offset from {start} to {end}, 0 ≤ start ≤ end is needed")
        if not math.isfinite(weight):
            raise SparsePOError(f"weight {weight} of the token from {start} to {end}, a finite number is needed")
        for place in range(start, end):
            of_characters.setdefault(place, []).append(float(weight))
    weighed = [(place, _mean(values)) for place, values in sorted(of_characters.items())]
    # Characters that follow each other are as far from each other as their numbers are.
    runs = groupby(enumerate(weighed), key=lambda each: (each[1][0] - each[0], each[1][1]))
    found = [[each for _, each in run] for _, run in runs]
    return [{"start": run[0][0], "end": run[-1][0] + 1, "weight": run[0][1]} for run in found]


def _mean(values: Sequence[float]) -> float:
    """The mean, which is the value where all are the same."""
    return values[0] if len(set(values)) == 1 else fmean(values)


def weigh_tokens(
    tokenizer: Any,
    text: str,
    base: int,
    response: str,
    spans: list[Span],
    column: WeightColumn,
    special_tokens: bool = False,
) -> tuple[list[int], list[float]]:
    """Ids of a sequence's tokens, and the weight of each; those of the prompt's mean nothing.

    Args:
        tokenizer: A fast one, which knows the characters of its tokens.
        text: Of the sequence, as the host gives it to the tokenizer.
        base: Where in it the prompt ends.
        response: The response as it stands in the file; `text` has it somewhere from `base` on.
        spans: Of the response.
        column: How they are read.
        special_tokens: Whether the tokenizer adds its special tokens.

    Raises:
        SparsePOError: the tokenizer is a slow one, or the text does not have the response.
    """
    encoded = _encode(tokenizer, text, special_tokens)
    place = _place(text, base, response, tokenizer.eos_token)
    characters = [column.default] * len(response)
    for start, end, weight in spans:
        characters[start:end] = [weight] * (end - start)
    return encoded["input_ids"], [
        _weight(start, end, text, place, characters, column) for start, end in encoded["offset_mapping"]
    ]


def offsets_of_tokens(
    tokenizer: Any, text: str, base: int, response: str, special_tokens: bool = False
) -> list[tuple[int, int]]:
    """Characters of a response, as it stands in the file, that each token of a sequence stands for.

    Half-open; (0, 0) for tokens of what is around the response.

    Args:
        tokenizer: As for `weigh_tokens`, and so are the others.
        text: Of the sequence.
        base: Where in it the prompt ends.
        response: That is looked for.
        special_tokens: Whether the tokenizer adds its special tokens.

    Raises:
        SparsePOError: the tokenizer is a slow one, or the text does not have the response.
    """
    encoded = _encode(tokenizer, text, special_tokens)
    place = _place(text, base, response, tokenizer.eos_token)
    clipped = [(max(start, place.start), min(end, place.stop)) for start, end in encoded["offset_mapping"]]
    return [(start - place.zero, end - place.zero) if start < end else (0, 0) for start, end in clipped]


def _encode(tokenizer: Any, text: str, special_tokens: bool) -> Any:
    """Ids of a text's tokens, and the characters that each stands for."""
    refuse_slow(tokenizer)
    return tokenizer(text, add_special_tokens=special_tokens, return_offsets_mapping=True)


def refuse_slow(tokenizer: Any) -> None:
    """Refuse a tokenizer that does not know which characters its tokens stand for.

    Raises:
        SparsePOError: it is a slow one.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise SparsePOError(
            f"mask 'column' needs a fast tokenizer, one that knows the characters of its tokens; "
            f"{type(tokenizer).__name__} is a slow one"
        )


class _Place(NamedTuple):
    """Where a text has a response: character 0 of it would be at `zero`; from `start` to before `stop` is its text."""

    zero: int
    start: int
    stop: int


def _place(text: str, base: int, response: str, end: str | None) -> _Place:
    """Where a text has a response, of which hosts and templates may have dropped white space at both ends."""
    core, lead = response.strip(), len(response) - len(response.lstrip())
    found = base + lead if text.startswith(core, base + lead) else text.find(core, base)
    if found < 0:
        raise SparsePOError("the text that the tokenizer is given does not have the response as it stands in the file")
    zero = found - lead
    alike = takewhile(lambda pair: pair[0] == pair[1], zip(text[found:], response[lead:], strict=False))
    kept = "".join(character for character, _ in alike)
    if end:  # a response may bring its end-of-sequence token
        kept = kept.removesuffix(end)
    has_lead = zero >= base and text.startswith(response[:lead], zero)
    return _Place(zero, zero if has_lead else found, found + len(kept))


def _weight(
    start: int, end: int, text: str, place: _Place, characters: Sequence[float], column: WeightColumn
) -> float:
    """The weight of the token that stands for some characters of a text."""
    first, last = max(start, place.start), min(end, place.stop)
    if first < last:
        # Tokenizers count the space before a word in or out, and who writes spans starts at the word.
        piece = text[first:last]
        if words := piece.strip():
            first += len(piece) - len(piece.lstrip())
            last = first + len(words)
        values = characters[first - place.zero : last - place.zero]
        return values[0] if len(set(values)) == 1 else _REDUCE[column.reduce](values)
    if start == end and place.start <= start < place.stop:
        return characters[max(start - 1, place.start) - place.zero]
    return column.end
