"""The mask-head model wrapper: policy and masks as one module, and so as one engine of the host's."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, TypedDict

import torch
from torch import Tensor, nn

from .config import LossConfig
from .decoder import disable_dropout, replaced_forward, vocabulary_head
from .divergence import (
    CollisionStatistics,
    TokenStatistics,
    computed_statistics,
    name_statistics,
    token_statistics,
)
from .errors import SparsePOError
from .masks import Masks, build_masks, refuse_idle_keys
from .reference import FeatureRequest, ReferenceFeatures, Runner, collect_features
from .tokens import ResponseTokens

REFERENCE_ADAPTER = "ref"  # a frozen copy of the policy's adapter, where that had been trained before this run


class PolicyOutput(TypedDict):
    """What a `MaskedPolicy` answers for N response tokens; a dict, in which DeepSpeed finds the tensors of an output.

    Attributes:
        statistics: The token statistics that the loss reads, which `MaskedPolicy.named` tells apart.
            float32 [1 to 4, N].
        masks: m_u and m_d. float32 [2, N], or None.
        aux_loss: Balancing loss of a mixture of experts, else None.
    """

    statistics: Tensor
    masks: Tensor | None
    aux_loss: Tensor | None


class MaskedPolicy(nn.Module):
    """A policy that answers with token statistics and masks in place of logits.

    Args:
        policy: A Hugging Face causal language model, or a PEFT model around one.
        reference: The frozen reference model; None when it is the policy with its adapter off (or with the one called
            `ref`), or is not read.
        config: The loss.
        seed: The host's, for masks that draw and for their start.
        masks: Trained masks; by default new ones are made from the config.

    Raises:
        SparsePOError: a key has no effect, the two models cannot be compared, or a reference is read and neither given
            nor to be had by switching off an adapter.
    """

    def __init__(
        self,
        policy: nn.Module,
        reference: nn.Module | None,
        config: LossConfig,
        seed: int = 42,
        masks: Masks | None = None,
    ) -> None:
        super().__init__()
        self.loss_config = config
        self.objective = config.build_objective()
        self.needs_reference, self.expectation = self.objective.needs_reference, self.objective.expectation
        self.needs_collision = self.objective.needs_collision
        if reference is not None and self.needs_reference:
            _check_vocabularies(policy, reference)
        self.shares_reference = reference is None and config.uses_reference
        if self.shares_reference and not hasattr(policy, "disable_adapter"):
            raise SparsePOError(
                "without a reference model the policy needs a LoRA adapter that can be switched off",
                about="shared reference",
            )
        read = (reference or policy).config.get_text_config()
        if masks is None:
            masks = build_masks(config, read.hidden_size, read.num_hidden_layers, seed)
            refuse_idle_keys(config, masks)
        if config.disable_dropout:
            disable_dropout(policy)
        self.policy = policy
        self.masks = masks
        self.request = masks.request if masks else FeatureRequest()
        if masks and masks.follow_policy and self.needs_reference:  # the statistics have them, see `_after`
            self.request = self.request._replace(needs=self.request.needs - {"logps"})
        # In a tuple, so that the reference's parameters do not become this module's.
        self._reference_head = None if reference is None else (vocabulary_head(reference),)

    @property
    def config(self) -> Any:
        """The policy's Hugging Face config, which hosts and DeepSpeed look for on a model."""
        return self.policy.config

    def forward(
        self,
        *args: Any,
        tokens: ResponseTokens,
        features: ReferenceFeatures | None = None,
        full_statistics: bool = True,
        **inputs: Any,
    ) -> PolicyOutput:
        """One forward of masks and policy, and of the reference too when the policy's own weights serve as one.

        Args:
            *args: Inputs of the policy, as the host prepares them.
            tokens: Index of the batch's response tokens.
            features: What was read of the frozen models; rows of a shared reference are added here.
            full_statistics: False leaves tokens whose masks are both exactly zero, and get no gradient there, out of
                the vocabulary projections; their statistics are 0.
            **inputs: Further inputs of the policy.
        """
        features = features or ReferenceFeatures()
        if self.shares_reference:
            oracle_logps = features.oracle_logps
            features = self._shared_features(args, inputs, tokens)
            features.oracle_logps = oracle_logps
        follows = self.masks is not None and self.masks.follow_policy
        masks = None if follows else self._weigh(features, tokens)
        skips = not full_statistics and masks is not None and not self.masks.need_all_tokens
        kept = masks.any(0).nonzero().squeeze(-1) if skips else slice(None)
        head, seen = vocabulary_head(self.policy), None

        def serve(hidden: Tensor) -> Tensor:
            nonlocal seen
            rows = hidden.reshape(-1, hidden.shape[-1])[tokens.rows[kept]]
            seen = rows.detach() if "policy_hidden" in self.request.needs else None
            reference_rows = features.last_hidden[kept] if self.needs_reference else None
            statistics = self._statistics(head, rows, reference_rows, tokens.labels[kept])
            if not skips:
                return statistics
            return statistics.new_zeros(len(statistics), len(tokens)).index_copy(1, kept, statistics)

        with replaced_forward(head, serve):
            output = self.run_policy(*args, **inputs)
        if follows:
            masks = self._weigh(self._after(features, output.logits.detach(), seen), tokens)
        return PolicyOutput(statistics=output.logits, masks=masks, aux_loss=getattr(output, "aux_loss", None))

    def named(self, statistics: Tensor) -> TokenStatistics | CollisionStatistics:
        """`PolicyOutput.statistics` by name."""
        return name_statistics(statistics, self.computed)

    @property
    def computed(self) -> tuple[str, ...]:
        """Names of the token statistics that are computed, in their order."""
        return computed_statistics(self.needs_reference, self.expectation, self.needs_collision)

    def run_policy(self, *args: Any, **inputs: Any) -> Any:
        """The policy's forward; a host whose engine is the policy itself runs it without entering the engine again."""
        return self.policy(*args, **inputs)

    def _shared_features(self, args: tuple, inputs: dict[str, Any], tokens: ResponseTokens) -> ReferenceFeatures:
        own = Runner(self.policy, lambda: self.run_policy(*args, **inputs))
        with _as_reference(self.policy), evaluating(self.policy):
            return collect_features(own, tokens, self.request, self.loss_config.offload_features)

    def _weigh(self, features: ReferenceFeatures, tokens: ResponseTokens) -> Tensor | None:
        return torch.stack(self.masks(features, tokens)) if self.masks else None

    def _after(self, features: ReferenceFeatures, statistics: Tensor, hidden: Tensor | None) -> ReferenceFeatures:
        """The features with those of the policy, and with the reference's log-probabilities where these came too."""
        # From the same chunks: where the two models are equal, so are these numbers, to the last bit.
        logps = statistics[1] if self.needs_reference else features.logps
        return replace(features, policy_logps=statistics[0], policy_hidden=hidden, logps=logps)

    def _statistics(self, head: nn.Linear, rows: Tensor, reference_rows: Tensor | None, labels: Tensor) -> Tensor:
        weight, bias = None, None
        if self.needs_reference:
            reference = raw_parameters(self._reference_head[0] if self._reference_head else head)
            weight, bias = (None if p is None else p.detach() for p in (reference["weight"], reference["bias"]))
        statistics = token_statistics(
            rows,
            head.weight,
            reference_rows,
            weight,
            labels,
            policy_bias=head.bias,
            reference_bias=bias,
            expectation=self.expectation,
            collision=self.needs_collision,
            chunk_size=self.loss_config.chunk_size,
            logits_budget=self.loss_config.logits_budget,
        )
        return torch.stack([values for values in statistics if values is not None])

    def reference_parameters(self) -> list[nn.Parameter]:
        """Weight and bias of a separate reference's head, which ZeRO-3 must gather inside the policy's head."""
        read = self._reference_head and self.needs_reference
        own = raw_parameters(self._reference_head[0]).values() if read else ()
        return [parameter for parameter in own if parameter is not None]

    def mask_group(self) -> dict[str, Any] | None:
        """The masks' parameters as an optimizer's group, with rate and weight decay of their own; None without any."""
        parameters = [p for p in self.masks.parameters() if p.requires_grad] if self.masks else []
        if not parameters:
            return None
        rate = self.loss_config.mask_lr
        own = {"params": parameters, "weight_decay": self.loss_config.mask_weight_decay}
        return own if rate == "policy" else {**own, "lr": rate}


def raw_parameters(module: nn.Module) -> dict[str, nn.Parameter | None]:
    """Own parameters, read past the ZeRO-3 mapping that would claim them for the module that is running."""
    return {name: dict.__getitem__(module._parameters, name) for name in module._parameters}


def _check_vocabularies(policy: nn.Module, reference: nn.Module) -> None:
    own, other = (model.config.get_text_config().vocab_size for model in (policy, reference))
    if own != other:
        raise SparsePOError(
            f"the reference's vocabulary has {other} entries, the policy's {own}: they must be the same",
            about="reference",
        )


@contextmanager
def _as_reference(policy: nn.Module) -> Iterator[None]:
    """The policy's adapter off, or in its place the frozen copy of an earlier one that is called `ref`."""
    if REFERENCE_ADAPTER not in getattr(policy, "peft_config", {}):
        with policy.disable_adapter():
            yield
        return
    active = policy.active_adapter
    policy.set_adapter(REFERENCE_ADAPTER)
    try:
        yield
    finally:
        policy.set_adapter(active)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Within the context a model is in evaluation mode: a reference with active dropout is not frozen."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
