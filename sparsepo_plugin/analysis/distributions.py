"""How the values of masks are distributed over the tokens of pairs (the paper's Figures 17 and 19)."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from ..run import TokenTable
from .plots import Figure, colours, new_figure

COLUMNS = ("run", "mask", "response", "from", "to", "tokens")
BINS = 40
_SIDES = ("chosen", "rejected")


@dataclass(frozen=True)
class Distribution:
    """The values of one mask of a run over the tokens of one kind of response.

    Attributes:
        run: Its name.
        mask: `m_u`, `m_d`, or `m_u = m_d`.
        response: `chosen` or `rejected`.
        zeros: Tokens whose weight is exactly zero.
        edges: Of the bins, one more than there are; the same for both kinds of response.
        counts: All other tokens, by bin.
    """

    run: str
    mask: str
    response: str
    zeros: int
    edges: list[float]
    counts: list[int]

    @property
    def tokens(self) -> int:
        """All of them."""
        return self.zeros + sum(self.counts)

    def rows(self) -> Iterator[dict[str, Any]]:
        """First the zeros, from 0 to 0, then a row for each bin."""
        bins = zip([0.0, *self.edges[:-1]], [0.0, *self.edges[1:]], [self.zeros, *self.counts], strict=True)
        for least, most, tokens in bins:
            yield dict(zip(COLUMNS, (self.run, self.mask, self.response, least, most, tokens), strict=True))


def distributions_of(name: str, tables: list[TokenTable]) -> list[Distribution]:
    """Of a run's masks, chosen before rejected; none for a loss without masks.

    Args:
        name: The run's.
        tables: Its answers.
    """
    if tables[0].mask_reward is None:
        return []
    shared = all(torch.equal(table.mask_reward, table.mask_kl) for table in tables)
    columns = {"m_u = m_d": "mask_reward"} if shared else {"m_u": "mask_reward", "m_d": "mask_kl"}
    return [each for mask, column in columns.items() for each in _of_mask(name, mask, column, tables)]


def _of_mask(name: str, mask: str, column: str, tables: list[TokenTable]) -> Iterator[Distribution]:
    values = {side: torch.cat([getattr(table.of(side), column) for table in tables]).float() for side in _SIDES}
    both = torch.cat(list(values.values()))
    ends = (min(0.0, both.min().item()), both.max().item() or 1.0)
    for side, weights in values.items():
        counts, edges = torch.histogram(weights[weights != 0], BINS, range=ends)
        yield Distribution(name, mask, side, int((weights == 0).sum()), edges.tolist(), counts.int().tolist())


def draw_distributions(found: list[Distribution]) -> Figure:
    """Chosen responses above rejected ones, a column for each mask of each run."""
    columns = list(dict.fromkeys((each.run, each.mask) for each in found))
    figure, axes = new_figure(len(_SIDES), len(columns))
    by_run = dict(zip(dict.fromkeys(run for run, _ in columns), colours(), strict=False))
    for each in found:
        panel = axes[_SIDES.index(each.response) * len(columns) + columns.index((each.run, each.mask))]
        widths = [most - least for least, most in zip(each.edges, each.edges[1:], strict=False)]
        shares = [100 * count / each.tokens for count in each.counts]
        panel.bar(each.edges[:-1], shares, widths, align="edge", color=by_run[each.run])
        panel.set_ylim(0, 1.05 * max(1, *shares))
        zeros = f"{100 * each.zeros / each.tokens:.0f} % zero"
        panel.set_title(f"{each.run}: {each.mask}, {each.response}, {zeros}")
        panel.set_xlabel("weight" if each.response == "rejected" else "")
        panel.set_ylabel("tokens, %" if columns[0] == (each.run, each.mask) else "")
    return figure
