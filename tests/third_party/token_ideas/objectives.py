"""An objective whose masks the YAML chooses, one with a mask of its own, and one without a reference."""

from sparsepo_plugin import Objective


class Margin(Objective):
    """DPO on weighted tokens, with a margin; it has no KL.

    Args:
        beta: β.
        margin: By how much the chosen reward should be larger.
    """

    chooses_mask = True

    def __init__(self, beta: float = 0.1, margin: float = 0.0):
        super().__init__()
        self.beta, self.margin = beta, margin

    def forward(self, stats, masks, tokens):
        advantage = masks.reward * (stats.policy_logps - stats.reference_logps)
        output = self.output(self.beta * tokens.sum(advantage), margin=self.margin, advantage=advantage)
        output.metrics = {"margin_met": (output.chosen_rewards - output.rejected_rewards > self.margin).float().mean()}
        return output


class Cautious(Objective):
    """DPO that counts the KL of a response's opening against it.

    Args:
        beta: β.
        label_smoothing: Probability that a preference label is flipped.
        caution: Weight of the KL.
    """

    expectation = "reference"
    mask = "opening"

    def __init__(self, beta: float = 0.1, label_smoothing: float = 0.0, caution: float = 1.0):
        super().__init__(label_smoothing)
        self.beta, self.caution = beta, caution

    def forward(self, stats, masks, tokens):
        kl = -stats.expected_log_ratio
        advantage = stats.policy_logps - stats.reference_logps - self.caution * masks.reward * kl
        return self.output(self.beta * tokens.sum(advantage), advantage=advantage)


class Plain(Objective):
    """The policy's own log-probabilities, divided by a power of the length.

    Args:
        power: Of the length that divides them.
    """

    needs_reference = False

    def __init__(self, power: float = 1.0):
        super().__init__()
        self.power = power

    def forward(self, stats, masks, tokens):
        advantage = stats.policy_logps / tokens.count()[tokens.sequence] ** self.power
        return self.output(tokens.sum(advantage), advantage=advantage)
