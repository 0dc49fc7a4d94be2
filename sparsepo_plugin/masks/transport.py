"""What an optimal transport between the two responses moves, the weight of OTPO."""

import math
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from ..reference import ReferenceFeatures
from ..registry import MASKS
from ..tokens import ResponseTokens
from .base import TokenMask

_PRECISE = 1e-8  # of the plan's potentials, in nats
_MOST = 1000  # iterations, which no plan that is spread needs; the release's limit
Weight = Annotated[float, Field(ge=1e-3, le=1e3)]


@MASKS.register("transport")
class TransportMask(TokenMask):
    """How much of a token an unbalanced transport moves between the responses of its pair (Li et al. 2025, OTPO).

    Every token has a mass of 1 and lies where the policy's last hidden state does that predicts it. The plan G has the
    least ⟨G, C⟩ + ε·KL(G‖1) + ε_m·(KL(G·1‖1) + KL(Gᵀ·1‖1)); C are the distances between the two responses' states,
    divided by the largest of them and of the states' norms where that is above 1, as in the authors' release, where
    prompts and padding lie at 0. Weights are what G moves of each token, in each response n in total, the shorter
    one's length.

    Args:
        reg: ε, how much the plan is spread; ot_reg of the release.
        reg_m: ε_m, how much mass must be moved; ot_reg_m of the release.
    """

    needs = frozenset({"policy_hidden"})
    zeros_have_gradient = False
    causal = False  # both whole responses

    def __init__(self, *, reg: Weight = 1.0, reg_m: Weight = 0.2) -> None:
        super().__init__()
        self.reg, self.power = reg, reg_m / (reg_m + reg)
        # Each iteration brings the potentials nearer by the square of this power, whatever the states are.
        self.iterations = min(math.ceil(math.log(_PRECISE) / (2 * math.log(self.power))), _MOST)

    def forward(self, features: ReferenceFeatures, tokens: ResponseTokens) -> Tensor:
        """Weights of the batch's response tokens. float32 [N] (float64 for float64 states).

        Raises:
            SparsePOError: under ring attention, where no process sees a whole response.
        """
        tokens.refuse_shards("whole responses are compared")
        states = features.policy_hidden
        states = states.to(torch.promote_types(states.dtype, torch.float32))
        weights = states.new_zeros(len(tokens))
        for pair in range(tokens.num_pairs):
            chosen, rejected = (
                (tokens.sequence == sequence).nonzero().squeeze(-1) for sequence in (pair, pair + tokens.num_pairs)
            )
            weights[chosen], weights[rejected] = self._moved(states[chosen], states[rejected])
        return weights

    def _moved(self, chosen: Tensor, rejected: Tensor) -> tuple[Tensor, Tensor]:
        """Weights of the tokens of one pair by their states. [n, d] and [m, d] -> [n] and [m]."""
        if not len(chosen) or not len(rejected):
            return chosen.new_zeros(len(chosen)), chosen.new_zeros(len(rejected))
        distance = torch.cdist(chosen, rejected)
        largest = torch.cat([distance.flatten(), chosen.norm(dim=1), rejected.norm(dim=1)]).max().clamp(min=1)
        kernel = -distance / largest / self.reg
        of_chosen, of_rejected = (chosen.new_zeros(len(states)) for states in (chosen, rejected))
        for _ in range(self.iterations):
            of_chosen = -self.power * (kernel + of_rejected).logsumexp(1)
            of_rejected = -self.power * (kernel.T + of_chosen).logsumexp(1)
        plan = (kernel + of_chosen[:, None] + of_rejected).exp()
        plan = plan / plan.sum() * min(plan.shape)
        return plan.sum(1), plan.sum(0)
