"""Pairs whose responses differ by edits, and how far what a run makes of tokens is larger on the edited ones."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ..alignment import edited
from ..run import TokenTable
from .intervals import resampled

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
Row = dict[str, Any]


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
    from scipy.stats import rankdata  # here, because intervals.py says in a line that it is not installed

    count = int(positive.sum())
    above = rankdata(sizes)[positive].sum() - count * (count + 1) / 2
    return float(above / (count * (len(sizes) - count)))


def _measure(columns: list[torch.Tensor], edited: list[torch.Tensor]) -> dict[str, float]:
    """AUC and share of one quantity's sizes, [N] of each pair, with intervals over pairs."""
    sizes, flags = ([column.abs().double().numpy() for column in columns], [each.numpy() for each in edited])
    aucs = np.array([roc_auc(*pair) for pair in zip(sizes, flags, strict=True)])
    on_edits = np.array([size[flag].sum() for size, flag in zip(sizes, flags, strict=True)])
    totals = np.array([size.sum() for size in sizes])
    auc_low, auc_high = resampled(np.mean, aucs)
    share_low, share_high = resampled(_share, on_edits, totals)
    return {
        "auc": float(aucs.mean()),
        "auc_low": auc_low,
        "auc_high": auc_high,
        "pooled_auc": roc_auc(np.concatenate(sizes), np.concatenate(flags)),
        "share": float(_share(on_edits, totals)),
        "share_low": share_low,
        "share_high": share_high,
    }


def _share(on_edits: np.ndarray, totals: np.ndarray, axis: int = -1) -> np.ndarray:
    """Of the whole of all pairs, not a mean over pairs: one in which a sparse mask is zero has no share of its own."""
    with np.errstate(invalid="ignore"):
        return on_edits.sum(axis) / totals.sum(axis)
