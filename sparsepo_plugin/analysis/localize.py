"""`sparsepo localize`: whether what a run makes of tokens is large where the responses of a pair were edited."""

import math
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..alignment import edited
from ..errors import SparsePOError
from ..run import TokenTable
from .files import check_output, names_of
from .pairs import ask, read_pairs
from .plots import Axes, Figure, colours, new_figure, save_with_numbers

try:
    from scipy.stats import DegenerateDataWarning, bootstrap, rankdata
except ImportError as error:
    raise SparsePOError(
        f"intervals need scipy ({error}): pip install 'sparsepo-plugin[analysis]', or pip install scipy"
    ) from error

QUANTITIES = {
    "mask_reward": "m_u",
    "mask_kl": "m_d",
    "log_ratio": "|log-ratio|",
    "advantage": "|advantage|",
    "kl": "token KL",
}
COLUMNS = (
    *("run", "pairs", "without_edit", "unlike", "tokens", "edited_tokens", "edited_share", "quantity"),
    *("auc", "auc_low", "auc_high", "pooled_auc", "share", "share_low", "share_high"),
)
_RESAMPLES = 2000
Row = dict[str, Any]


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


@dataclass(frozen=True)
class Edits:
    """The pairs that differ by edits, as one run sees them.

    Attributes:
        tables: What the run makes of each.
        edited: Which tokens of each table the other response lacks. bool [N] each.
        without_edit: Pairs left out, whose responses are the same tokens.
        unlike: Pairs left out, whose responses share less than half of their tokens, such as two samples.
    """

    tables: list[TokenTable]
    edited: list[torch.Tensor]
    without_edit: int
    unlike: int

    @property
    def left_out(self) -> str:
        """How many pairs, and why."""
        return f"{self.without_edit} without an edit, {self.unlike} with less than half in common"


def find_edits(tables: Iterable[TokenTable]) -> Edits:
    """Align the two responses of each pair."""
    kept, flags, without_edit, unlike = [], [], 0, 0
    for table in tables:
        edits = torch.cat(edited(*(table.of(side).labels.tolist() for side in ("chosen", "rejected"))))
        if not edits.any():
            without_edit += 1
        elif edits.float().mean() > 0.5:
            unlike += 1
        else:
            kept.append(table)
            flags.append(edits)
    return Edits(kept, flags, without_edit, unlike)


def rows_of(name: str, edits: Edits) -> list[Row]:
    """A row for each quantity that the run has.

    Args:
        name: The run's.
        edits: Of one pair at least.
    """
    flags = torch.cat(edits.edited)
    counts = {
        "run": name,
        "pairs": len(edits.tables),
        "without_edit": edits.without_edit,
        "unlike": edits.unlike,
        "tokens": len(flags),
        "edited_tokens": int(flags.sum()),
        "edited_share": flags.float().mean().item(),
    }
    return [
        counts | {"quantity": quantity} | _measure([getattr(table, quantity) for table in edits.tables], edits.edited)
        for quantity in QUANTITIES
        if getattr(edits.tables[0], quantity) is not None
    ]


def roc_auc(sizes: np.ndarray, positive: np.ndarray) -> float:
    """Probability that a positive is larger than a negative, ties counted half: Mann and Whitney's U / (n₊·n₋).

    Args:
        sizes: Floating [N].
        positive: bool [N], of both kinds.
    """
    count = int(positive.sum())
    above = rankdata(sizes)[positive].sum() - count * (count + 1) / 2
    return float(above / (count * (len(sizes) - count)))


def _measure(columns: list[torch.Tensor], edited: list[torch.Tensor]) -> dict[str, float]:
    """AUC and share of one quantity's sizes, [N] of each pair, with intervals over pairs."""
    sizes, flags = ([column.abs().double().numpy() for column in columns], [each.numpy() for each in edited])
    aucs = np.array([roc_auc(*pair) for pair in zip(sizes, flags, strict=True)])
    on_edits = np.array([size[flag].sum() for size, flag in zip(sizes, flags, strict=True)])
    totals = np.array([size.sum() for size in sizes])
    auc_low, auc_high = interval(np.mean, aucs)
    share_low, share_high = interval(_share, on_edits, totals)
    return {
        "auc": float(aucs.mean()),
        "auc_low": auc_low,
        "auc_high": auc_high,
        "pooled_auc": roc_auc(np.concatenate(sizes), np.concatenate(flags)),
        "share": float(_share(on_edits, totals)),
        "share_low": share_low,
        "share_high": share_high,
    }


def interval(statistic: Callable[..., np.ndarray], *columns: np.ndarray) -> tuple[float, float]:
    """95% by resampling pairs; not a number for one pair. Percentiles, which a constant does not trouble."""
    if len(columns[0]) < 2:
        return math.nan, math.nan
    with warnings.catch_warnings(action="ignore", category=DegenerateDataWarning):
        found = bootstrap(
            columns, statistic, n_resamples=_RESAMPLES, batch=100, paired=True, method="percentile", rng=0
        )
    return float(found.confidence_interval.low), float(found.confidence_interval.high)


def _share(on_edits: np.ndarray, totals: np.ndarray, axis: int = -1) -> np.ndarray:
    """Of the whole of all pairs, not a mean over pairs: one in which a sparse mask is zero has no share of its own."""
    with np.errstate(invalid="ignore"):
        return on_edits.sum(axis) / totals.sum(axis)


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
    axes[-1].set_title("on edited tokens: share of |advantage|, × of tokens")
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
