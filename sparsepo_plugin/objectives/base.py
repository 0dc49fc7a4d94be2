"""What every objective is, what it returns, and the preference loss that they share."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from ..divergence import Expectation, TokenStatistics
from ..tokens import MaskPair, ResponseTokens


@dataclass
class ObjectiveOutput:
    """Loss and rewards of a batch of P pairs with N response tokens.

    Attributes:
        loss: Mean over pairs, scalar, with gradient.
        chosen_rewards: Implicit reward R of each chosen response, detached. [P].
        rejected_rewards: The same for the rejected ones. [P].
        metrics: Scalars to log, detached.
        advantage: What each token adds to its response's R, before the scale β; detached, or None if R is no such
            sum. [N].
    """

    loss: Tensor
    chosen_rewards: Tensor
    rejected_rewards: Tensor
    metrics: dict[str, Tensor] = field(default_factory=dict)
    advantage: Tensor | None = None


class Objective(nn.Module):
    """A loss over token statistics. What it does not declare is neither loaded nor computed.

    A constructor declares by its parameters what it may be given. Those named in `from_host` come from the host's
    flags; all others are options of the YAML, checked against their annotations. An objective has no parameters to
    train: what is learned belongs into a mask. Its buffers are saved and resumed.

    Attributes:
        needs_reference: Whether log π_ref is read.
        expectation: Distribution that e_t is averaged under, `reference` or `policy`; None if e_t is not read.
        needs_collision: Whether log Σ_v π(v)² is read.
        chooses_mask: Whether masks are read that the YAML chooses.
        reads_kl_mask: Whether m_d is read beside m_u; if not, the YAML chooses one mask and not two.
        mask: Registered mask that is read without asking the YAML; None for no mask, or one that the YAML chooses.
        from_host: Options that the host's own flags give, where the constructor has them.
        regularises: By role, `reward` or `kl`, the option that weighs a norm of that mask: without effect where the
            mask learns nothing, and the first to lower where it dies.
    """

    needs_reference: bool = True
    expectation: Expectation | None = None
    needs_collision: bool = False
    chooses_mask: bool = False
    reads_kl_mask: bool = True
    mask: str | None = None
    from_host: tuple[str, ...] = ("beta", "label_smoothing")
    regularises: Mapping[str, str] = MappingProxyType({})

    def __init__(self, label_smoothing: float = 0.0) -> None:
        super().__init__()
        self.label_smoothing = label_smoothing

    @classmethod
    def refuse_idle(cls, given: Mapping[str, Any]) -> None:
        """Refuse an option that has no effect beside the others.

        Args:
            given: The options that the YAML sets.

        Raises:
            SparsePOError: names the option first; the section's name is put before it.
        """

    def forward(self, stats: TokenStatistics, masks: MaskPair | None, tokens: ResponseTokens) -> ObjectiveOutput:
        """Loss of a batch.

        Args:
            stats: Statistics of the N response tokens, [N] each.
            masks: Their weights, [N] each; None where no mask is declared.
            tokens: Their index.
        """
        raise NotImplementedError

    def output(
        self,
        rewards: Tensor,
        margin: float = 0.0,
        advantage: Tensor | None = None,
        pair_weights: Tensor | None = None,
    ) -> ObjectiveOutput:
        """Bradley-Terry loss of R [2P], the chosen ones lowered by `margin`, each pair's times its weight [P]."""
        chosen_rewards, rejected_rewards = rewards.detach().chunk(2)
        losses = preference_loss(rewards, self.label_smoothing, margin)
        return ObjectiveOutput(
            loss=(losses if pair_weights is None else losses * pair_weights).mean(),
            chosen_rewards=chosen_rewards,
            rejected_rewards=rejected_rewards,
            advantage=None if advantage is None else advantage.detach(),
        )


def preference_loss(rewards: Tensor, label_smoothing: float = 0.0, margin: float = 0.0) -> Tensor:
    """Bradley-Terry loss of each pair (paper Eq. 6), with conservative DPO's label smoothing (Mitchell 2023, Eq. 3).

    Args:
        rewards: R of the S sequences, chosen first. [2P].
        label_smoothing: Probability s that a label is flipped.
        margin: γ, by which the chosen reward must exceed the rejected one.

    Returns:
        −(1 − s)·log σ(d) − s·log σ(−d), d = R_chosen − R_rejected − γ. [P].
    """
    chosen, rejected = rewards.chunk(2)
    difference = chosen - rejected - margin
    loss = -logsigmoid(difference) * (1 - label_smoothing)
    return loss - logsigmoid(-difference) * label_smoothing if label_smoothing else loss
