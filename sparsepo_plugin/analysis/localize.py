"""`sparsepo localize`: whether what a run makes of tokens is large where the responses of a pair were edited."""

import math
from pathlib import Path

from ..errors import SparsePOError
from .edits import COLUMNS, QUANTITIES, Row, find_edits, rows_of
from .files import check_output, names_of
from .pairs import ask, read_pairs
from .plots import Axes, Figure, colours, new_figure, save_with_numbers


def localize(
    runs: list[Path], pairs: Path, output: Path, count: int | None = None, allow_code: bool = False
) -> list[str]:
    """Compare runs on the first `count` pairs whose responses differ by edits.

    Returns:
        Lines for people: a table, and what was written into the folder `output`.

    Raises:
        SparsePOError: a run or the pairs cannot be read, no pair differs by edits, or the output cannot be written.
    """
    check_output(output / "localize.csv")
    names, asked = names_of(runs), read_pairs(pairs, count)
    rows: list[Row] = []
    left_out: list[str] = []
    for name, run in zip(names, runs, strict=True):
        found = find_edits(ask(run, asked, allow_code))
        if not found.tables:
            raise SparsePOError(f"--pairs {pairs}: {name}: no pair differs by edits: {found.left_out}")
        rows += rows_of(name, found)
        left_out += [f"{name}: pairs left out: {found.left_out}"] if len(found.tables) < len(asked) else []
    paths = save_with_numbers(output, "localize", draw(rows), COLUMNS, map(_written, rows))
    return [*_table(rows), *left_out, *map(str, paths)]


def draw(rows: list[Row]) -> Figure:
    """A panel for the AUC of each quantity and one for the share of |advantage|; a line for each run."""
    figure, axes = new_figure(rows=2, columns=3)
    names = list(dict.fromkeys(row["run"] for row in rows))
    for panel, (quantity, label) in zip(axes, QUANTITIES.items(), strict=False):
        panel.set_title(f"AUC of {label}")
        panel.set_xlim(0, 1)
        panel.axvline(0.5, color="0.4", linestyle=":")
        _draw(panel, [row for row in rows if row["quantity"] == quantity], names, "auc")
    advantages = [row for row in rows if row["quantity"] == "advantage"]
    axes[-1].set_title("share on edits: |advantage|, × tokens")
    _draw(axes[-1], advantages, names, "share")
    axes[-1].plot(
        [row["edited_share"] for row in advantages], [names.index(row["run"]) for row in advantages], "x", color="0.4"
    )
    axes[-1].set_xlim(left=0)
    for place, panel in enumerate(axes):
        panel.set_yticks(range(len(names)), names if place % 3 == 0 else [])
        panel.set_ylim(len(names) - 0.5, -0.5)
    return figure


def _draw(panel: Axes, rows: list[Row], names: list[str], value: str) -> None:
    for row in rows:
        place = names.index(row["run"])
        panel.plot([row[f"{value}_low"], row[f"{value}_high"]], [place, place], color=colours()[0])
        panel.plot(row[value], place, "o", color=colours()[0], markersize=4)


def _written(row: Row) -> Row:
    """As it stands in the CSV: what is not a number is left empty."""
    return {name: "" if isinstance(value, float) and math.isnan(value) else value for name, value in row.items()}


def _table(rows: list[Row]) -> list[str]:
    header = ("run", "pairs", "edited", "quantity", "AUC (95%)", "pooled", "on edited tokens (95%)")
    cells = [header, *map(_cells, rows)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(header))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in cells]


def _cells(row: Row) -> tuple[str, ...]:
    return (
        row["run"],
        str(row["pairs"]),
        f"{row['edited_share']:.1%}",
        QUANTITIES[row["quantity"]],
        _with_interval(row, "auc", ".3f"),
        f"{row['pooled_auc']:.3f}",
        _with_interval(row, "share", ".1%"),
    )


def _with_interval(row: Row, name: str, digits: str) -> str:
    value, low, high = (row[key] for key in (name, f"{name}_low", f"{name}_high"))
    if math.isnan(value):
        return "–"
    return f"{value:{digits}}" if math.isnan(low) else f"{value:{digits}} ({low:{digits}}–{high:{digits}})"
