"""An oracle's token reward as guidance, the weight of TGDPO."""

import torch
from pydantic import NonNegativeFloat
from torch import Tensor

from ..reference import ReferenceFeatures
from ..registry import MASKS
from ..tokens import ResponseTokens
from .base import TokenMask


@MASKS.register("oracle_reward")
class OracleRewardMask(TokenMask):
    """1 + αβ·q_t on chosen, 1 − αβ·q_t on rejected tokens, negative where that is (Zhu et al. 2025, TGDPO).

    q_t = log π_oracle(y_t) − log π_ref(y_t), the oracle a model trained with DPO from the reference.

    Args:
        oracle: Folder or hub name of the oracle model.
        scale: α·β, as masks are not told β; the authors' release has α 0.5 and β 0.1.
    """

    needs = frozenset({"logps", "oracle_logps"})
    zeros_have_gradient = False
    signed = True
    causal = False  # rewards of the tokens themselves

    def __init__(self, *, oracle: str, scale: NonNegativeFloat = 0.05) -> None:
        super().__init__()
        self.oracle, self.scale = oracle, scale

    def forward(self, features: ReferenceFeatures, tokens: ResponseTokens) -> Tensor:
        """Weights of the batch's response tokens. float32 [N]."""
        rewards = features.oracle_logps - features.logps
        return 1 + self.scale * torch.where(tokens.chosen, rewards, -rewards)
