"""The road from a batch of pairs to a loss, the same for every host."""

import logging
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .divergence import TokenStatistics
from .errors import SparsePOError
from .masks import learns
from .metrics import token_metrics
from .objectives import ObjectiveOutput
from .policy import MaskedPolicy, PolicyOutput
from .reference import Runner, read_frozen
from .tokens import MaskPair, ResponseTokens

logger = logging.getLogger("sparsepo_plugin")


@dataclass
class StepOutput:
    """What a host needs of one step over P pairs with N response tokens.

    Attributes:
        loss: Objective of the batch, scalar, with gradient; what the host adds to it is the host's business.
        chosen_rewards: [P], detached.
        rejected_rewards: [P], detached.
        nll_loss: −mean over pairs of the chosen response's mean log-probability, with gradient; None unless asked for.
        aux_loss: Balancing loss of a mixture of experts, with gradient, or None.
        metrics: Numbers to log.
        statistics: Statistics of the tokens, detached; 0 for tokens that were left out.
        masks: The weights of the tokens, detached, or None for a loss without any.
        advantage: What each token adds to its response's reward, before the scale β; detached, or None if the
            objective does not say. [N].
    """

    loss: Tensor
    chosen_rewards: Tensor
    rejected_rewards: Tensor
    nll_loss: Tensor | None
    aux_loss: Tensor | None
    metrics: dict[str, float]
    statistics: TokenStatistics
    masks: MaskPair | None
    advantage: Tensor | None


class PreferenceStep:
    """Reference, masks, policy, divergence and objective in order; hosts call this and nothing deeper.

    Args:
        policy: The policy with its masks, as it was before the host put an engine around it.
        logging_steps: The host's; statistics of all tokens are computed when it logs, unless the config says when.
        nll_loss: Whether the host adds the chosen responses' negative log-likelihood to the loss.
    """

    def __init__(self, policy: MaskedPolicy, logging_steps: int = 1, nll_loss: bool = False) -> None:
        self.policy = policy
        self.config, self.objective, self.masks = policy.loss_config, policy.objective, policy.masks
        self.metrics_every = self.config.metrics_every or logging_steps
        self.nll_loss = nll_loss
        self._dead: set[str] = set()

    def __call__(
        self,
        policy: Callable[..., PolicyOutput],
        tokens: ResponseTokens,
        reference: Runner | None = None,
        oracle: Runner | None = None,
        number: int = 0,
    ) -> StepOutput:
        """Loss and metrics of one batch.

        Args:
            policy: Runs the `MaskedPolicy` on the batch through the host's wrappers, given keywords of its forward.
            tokens: Index of the batch's response tokens.
            reference: The reference on the same batch; None when the policy's own weights serve, or none is read.
            oracle: The oracle on the same batch, for masks that need its log-probabilities.
            number: The host's optimizer step, from 1; 0 where there is none.

        Raises:
            SparsePOError: the loss is not finite.
        """
        full = self._needs_full_statistics(number)
        if self.masks and number and torch.is_grad_enabled():
            self.masks.at_step(number)
        features = read_frozen(tokens, self.policy.request, reference, oracle, self.config.offload_features)
        output = policy(tokens=tokens, features=features, full_statistics=full)
        stats = TokenStatistics(*output["statistics"])
        masks = None if output["masks"] is None else MaskPair(*output["masks"])
        # Not by a call: ZeRO-3 hooks every submodule of the policy, and expects them to run inside its forward.
        result = self.objective.forward(stats, masks, tokens)
        _refuse_non_finite(result, number)
        metrics = self._metrics(stats, masks, tokens, result, full)
        if torch.is_grad_enabled():
            self._warn_of_dead_masks(metrics, number)
        return StepOutput(
            loss=result.loss,
            chosen_rewards=result.chosen_rewards,
            rejected_rewards=result.rejected_rewards,
            nll_loss=-tokens.mean(stats.policy_logps)[: tokens.num_pairs].mean() if self.nll_loss else None,
            aux_loss=output["aux_loss"],
            metrics=metrics,
            statistics=TokenStatistics(*output["statistics"].detach()),
            masks=None if masks is None else MaskPair(*output["masks"].detach()),
            advantage=result.advantage,
        )

    def _needs_full_statistics(self, number: int) -> bool:
        """Whether this step's numbers need tokens that the loss could do without."""
        return self.nll_loss or not torch.is_grad_enabled() or number % self.metrics_every == 0

    def _metrics(
        self,
        stats: TokenStatistics,
        masks: MaskPair | None,
        tokens: ResponseTokens,
        result: ObjectiveOutput,
        full: bool,
    ) -> dict[str, float]:
        """Numbers to log, in one copy from the device."""
        found = token_metrics(
            stats, masks, tokens, self.policy.expectation, full_statistics=full, independent=self.config.kl is not None
        )
        found |= result.metrics
        values = [torch.as_tensor(value, dtype=torch.float32, device=result.loss.device) for value in found.values()]
        return dict(zip(found, torch.stack(values).tolist(), strict=True)) if found else {}

    def _warn_of_dead_masks(self, metrics: dict[str, float], number: int) -> None:
        """Say so when a mask that learns turns zero on a whole batch; it may never come back."""
        for role, mask in self.masks.named_children() if self.masks else ():
            alive = min(metrics[f"sparsity_{role}_chosen"], metrics[f"sparsity_{role}_rejected"]) < 100.0
            if alive or not learns(mask):
                self._dead.discard(role)
            elif role not in self._dead:
                self._dead.add(role)
                logger.warning("step %d: %s", number, self._advice_on_dead_mask(role))

    def _advice_on_dead_mask(self, role: str) -> str:
        section = self.config.section
        keys = [key for key in (self.objective.regularises.get(role), "mask_lr") if key]
        advice = f"lower {' or '.join(f'{section}.{key}' for key in keys)}"
        if "min" in self.config.masks[role].options:
            advice += f", or set {section}.min above 0"
        return f"the {role} mask is zero on every response token of the batch; {advice}"


def _refuse_non_finite(result: ObjectiveOutput, number: int) -> None:
    if torch.isfinite(result.loss):
        return
    finite = torch.isfinite(result.chosen_rewards) & torch.isfinite(result.rejected_rewards)
    pairs = (~finite).nonzero().flatten().tolist()
    raise SparsePOError(
        f"loss is {result.loss.item()} at step {number} (pairs {pairs} of the micro-batch): it must be finite; "
        "a lower learning rate, of the policy or of its masks, or clipped gradients may help",
        about="learning rate",
    )
