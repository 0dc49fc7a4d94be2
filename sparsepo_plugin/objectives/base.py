"""What every objective returns, and the preference loss that they share."""

from dataclasses import dataclass, field

from torch import Tensor
from torch.nn.functional import logsigmoid


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


def preference_loss(rewards: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Bradley-Terry loss of each pair (paper Eq. 6), with conservative DPO's label smoothing.

    Args:
        rewards: R of the S sequences, chosen first. [2P].
        label_smoothing: Probability that a label is flipped.

    Returns:
        −(1 − s)·log σ(R_chosen − R_rejected) − s·log σ(R_rejected − R_chosen). [P].
    """
    chosen, rejected = rewards.chunk(2)
    margin = chosen - rejected
    loss = -logsigmoid(margin) * (1 - label_smoothing)
    return loss - logsigmoid(-margin) * label_smoothing if label_smoothing else loss
