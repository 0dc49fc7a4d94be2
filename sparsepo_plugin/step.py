"""The road from a batch of pairs to a loss, the same for every host."""

import logging
import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from .divergence import TokenStatistics
from .errors import SparsePOError, met_by_all
from .faults import PATIENCE, GradientWatch, NonFinite, fault_of_loss, stop_or_warn, terms_of_loss
from .layout import Batch, Layout, laid_out
from .masks import learns
from .metrics import token_metrics
from .objectives import ObjectiveOutput
from .policy import MaskedPolicy, PolicyOutput
from .reference import ReferenceFeatures, Runner, read_frozen
from .sharing import Sharing
from .tokens import MaskPair, ResponseTokens

logger = logging.getLogger("sparsepo_plugin")


@dataclass
class StepOutput:
    """What a host needs of one step over P pairs with N response tokens.

    Attributes:
        loss: Objective of the batch, scalar, with gradient; what the host adds to it is the host's business. NaN, and
            with it every gradient, where anything in it is not finite.
        chosen_rewards: [P], detached.
        rejected_rewards: [P], detached.
        nll_loss: −mean over pairs of the chosen response's mean log-probability, with gradient; None unless asked for.
        aux_loss: Balancing loss of a mixture of experts, with gradient, or None.
        metrics: Numbers to log.
        statistics: Statistics of the tokens, detached; 0 for tokens that were left out.
        full_statistics: Whether none was.
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
    full_statistics: bool
    masks: MaskPair | None
    advantage: Tensor | None


class PreferenceStep:
    """Reference, masks, policy, divergence and objective in order; hosts call this and nothing deeper.

    Args:
        policy: The policy with its masks, as it was before the host put an engine around it.
        logging_steps: The host's. Where tokens may be left out, statistics of all are computed every `metrics_every`
            steps, or at the next one that the host logs, so that the step of a logged number is the log's.
        nll_loss: Whether the host adds the chosen responses' negative log-likelihood to the loss.
        on_fault: Told of a loss that is not finite. By default it is raised, or warned of under `on_nonfinite: skip`,
            where the host must leave out updates whose gradient is not finite.
    """

    def __init__(
        self,
        policy: MaskedPolicy,
        logging_steps: int = 1,
        nll_loss: bool = False,
        on_fault: Callable[[NonFinite], None] | None = None,
    ) -> None:
        self.policy = policy
        self.config, self.objective, self.masks = policy.loss_config, policy.objective, policy.masks
        self.logging_steps = logging_steps
        self.nll_loss = nll_loss
        self.on_fault = on_fault or partial(stop_or_warn, on_nonfinite=self.config.on_nonfinite)
        self.gradients = GradientWatch(policy)
        self.sharing = Sharing(policy)
        self._last_alive: dict[str, int] = {}
        self._dead: set[str] = set()

    def __call__(
        self,
        policy: Callable[..., PolicyOutput],
        tokens: ResponseTokens,
        reference: Runner | None = None,
        oracle: Runner | None = None,
        number: int = 0,
        batch: Batch | None = None,
    ) -> StepOutput:
        """Loss and metrics of one batch.

        Args:
            policy: Runs the `MaskedPolicy` on the batch through the host's wrappers, given keywords of its forward.
            tokens: Index of the batch's response tokens, in the layout that the host gives its models.
            reference: The reference on the same batch; None when the policy's own weights serve, or none is read.
            oracle: The oracle on the same batch, for masks that need its log-probabilities.
            number: The host's optimizer step, from 1; 0 where there is none.
            batch: The same pairs, for models to run over what a pair begins with once; without it they run over what
                the host gives them.

        Raises:
            SparsePOError: the loss is not finite, or a mask stays dead, where the config says to stop; or the models
                do not allow `share_prefix: true`.
        """
        full = self._needs_full_statistics(number)
        if self.masks and number and torch.is_grad_enabled():
            self.masks.at_step(number)
        road = _Road(self.policy, policy, tokens, reference, oracle, batch)
        layout = self.sharing.choose(batch, road.models, lambda layout: road.run(layout)[0])
        tokens, features, output = road.run(layout, full)
        stats = self.policy.named(output["statistics"])
        masks = None if output["masks"] is None else MaskPair(*output["masks"])
        # Not by a call: ZeRO-3 hooks every submodule of the policy, and expects them to run inside its forward.
        result = self.objective.forward(stats, masks, tokens)
        metrics, finite = self._metrics(stats, masks, tokens, result, full)
        if not finite:
            terms = terms_of_loss(result, stats, masks, tokens, self.policy)
            self.on_fault(fault_of_loss(terms, self.policy, features, reference, number))
            result.loss = result.loss * math.nan  # the gradient of an infinite one may be finite
        if torch.is_grad_enabled():
            self.gradients.keep(number, tokens, output["statistics"], output["masks"])
            metrics |= self._watch_masks(metrics, number, result.loss.device)
        return StepOutput(
            loss=result.loss,
            chosen_rewards=result.chosen_rewards,
            rejected_rewards=result.rejected_rewards,
            nll_loss=-tokens.mean(stats.policy_logps)[: tokens.num_pairs].mean() if self.nll_loss else None,
            aux_loss=output["aux_loss"],
            metrics=metrics,
            statistics=self.policy.named(output["statistics"].detach()),
            full_statistics=full,
            masks=None if masks is None else MaskPair(*output["masks"].detach()),
            advantage=result.advantage,
        )

    def _needs_full_statistics(self, number: int) -> bool:
        """Whether this step's numbers need tokens that the loss could do without."""
        skips = self.masks is not None and not self.masks.need_all_tokens
        if self.nll_loss or not skips or not torch.is_grad_enabled():
            return True
        # The last step of which `metrics_every` wants them is one since the host logged before.
        return number % self.logging_steps == 0 and number % self.config.metrics_every < self.logging_steps

    def _metrics(
        self,
        stats: TokenStatistics,
        masks: MaskPair | None,
        tokens: ResponseTokens,
        result: ObjectiveOutput,
        full: bool,
    ) -> tuple[dict[str, float], bool]:
        """Numbers to log, and whether loss, rewards and masks are finite, in one copy from the device."""
        found = token_metrics(
            stats, masks, tokens, self.policy.expectation, full_statistics=full, independent=self.config.kl is not None
        )
        found |= result.metrics
        # A sum is finite only if its terms are. An infinite weight or reward may leave the loss finite.
        sums = [result.loss.detach(), result.chosen_rewards.sum(), result.rejected_rewards.sum()]
        sums += [] if masks is None else [mask.detach().sum() for mask in masks]
        values = [
            torch.as_tensor(value, dtype=torch.float32, device=result.loss.device)
            for value in (*sums, *found.values())
        ]
        numbers = torch.stack(values).tolist()
        finite = all(map(math.isfinite, numbers[: len(sums)]))
        return dict(zip(found, numbers[len(sums) :], strict=True)), finite

    def _watch_masks(self, metrics: dict[str, float], number: int, device: torch.device) -> dict[str, float]:
        """For how many steps in a row each mask that learns was zero on all ranks' tokens; it may never come back.

        Raises:
            SparsePOError: for `PATIENCE`, with `on_dead_mask: stop`, on all ranks.
        """
        dead_steps = {}
        roles = [role for role, mask in self.masks.named_children() if learns(mask)] if self.masks else []
        for role, sparsity in zip(roles, _least_sparsity(metrics, roles, device), strict=True):
            self._last_alive.setdefault(role, number - 1)
            if sparsity < 100.0:
                self._last_alive[role] = number
                self._dead.discard(role)
            steps = number - self._last_alive[role]
            dead_steps[f"dead_steps_{role}"] = float(steps)
            if steps >= PATIENCE and self.config.on_dead_mask == "stop":
                with met_by_all():
                    advice = self._advice_on_dead_mask(role)
                    raise SparsePOError(f"step {number}, the last of {steps} in a row: {advice}")
            if steps and role not in self._dead:
                self._dead.add(role)
                logger.warning("step %d: %s", number, self._advice_on_dead_mask(role))
        return dead_steps

    def _advice_on_dead_mask(self, role: str) -> str:
        section = self.config.section
        keys = [key for key in (self.objective.regularises.get(role), "mask_lr") if key]
        advice = f"lower {' or '.join(f'{section}.{key}' for key in keys)}"
        if "min" in self.config.masks[role].options:
            advice += f", or set {section}.min above 0"
        return f"the {role} mask is zero on every response token of the batch; {advice}"


class _Road(NamedTuple):
    """From a batch to the statistics of its tokens in any layout; the parts are arguments of `PreferenceStep`."""

    masked: MaskedPolicy
    policy: Callable[..., PolicyOutput]
    tokens: ResponseTokens
    reference: Runner | None
    oracle: Runner | None
    batch: Batch | None

    @property
    def models(self) -> list[nn.Module]:
        """The Hugging Face models, the policy last."""
        return [*(runner.model for runner in (self.reference, self.oracle) if runner), self.masked.policy]

    def run(self, layout: Layout | None, full: bool = True) -> tuple[ResponseTokens, ReferenceFeatures, PolicyOutput]:
        """One forward of all models; the tokens come back as they lie in the layout, None being the host's own."""
        request, offload = self.masked.request, self.masked.loss_config.offload_features
        tokens = self.tokens if layout is None else layout.index(self.tokens, self.batch)
        with nullcontext() if layout is None else laid_out(layout, self.models):
            features = read_frozen(tokens, request, self.reference, self.oracle, offload)
            return tokens, features, self.policy(tokens=tokens, features=features, full_statistics=full)


def _least_sparsity(metrics: dict[str, float], roles: list[str], device: torch.device) -> list[float]:
    """Of each role's mask on chosen or rejected responses, on any rank: the tokens of one alone are few."""
    least = [min(metrics[f"sparsity_{role}_{side}"] for side in ("chosen", "rejected")) for role in roles]
    if not roles or not dist.is_initialized() or dist.get_world_size() == 1:
        return least
    everywhere = torch.tensor(least, device=device)
    dist.all_reduce(everywhere, op=dist.ReduceOp.MIN)
    return everywhere.tolist()
