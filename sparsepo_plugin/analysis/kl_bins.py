"""The mean reward of completions by their own KL (the paper's Figure 11)."""

from collections.abc import Iterator
from typing import Any

import numpy

from .evaluated import Evaluated
from .plots import Figure, draw_legend, new_figure, style_of

COLUMNS = ("method", "beta", "kl_from", "kl_to", "completions", "reward")
BINS = 8
LEAST = 10  # completions of a bin that is drawn
_END = 95  # percent of all completions lie below the last bin's start

Row = dict[str, Any]


def bin_rewards(policies: list[Evaluated]) -> list[Row]:
    """Completions of finished runs, all seeds of a method and β together, in bins that are everyone's.

    Returns:
        A row for each bin that is not empty. Bins are of one width up to where 95 % of all completions lie; the last
        has the rest.
    """
    finished = [policy for policy in policies if not policy.checkpoint]
    groups: dict[tuple[str, str], list[Evaluated]] = {}
    for policy in finished:
        groups.setdefault((policy.method, policy.beta), []).append(policy)
    edges = bin_edges(numpy.concatenate([policy.kls for policy in finished]))
    return [row for key, group in groups.items() for row in _of_group(*key, group, edges)]


def bin_edges(kls: numpy.ndarray) -> numpy.ndarray:
    """From the least KL, or 0 if that is less, to the largest. [BINS + 1]."""
    start, end = min(0.0, kls.min()), numpy.percentile(kls, _END)
    return numpy.append(numpy.linspace(start, end, BINS), max(kls.max(), end))


def _of_group(method: str, beta: str, policies: list[Evaluated], edges: numpy.ndarray) -> Iterator[Row]:
    kls, rewards = (numpy.concatenate([getattr(each, name) for each in policies]) for name in ("kls", "rewards"))
    places = numpy.clip(numpy.searchsorted(edges, kls, side="right") - 1, 0, BINS - 1)
    for place in numpy.unique(places):
        own = rewards[places == place]
        numbers = (float(edges[place]), float(edges[place + 1]), len(own), float(own.mean()))
        yield dict(zip(COLUMNS, (method, beta, *numbers), strict=True))


def draw_bins(rows: list[Row]) -> Figure:
    """A panel for each β, a line for each method."""
    betas, methods = (list(dict.fromkeys(row[column] for row in rows)) for column in ("beta", "method"))
    figure, axes = new_figure(1, len(betas))
    lines = {}
    for panel, beta in zip(axes, betas, strict=True):
        for number, method in enumerate(methods):
            own = [row for row in rows if (row["method"], row["beta"]) == (method, beta)]
            own = [row for row in own if row["completions"] >= LEAST]
            middles = [(row["kl_from"] + row["kl_to"]) / 2 for row in own]
            (lines[method],) = panel.plot(
                middles, [row["reward"] for row in own], marker="o", markersize=4, label=method, **style_of(number)
            )
        panel.set_title(f"β = {beta}" if beta else "")
        panel.set_xlabel("KL(π‖π_ref) of the response (nats)")
    axes[0].set_ylabel("mean reward")
    draw_legend(figure, list(lines.values()))
    return figure
