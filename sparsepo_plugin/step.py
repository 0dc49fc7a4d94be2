"""The road from a batch of pairs to a loss, the same for every host."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .config import SparsePOConfig
from .divergence import TokenStatistics
from .errors import SparsePOError
from .masks import MaskHead, build_masks
from .metrics import token_metrics
from .objectives import ObjectiveOutput
from .policy import MaskedPolicy
from .reference import collect_features
from .registry import MASKS
from .tokens import MaskPair, ResponseTokens

logger = logging.getLogger("sparsepo_plugin")


@dataclass
class StepOutput:
    """What a host needs of one step over P pairs.

    Attributes:
        loss: Objective of the batch, scalar, with gradient; what the host adds to it is the host's business.
        chosen_rewards: [P], detached.
        rejected_rewards: [P], detached.
        nll_loss: −mean over pairs of the chosen response's mean log-probability, with gradient.
        aux_loss: Balancing loss of a mixture of experts, with gradient, or None.
        metrics: Numbers to log.
        masks: The weights of the response tokens, detached, or None for a loss without any.
    """

    loss: Tensor
    chosen_rewards: Tensor
    rejected_rewards: Tensor
    nll_loss: Tensor
    aux_loss: Tensor | None
    metrics: dict[str, float]
    masks: MaskPair | None


class PreferenceStep:
    """Reference, masks, policy, divergence and objective in order; hosts call this and nothing deeper.

    Args:
        config: The loss's section.
        beta: β of the objective.
        label_smoothing: Probability that a preference label is flipped.

    Raises:
        SparsePOError: an option of the objective has no effect.
    """

    def __init__(self, config: SparsePOConfig, beta: float, label_smoothing: float = 0.0) -> None:
        self.config = config
        self.objective = config.build_objective(beta, label_smoothing)
        self._dead: set[str] = set()

    @property
    def reads_reference(self) -> bool:
        """Whether the objective or its masks read a reference model at all."""
        return self.objective.reference or bool(self.config.mask and MASKS.get(self.config.mask).needs)

    def wrap(
        self, policy: nn.Module, reference: nn.Module | None, seed: int = 42, mask_head: MaskHead | None = None
    ) -> MaskedPolicy:
        """The policy with its masks, ready to become one engine.

        Args:
            policy: Hugging Face model to train, or a PEFT model.
            reference: Frozen model, or None when it is the policy with its LoRA adapter off.
            seed: The host's, for masks that draw.
            mask_head: Trained masks; by default new ones are built from the section.

        Raises:
            SparsePOError: a key has no effect, or the two models cannot be compared.
        """
        self.reference = reference
        source = (reference or policy).config.get_text_config()
        compared = reference is not None and self.objective.reference
        if compared and source.vocab_size != policy.config.get_text_config().vocab_size:
            raise SparsePOError(
                f"ref.model_name_or_path: its vocabulary has {source.vocab_size} entries, "
                f"the policy's {policy.config.get_text_config().vocab_size}; token-level losses need the same one"
            )
        self.masks = mask_head or build_masks(self.config, source.hidden_size, source.num_hidden_layers, seed)
        return MaskedPolicy(policy, self.masks, self.config, reference, self.objective)

    def __call__(
        self,
        policy: Callable[..., dict[str, Any]],
        reference: Callable[[], Any] | None,
        tokens: ResponseTokens,
        step: int = 0,
        oracle: tuple[nn.Module, Callable[[], Any]] | None = None,
        every_row: bool = True,
    ) -> StepOutput:
        """Loss and metrics of one batch.

        Args:
            policy: Runs the `MaskedPolicy` on the batch through the host's wrappers, given `tokens` and `features`.
            reference: Runs the reference model on the same batch; None when the policy's own weights serve, or when no
                reference is read.
            tokens: Index of the batch's response tokens.
            step: The host's optimizer step, for messages.
            oracle: The oracle's model and what runs it on the batch, for masks that need `token_rewards`.
            every_row: False spares tokens whose masks are both exactly zero the vocabulary projections. Loss, rewards
                and gradients are the same; `nll_loss` and the token KL before masking need every row.

        Raises:
            SparsePOError: the loss is not finite.
        """
        features = None
        if self.reference is not None:
            reads = self.masks.reads if self.masks else {}
            features = collect_features(
                self.reference, reference, tokens, offload=self.config.offload_features, **reads
            )
        inputs = {"tokens": tokens, "features": features, "every_row": every_row}
        if oracle is not None:
            inputs["oracle_logps"] = collect_features(*oracle, tokens, frozenset({"token_rewards"})).logps
        output = policy(**inputs)
        stats = TokenStatistics(*output["logits"])
        pair = None if output["masks"] is None else MaskPair(*output["masks"])
        result = self.objective(stats, pair, tokens)
        _refuse_non_finite(result, step)
        metrics = {**token_metrics(stats, pair, tokens, self.objective.expectation, every_row), **result.metrics}
        if metrics:
            # One copy from the device for all numbers.
            metrics = dict(zip(metrics, torch.stack(list(metrics.values())).tolist(), strict=True))
        self._warn_of_dead_masks(metrics, step)
        return StepOutput(
            loss=result.loss,
            chosen_rewards=result.chosen_rewards,
            rejected_rewards=result.rejected_rewards,
            nll_loss=-tokens.mean(stats.policy_logps)[: tokens.num_pairs].mean(),
            aux_loss=output["aux_loss"],
            metrics=metrics,
            masks=None if pair is None else MaskPair(pair.reward.detach(), pair.kl.detach()),
        )

    def _warn_of_dead_masks(self, metrics: dict[str, float], step: int) -> None:
        """Say so when a mask that learns turns zero on a whole batch; it may never come back."""
        heads = dict(self.masks.named_children()) if self.masks else {}
        for name, head in heads.items():
            alive = min(metrics[f"sparsity_{name}_chosen"], metrics[f"sparsity_{name}_rejected"]) < 100.0
            if alive or not any(True for _ in head.parameters()):
                self._dead.discard(name)
            elif name not in self._dead:
                self._dead.add(name)
                logger.warning(
                    "step %d: the %s mask is zero on every response token of the batch; "
                    "lower sparsepo.l1_%s or sparsepo.mask_lr, or set sparsepo.min above 0",
                    *(step, name, name),
                )


def _refuse_non_finite(result: ObjectiveOutput, step: int) -> None:
    if torch.isfinite(result.loss):
        return
    finite = torch.isfinite(result.chosen_rewards) & torch.isfinite(result.rejected_rewards)
    pairs = (~finite).nonzero().flatten().tolist()
    raise SparsePOError(
        f"loss is {result.loss.item()} at step {step} (pairs {pairs} of the micro-batch): it must be finite; "
        "a lower adam.lr (or sparsepo.mask_lr where masks learn) or max_norm may help. "
        "Nothing was saved after the last checkpoint"
    )
