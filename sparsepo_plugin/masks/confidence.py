"""Tokens of which the policy is less sure than of the others, the selection of ConfPO."""

from torch import Tensor

from ..reference import ReferenceFeatures
from ..registry import MASKS
from ..tokens import ResponseTokens
from .base import TokenMask


@MASKS.register("confidence")
class ConfidenceMask(TokenMask):
    """1 on tokens less likely than the response's tokens are on average, π(y_t) < mean_t π(y_t) (Yoon et al. 2025).

    The policy's own probabilities decide, anew at each step and without gradient.
    """

    needs = frozenset({"policy_logps"})
    zeros_have_gradient = False
    causal = False  # a mean over the whole response

    def forward(self, features: ReferenceFeatures, tokens: ResponseTokens) -> Tensor:
        """1 on selected tokens, else 0; 0 throughout where all are equally likely. float32 [N]."""
        # In float64 the sum of equal float32 numbers is exact, so that none of them is below its mean.
        probabilities = features.policy_logps.exp().double()
        return (probabilities < tokens.mean(probabilities)[tokens.sequence]).to(features.policy_logps.dtype)
