"""What every objective is, what it returns, and the preference loss that they share."""

from dataclasses import dataclass, field

from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from ..divergence import Expectation, TokenStatistics
from ..tokens import MaskPair, ResponseTokens


@dataclass
class ObjectiveOutput:
    """Loss and rewards of a batch of P pairs.

    Attributes:
        loss: Mean over pairs, scalar, with gradient.
        chosen_rewards: Implicit reward R of each chosen response, detached. [P].
        rejected_rewards: The same for the rejected ones. [P].
        metrics: Scalars to log, detached.
    """

    loss: Tensor
    chosen_rewards: Tensor
    rejected_rewards: Tensor
    metrics: dict[str, Tensor] = field(default_factory=dict)


class Objective(nn.Module):
    """A loss over token statistics. What it does not declare is neither loaded nor computed.

    Constructor parameters named in `supplied` come from the host's own flags; all others are options of the YAML
    section that bears the objective's name.

    Attributes:
        reference: Whether log π_ref is read.
        expectation: Distribution that e_t is averaged under; None if e_t is not read.
        mask: Registered mask that gives m_u; ANY_MASK lets the YAML choose both; None if masks are not read.
        supplied: Options that the host's flags give.
    """

    ANY_MASK = "*"

    reference: bool = True
    expectation: Expectation | None = None
    mask: str | None = None
    supplied: tuple[str, ...] = ("beta", "label_smoothing")

    def __init__(self, label_smoothing: float = 0.0) -> None:
        super().__init__()
        self.label_smoothing = label_smoothing

    def forward(self, stats: TokenStatistics, masks: MaskPair | None, tokens: ResponseTokens) -> ObjectiveOutput:
        """Loss of a batch.

        Args:
            stats: Statistics of the N response tokens, [N] each.
            masks: Their weights, [N] each.
            tokens: Their index.
        """
        raise NotImplementedError

    def output(self, rewards: Tensor, margin: float = 0.0) -> ObjectiveOutput:
        """Bradley-Terry loss of R [2P], the chosen ones lowered by `margin`."""
        chosen_rewards, rejected_rewards = rewards.detach().chunk(2)
        return ObjectiveOutput(
            loss=preference_loss(rewards, self.label_smoothing, margin).mean(),
            chosen_rewards=chosen_rewards,
            rejected_rewards=rejected_rewards,
        )


def preference_loss(rewards: Tensor, label_smoothing: float = 0.0, margin: float = 0.0) -> Tensor:
    """Bradley-Terry loss of each pair (paper Eq. 6), with conservative DPO's label smoothing.

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
