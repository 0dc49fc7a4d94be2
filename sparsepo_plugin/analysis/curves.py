"""`sparsepo curves`: what runs logged, against their steps, and how the values of their masks are distributed."""

from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from ..checkpoint import load_description
from ..errors import SparsePOError
from ..record import METRICS, read_metrics
from . import distributions
from .files import check_output, names_of
from .pairs import Pair, ask, check_count, read_pairs
from .plots import Axes, Figure, colours, draw_key, new_figure, save_with_numbers

_SIDES = ("chosen", "rejected")
# A panel: its title, and the numbers of the metrics file that are drawn in it.
PANELS = [
    *[
        panel
        for side in _SIDES
        for panel in (
            (f"sparsity of m_u, {side} (%)", (f"sparsity_reward_{side}",)),
            (f"sparsity of m_d, {side} (%)", (f"sparsity_kl_{side}",)),
            (f"token KL, {side} (nats)", (f"token_kl_{side}",)),
        )
    ],
    ("KL margin (nats)", ("token_kl_margin",)),
    ("rewards, rejected dashed", tuple(f"{side}_reward" for side in _SIDES)),
    ("accuracy", ("accuracy",)),
]
COLUMNS = ("run", "split", "step", *chain.from_iterable(names for _, names in PANELS))
Row = dict[str, Any]


def curves(
    runs: list[Path], output: Path, pairs: Path | None = None, count: int | None = None, allow_code: bool = False
) -> list[Path]:
    """Draw runs in one figure, and with pairs a second one of their masks; each as PNG and SVG with its CSV.

    Returns:
        What was written into the folder `output`.

    Raises:
        SparsePOError: a run logged nothing, pairs cannot be read or no run has masks, matplotlib is not installed, or
            the output cannot be written.
    """
    check_output(output / "curves.csv")
    check_count(count, pairs)
    names = names_of(runs)
    logged = [read_run(run) for run in runs]
    drawn = {"curves": (draw_curves(names, logged), COLUMNS, _lines(names, logged))}
    if pairs is not None:
        drawn["masks"] = _masks(runs, names, read_pairs(pairs, count), allow_code)
    return [path for name, parts in drawn.items() for path in save_with_numbers(output, name, *parts)]


def read_run(run: Path) -> list[Row]:
    """The rows of a run's metrics.

    Raises:
        SparsePOError: it is no run, or logged nothing.
    """
    if rows := read_metrics(run):
        return rows
    load_description(run)  # says what is missing of what is no run
    raise SparsePOError(f"{run / METRICS} is missing or empty: the run logged no numbers")


def draw_curves(names: list[str], logged: list[list[Row]]) -> Figure:
    """A panel for each of PANELS, a colour for each run; lines of training, points of evaluation."""
    figure, axes = new_figure(rows=3, columns=3)
    for panel, (title, numbers) in zip(axes, PANELS, strict=True):
        panel.set_title(title)
        for rows, colour in zip(logged, colours(), strict=False):
            for name, line in zip(numbers, ("-", "--"), strict=False):
                _draw(panel, rows, name, colour, line)
        if not panel.has_data():
            panel.text(0.5, 0.5, "not logged", transform=panel.transAxes, ha="center", color="0.4")
    for panel in axes[-3:]:
        panel.set_xlabel("step")
    draw_key(figure, names)
    return figure


def _draw(panel: Axes, rows: list[Row], name: str, colour: str, line: str) -> None:
    train, evaluated = (_points(rows, split, name) for split in ("train", "eval"))
    if train:
        panel.plot(*zip(*train, strict=True), color=colour, linestyle=line, linewidth=1.4)
    if evaluated:
        filled = colour if line == "-" else "white"
        panel.plot(*zip(*evaluated, strict=True), "o", color=colour, markerfacecolor=filled, markersize=5)


def _points(rows: list[Row], split: str, name: str) -> list[tuple[int, float]]:
    return [(row["step"], row[name]) for row in rows if row["split"] == split and row.get(name) is not None]


def _lines(names: list[str], logged: list[list[Row]]) -> Iterator[Row]:
    for name, rows in zip(names, logged, strict=True):
        for row in rows:
            yield {"run": name, **{column: row[column] for column in COLUMNS if column in row}}


def _masks(
    runs: list[Path], names: list[str], pairs: list[Pair], allow_code: bool
) -> tuple[Figure, tuple[str, ...], Iterator[Row]]:
    """Figure, columns and rows of the distributions of all runs that have masks."""
    found = [
        each
        for name, run in zip(names, runs, strict=True)
        for each in distributions.distributions_of(name, list(ask(run, pairs, allow_code)))
    ]
    if not found:
        raise SparsePOError(f"--pairs: {', '.join(names)}: the loss has no masks whose values could be shown")
    rows = (row for each in found for row in each.rows())
    return distributions.draw_distributions(found), distributions.COLUMNS, rows
