"""`sparsepo frontier`: the reward of the methods of sweeps against their KL (the paper's Figures 2, 10 and 11)."""

from collections.abc import Iterator
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy

from ..errors import SparsePOError
from .evaluated import Evaluated, read_evaluated, read_rewards
from .files import check_output, write_csv, write_lines
from .hull import Frontier
from .intervals import mean_over_seeds
from .kl_bins import COLUMNS as BIN_COLUMNS
from .kl_bins import bin_rewards, draw_bins
from .plots import Axes, Figure, draw_legend, new_figure, save_with_numbers, style_of

POINT_COLUMNS = (
    *("method", "beta", "seed", "run", "checkpoint", "step"),
    *("completions", "kl", "reward", "on_frontier"),
)
TABLE_COLUMNS = (
    *("method", "quantity", "kl_from", "kl_to", "seeds", "mean", "low", "high"),
    *("baseline", "paired_seeds", "difference", "difference_low", "difference_high"),
)
_SHARES = (0.25, 0.5, 0.75, 1.0)  # of the common range, at which rewards are compared
_SHARED = "shared area"
_DRAWN = 200  # KLs at which a curve is drawn

Row = dict[str, Any]
BySeed = dict[int, Frontier]


def frontier(
    sweeps: list[Path],
    output: Path,
    baseline: str | None = None,
    reference: Path | None = None,
    temperature: float | None = None,
) -> list[Path]:
    """Draw the frontier of each method of evaluated sweeps, and compare them.

    Args:
        sweeps: Folders of `sparsepo sweep`, whose runs have been evaluated.
        output: A folder for figures and tables.
        baseline: The method that others are compared with; by default the first.
        reference: Samples of the reference with their rewards: where every frontier starts, at a KL of 0.
        temperature: Of the completions, where there are several.

    Returns:
        What was written.

    Raises:
        SparsePOError: a sweep or an evaluation cannot be read, the baseline is no method, or the output cannot be
            written.
    """
    check_output(output / "frontier.csv")
    policies = read_evaluated(sweeps, temperature)
    start = None if reference is None else fmean(read_rewards(reference))
    curves = frontiers_of(policies, start)
    baseline = baseline or next(iter(curves))
    if baseline not in curves:
        raise SparsePOError(f"--baseline {baseline}: the methods are {', '.join(curves)}")
    rows = compare(curves, baseline)
    bins = bin_rewards(policies)
    write_csv(output / "table.csv", TABLE_COLUMNS, rows)
    write_lines(output / "table.md", markdown(rows))
    return [
        *save_with_numbers(output, "frontier", draw(policies, curves, start), POINT_COLUMNS, _dots(policies, curves)),
        *save_with_numbers(output, "bins", draw_bins(bins), BIN_COLUMNS, bins),
        *(output / name for name in ("table.csv", "table.md")),
    ]


def frontiers_of(policies: list[Evaluated], start: float | None) -> dict[str, BySeed]:
    """The frontier of each method and seed, over all its β and checkpoints.

    Args:
        policies: All of them.
        start: Reward of the reference, if it is known.
    """
    dots: dict[str, dict[int, list[tuple[float, float]]]] = {}
    origin = [] if start is None else [(0.0, start)]
    for policy in policies:
        dots.setdefault(policy.method, {}).setdefault(policy.seed, list(origin)).append((policy.kl, policy.reward))
    return {method: {seed: Frontier.of(own) for seed, own in by_seed.items()} for method, by_seed in dots.items()}


def common_range(curves: dict[str, BySeed]) -> tuple[float, float]:
    """From the KL at which all frontiers have begun, to the largest that every method has reached with every seed.

    Raises:
        SparsePOError: there is none.
    """
    every = [each for by_seed in curves.values() for each in by_seed.values()]
    low, high = max(each.vertices[0][0] for each in every), min(each.reach for each in every)
    if low >= high:
        raise SparsePOError(
            f"one method begins at a KL of {low:.3g}, where another has ended at {high:.3g}: sweep more values of β, "
            "evaluate with --checkpoints, or say with --reference where frontiers start"
        )
    return low, high


def compare(curves: dict[str, BySeed], baseline: str) -> list[Row]:
    """Area below the frontier of each method, and reward at a few KLs, as means over seeds with their intervals.

    Returns:
        Rows of TABLE_COLUMNS; differences to the baseline are paired by seed. `shared area` is over the range that a
        method and the baseline have in common, the others over that of all.
    """
    low, high = common_range(curves)
    at = [low + share * (high - low) for share in _SHARES]
    quantities = [("area", low, high), *(("reward", kl, kl) for kl in at)]
    rows = []
    for method, own in curves.items():
        shared = [(_SHARED, *common_range({method: own, baseline: curves[baseline]}))] * (method != baseline)
        rows += [_row(method, own, baseline, curves[baseline], *quantity) for quantity in (*quantities, *shared)]
    return rows


def _row(method: str, own: BySeed, baseline: str, others: BySeed, quantity: str, low: float, high: float) -> Row:
    def value(curve: Frontier) -> float:
        return curve.at(low) if quantity == "reward" else curve.mean(low, high)

    paired = sorted(own.keys() & others.keys())
    found = mean_over_seeds([value(curve) for curve in own.values()])
    row = {"method": method, "quantity": quantity, "kl_from": low, "kl_to": high, "seeds": len(own), **found}
    if method == baseline or not paired:
        return row
    difference = mean_over_seeds([value(own[seed]) - value(others[seed]) for seed in paired])
    named = {f"difference_{name}".removesuffix("_mean"): value for name, value in difference.items()}
    return {**row, "baseline": baseline, "paired_seeds": len(paired), **named}


def markdown(rows: list[Row]) -> Iterator[str]:
    """Two tables: means, and differences to the baseline."""
    of_all = [row for row in rows if row["quantity"] != _SHARED]
    heads = [_head(row) for row in of_all if row["method"] == rows[0]["method"]]
    yield from _table([f"mean [95 %], {rows[0]['seeds']} seeds", *heads], of_all, ("mean", "low", "high"))
    others = [row for row in rows if "baseline" in row]
    if others:
        heads = [f"less `{others[0]['baseline']}`, by seed", *heads, "area, to the KL that both reach"]
        yield ""
        yield from _table(heads, others, ("difference", "difference_low", "difference_high"))


def draw(policies: list[Evaluated], curves: dict[str, BySeed], start: float | None) -> Figure:
    """A point for each policy, a line for the mean frontier of each method, and its interval over seeds."""
    figure, (panel,) = new_figure(1, 1)
    figure.set_size_inches(8, 5.5)
    lines = []
    for number, (method, by_seed) in enumerate(curves.items()):
        own = [policy for policy in policies if policy.method == method]
        style = style_of(number)
        panel.scatter([each.kl for each in own], [each.reward for each in own], s=9, alpha=0.35, color=style["color"])
        lines.append(_draw_mean(panel, method, list(by_seed.values()), style))
    if start is not None:
        panel.plot([0], [start], "k+", markersize=9)
    _look_at(panel, [each.reward for each in policies] + [start] * (start is not None))
    panel.set_xlabel("KL(π‖π_ref) of a response (nats)")
    panel.set_ylabel("mean reward")
    draw_legend(figure, lines)
    return figure


def _look_at(panel: Axes, rewards: list[float]) -> None:
    """Few seeds have wide intervals, which would leave no room for the rest."""
    margin = 0.15 * (max(rewards) - min(rewards)) or 0.1
    panel.set_ylim(min(rewards) - margin, max(rewards) + margin)


def _draw_mean(panel: Axes, method: str, curves: list[Frontier], style: dict[str, str]) -> Any:
    """As far as every seed has reached."""
    low, high = max(each.vertices[0][0] for each in curves), min(each.reach for each in curves)
    kls = numpy.linspace(low, max(low, high), _DRAWN)
    found = [mean_over_seeds([each.at(kl) for each in curves]) for kl in kls]
    if len(curves) > 1:
        ends = ([each[end] for each in found] for end in ("low", "high"))
        panel.fill_between(kls, *ends, alpha=0.08, linewidth=0, color=style["color"])
    (line,) = panel.plot(kls, [each["mean"] for each in found], label=method, linewidth=1.6, **style)
    return line


def _dots(policies: list[Evaluated], curves: dict[str, BySeed]) -> Iterator[Row]:
    for each in policies:
        place = (each.kl, each.reward)
        on_frontier = place in curves[each.method][each.seed].vertices
        values = (each.method, each.beta, each.seed, each.run, each.checkpoint, each.step, len(each.kls), *place)
        yield dict(zip(POINT_COLUMNS, (*values, int(on_frontier)), strict=True))


def _head(row: Row) -> str:
    if row["quantity"] == "area":
        return f"area, KL {row['kl_from']:.2f} to {row['kl_to']:.2f}"
    return f"reward at KL {row['kl_from']:.2f}"


def _table(heads: list[str], rows: list[Row], columns: tuple[str, str, str]) -> Iterator[str]:
    lines: dict[str, list[str]] = {}
    for row in rows:
        end = f", to {row['kl_to']:.2f}" if row["quantity"] == _SHARED else ""
        lines.setdefault(row["method"], [row["method"]]).append(_cell(*(row.get(name) for name in columns)) + end)
    for line in (heads, ["---"] * len(heads), *lines.values()):
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |"


def _cell(mean: float | None, low: float | None, high: float | None) -> str:
    if mean is None:
        return "–"
    return f"{mean:.3f}" if low is None else f"{mean:.3f} [{low:.3f}, {high:.3f}]"
