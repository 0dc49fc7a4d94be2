"""Figures of matplotlib, which the extra `analysis` brings: how they look and how they are saved."""

import csv
import io
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..errors import SparsePOError
from .files import write_output

try:
    import matplotlib
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
except ImportError as error:
    raise SparsePOError(
        f"figures need matplotlib ({error}): pip install 'sparsepo-plugin[analysis]', or pip install matplotlib"
    ) from error

# Okabe and Ito's, told apart by the colour-blind; the last is grey.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#7f7f7f")
_STYLE = {
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 10,
    "figure.constrained_layout.h_pad": 0.08,
    "figure.constrained_layout.w_pad": 0.08,
    "font.family": ["DejaVu Sans"],
    "font.size": 9,
    "grid.color": "0.9",
    "svg.hashsalt": "sparsepo",  # the same figure is the same file
    "text.parse_math": False,  # a run's name may have a $
}

__all__ = ["Axes", "Figure", "colours", "draw_key", "new_figure", "save_with_numbers", "svg"]


def new_figure(rows: int, columns: int) -> tuple[Figure, list[Axes]]:
    """A figure with its panels, row by row."""
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(1 + 3.6 * columns, 0.8 + 2.3 * rows), layout="constrained")
        axes = figure.subplots(rows, columns, squeeze=False)
    return figure, list(axes.flat)


def colours() -> tuple[str, ...]:
    """One for each run."""
    return _COLOURS


def draw_key(figure: Figure, names: list[str]) -> None:
    """Say above the panels which colour is whose, and what lines and points are."""
    runs = [Line2D([], [], color=colour, label=name) for name, colour in zip(names, _COLOURS, strict=False)]
    kinds = [
        Line2D([], [], color="0.4", label="training"),
        Line2D([], [], color="0.4", label="evaluation", marker="o", linestyle="none"),
    ]
    with matplotlib.rc_context(_STYLE):
        figure.legend(handles=[*runs, *kinds], loc="outside upper center", ncols=4, frameon=False)


def svg(figure: Figure) -> str:
    """A figure as an element of a page."""
    text = io.StringIO()
    with matplotlib.rc_context(_STYLE):
        figure.savefig(text, format="svg", metadata={"Date": None})
    return text.getvalue()[text.getvalue().index("<svg") :]


def save_with_numbers(
    output: Path, name: str, figure: Figure, columns: tuple[str, ...], rows: Iterable[dict[str, Any]]
) -> list[Path]:
    """Write the numbers behind a figure into the folder `output` as CSV, and the figure as PNG and SVG.

    Returns:
        What was written.

    Raises:
        SparsePOError: it cannot be.
    """

    def write(part: Path) -> None:
        with part.open("w", newline="", encoding="utf-8") as file:
            table = csv.DictWriter(file, columns)
            table.writeheader()
            table.writerows(rows)

    paths = [output / f"{name}.{ending}" for ending in ("csv", "png", "svg")]
    write_output(paths[0], write)
    for path in paths[1:]:
        _save(figure, path)
    return paths


def _save(figure: Figure, path: Path) -> None:
    ending = path.suffix.removeprefix(".")
    metadata = {"Date": None} if ending == "svg" else None
    with matplotlib.rc_context(_STYLE):
        write_output(path, lambda part: figure.savefig(part, format=ending, dpi=150, metadata=metadata))
