"""D²PO (Shao et al., ICLR 2025)."""

from ..registry import OBJECTIVES
from .weighted_dpo import WeightedDPO


@OBJECTIVES.register("d2po")
class D2PO(WeightedDPO):
    """DPO whose tokens count less the later they come, through the `decay` mask (Shao et al. 2025).

    R = β·Σ_t γ^t·r_t with t from 0.

    Args:
        beta: β.
        label_smoothing: Probability that a preference label is flipped.
    """

    chooses_mask = False
    mask = "decay"
