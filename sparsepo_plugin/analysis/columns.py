"""`sparsepo score --to-column`: token scores as weights in a copy of the pairs, where `mask: column` reads them."""

import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ..errors import SparsePOError
from ..run import Run, TokenTable
from ..spans import WeightColumn, spans_of_tokens
from .files import check_output, write_lines
from .lines import Line
from .pairs import Pair, answer_each, open_run, pair_of, read_pair_lines, tokens_of
from .score import COLUMNS, numbers
from .tis import origin, transform_of

_SIDES = ("chosen", "rejected")
_NAMES = {f"{side}{WeightColumn().suffix}": side for side in _SIDES}  # of the columns that are written
_MADE = ("tis", "cdpo")  # of scores; what a run has is written as it is

Score = Callable[[Run, TokenTable, Pair, str], list[float] | None]
Transform = Callable[[Sequence[float]], list[float]]


def to_column(
    model: Path,
    pairs: Path,
    output: Path,
    column: str,
    reference: str | None = None,
    transform: str | None = None,
    count: int | None = None,
    allow_code: bool = False,
) -> None:
    """Write the first `count` pairs again, with weights of characters that come from the scores of tokens.

    The end of a sequence has no characters, and so no weight: the option `end` of the mask is its.

    Args:
        model: A finished run; with `reference` also a model's folder or hub name.
        pairs: JSON lines, of which every column is kept.
        output: JSON lines with the columns `chosen_weights` and `rejected_weights` beside the others.
        column: A column of `sparsepo score`; `tis`, TIS-DPO's weights from the log-ratio; or `cdpo`, those that cDPO
            gives rejected tokens.
        reference: Another model to compare with than the run's.
        transform: What makes weights of the scores of `tis`.
        count: How many pairs; all without it.
        allow_code: Import what the run's description names, and run code that models bring.

    Raises:
        SparsePOError: an option has no effect, a file or a model cannot be read, a pair cannot be asked about or has
            weights already, or the output cannot be written.
    """
    check_output(output)
    score, weigh = _scoring(column, transform)
    lines = read_pair_lines(pairs, count)
    asked = [_pair_without_weights(line) for line in lines]
    run = open_run(model, asked, reference, allow_code)
    found = answer_each(asked, str(model), partial(_columns, run, score, weigh))
    both = zip(lines, found, strict=True)
    write_lines(output, (json.dumps({**line.values, **columns}) for line, columns in both))


def _scoring(column: str, transform: str | None) -> tuple[Score, Transform]:
    """What scores the tokens of a response, and what makes weights of the scores."""
    if column == "tis":
        return _contrast, transform_of(transform)
    if transform is not None:
        raise SparsePOError(f"--transform has no effect with --to-column {column}; it is for tis")
    if column == "cdpo":
        return _not_critical, origin
    if column not in COLUMNS:
        raise SparsePOError(f"--to-column {column}: allowed are {', '.join((*COLUMNS, *_MADE))}")
    return partial(_own, column), origin


def _pair_without_weights(line: Line) -> Pair:
    if there := [name for name in _NAMES if name in line.values]:
        raise SparsePOError(f"{line.place}: {there[0]} is there already, and is not overwritten")
    return pair_of(line)


def _columns(run: Run, score: Score, weigh: Transform, pair: Pair) -> dict[str, list[dict[str, Any]]]:
    """The two columns of a pair."""
    table = tokens_of(run, pair)
    columns = {}
    for name, side in _NAMES.items():
        rows = table.of(side)
        scores = score(run, rows, pair, side)
        offsets = run.description.joining.offsets(run.tokenizer, pair.prompt, getattr(pair, side))
        offsets = offsets[len(offsets) - len(rows) :]
        # The end of the sequence has no characters, and no part in a response's ranks.
        own = [place for place, (start, end) in enumerate(offsets) if start < end]
        weights = [] if scores is None else weigh([scores[place] for place in own])
        columns[name] = spans_of_tokens([offsets[place] for place in own][: len(weights)], weights)
    return columns


def _own(column: str, run: Run, rows: TokenTable, pair: Pair, side: str) -> list[float]:
    """What the run has of its tokens, as it is."""
    values = numbers(getattr(rows, column))
    if values is None:
        there = ", ".join(name for name in COLUMNS if getattr(rows, name) is not None)
        raise SparsePOError(f"the run has no {column}; it has {there}")
    return values


def _contrast(run: Run, rows: TokenTable, pair: Pair, side: str) -> list[float]:
    """TIS-DPO's scores: how much likelier a chosen token is under the first model, a rejected one under the second."""
    ratios = _own("log_ratio", run, rows, pair, side)
    return ratios if side == "chosen" else [-ratio for ratio in ratios]


@torch.no_grad()
def _not_critical(run: Run, rows: TokenTable, pair: Pair, side: str) -> list[float] | None:
    """What cDPO weighs rejected tokens with: 1 − s_t, s_t ∝ P_pos(y_t)²/P_neg(y_t) (Lin et al. 2025, Eq. 1, b = 1).

    P_pos and P_neg are the base model trained on right and on wrong solutions: policy and reference here.
    """
    if side == "chosen":
        return None
    if run.reference is None:
        raise SparsePOError("--to-column cdpo compares two models: --reference MODEL is needed")
    *_, (ids, _) = run.description.joining.encode(run.tokenizer, pair.prompt, [pair.chosen, pair.rejected])
    inputs = torch.tensor([ids], device=run.policy.device)
    positive, negative = (
        model(input_ids=inputs).logits[0, -len(rows) - 1 : -1].float().log_softmax(-1)
        for model in (run.policy, run.reference)
    )
    critical = (2 * positive - negative).softmax(-1).cpu().gather(1, rows.labels[:, None])
    return numbers(1 - critical.squeeze(1))
