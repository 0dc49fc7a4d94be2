"""The mask-head model wrapper: policy and masks as one module, and so as one DeepSpeed engine."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .checkpoint import save_mask
from .config import SparsePOConfig
from .divergence import token_statistics
from .errors import SparsePOError
from .head import ResponseHead
from .masks import MaskHead
from .objectives import Objective, SparsePO
from .reference import ReferenceFeatures, collect_features
from .tokens import ResponseTokens


class MaskedPolicy(nn.Module):
    """A policy that answers with token statistics and masks in place of logits.

    Args:
        policy: A Hugging Face causal language model, or a PEFT model around one.
        mask_head: The masks, or None for a loss without any.
        config: The loss's section.
        reference: The frozen reference model, or None when it is the policy with its LoRA adapter off.
        objective: What of the reference the loss reads; SparsePO by default.

    Raises:
        SparsePOError: no reference is given and `policy` has no adapter to switch off.
    """

    def __init__(
        self,
        policy: nn.Module,
        mask_head: MaskHead | None,
        config: SparsePOConfig,
        reference: nn.Module | None = None,
        objective: Objective | None = None,
    ) -> None:
        super().__init__()
        objective = objective or SparsePO(expectation=config.expectation)
        self.reads_reference, self.expectation = objective.reference, objective.expectation
        self.needs = mask_head.needs if mask_head else frozenset()
        self.reads = mask_head.reads if mask_head else {}
        self.shares_reference = reference is None and (self.reads_reference or bool(self.needs))
        if self.shares_reference and not hasattr(policy, "disable_adapter"):
            raise SparsePOError(
                "ref.share: true needs a LoRA policy (ds.lora.rank), whose adapter can be switched off"
            )
        self.policy = policy
        self.mask_head = mask_head
        self.section = config
        # In a tuple, so that the reference's parameters do not become this module's.
        self._reference_head = None if reference is None else (ResponseHead.of(reference),)
        self._reference_config = (reference or policy).config

    @property
    def config(self) -> Any:
        """The policy's Hugging Face config, which hosts and DeepSpeed look for on the model."""
        return self.policy.config

    def forward(
        self,
        *args: Any,
        tokens: ResponseTokens,
        features: ReferenceFeatures | None = None,
        oracle_logps: Tensor | None = None,
        every_row: bool = True,
        **inputs: Any,
    ) -> dict[str, Tensor | None]:
        """One forward of masks and policy, and of the reference too when the policy's own weights serve as one.

        Args:
            *args: Inputs of the policy, as the host prepares them.
            tokens: Index of the batch's response tokens.
            features: Reference rows; None when the reference is the policy without its adapter, or is not read.
            oracle_logps: log π_oracle(y_t), for masks that need `token_rewards`. [N].
            every_row: False leaves tokens whose masks are both exactly zero, and get no gradient there, out of the
                vocabulary projections; their statistics are 0.
            **inputs: Further inputs of the policy.

        Returns:
            `logits`: the token statistics that the loss reads, float32 [1 to 3, N]. `masks`: m_u and m_d, [2, N], or
            None. `aux_loss`: balancing loss of a mixture of experts, else None.
        """
        if features is None:
            features = self._shared_features(args, inputs, tokens) if self.shares_reference else ReferenceFeatures()
        if oracle_logps is not None:
            features.token_rewards = oracle_logps - features.logps
        masks = torch.stack(self.mask_head(features, tokens)) if self.mask_head else None

        skips = not every_row and self.mask_head and not self.mask_head.zeros_have_gradient
        kept = masks.any(0).nonzero().squeeze(-1) if skips else slice(None)

        def serve(head: ResponseHead, hidden: Tensor) -> Tensor:
            rows = hidden.reshape(-1, hidden.shape[-1])[tokens.rows[kept]]
            reference_rows = features.last_hidden[kept] if self.reads_reference else None
            statistics = self._statistics(head, rows, reference_rows, tokens.labels[kept])
            if not skips:
                return statistics
            return statistics.new_zeros(len(statistics), len(tokens)).index_copy(1, kept, statistics)

        with ResponseHead.of(self.policy).serving(serve):
            output = self.policy(*args, **inputs)
        return {"logits": output.logits, "masks": masks, "aux_loss": getattr(output, "aux_loss", None)}

    def _shared_features(self, args: tuple, inputs: dict[str, Any], tokens: ResponseTokens) -> ReferenceFeatures:
        with self.policy.disable_adapter(), _evaluating(self.policy):
            return collect_features(
                self.policy,
                lambda: self.policy(*args, **inputs),
                tokens,
                offload=self.section.offload_features,
                **self.reads,
            )

    def _statistics(self, head: ResponseHead, rows: Tensor, reference_rows: Tensor | None, labels: Tensor) -> Tensor:
        weight, bias = None, None
        if self.reads_reference:
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
            chunk_size=self.section.chunk_size,
        )
        return torch.stack([values for values in statistics if values is not None])

    def reference_parameters(self) -> list[nn.Parameter]:
        """Weight and bias of a separate reference's head, which ZeRO-3 must gather inside the policy's head."""
        read = self._reference_head and self.reads_reference
        own = raw_parameters(self._reference_head[0]).values() if read else ()
        return [parameter for parameter in own if parameter is not None]

    def optimizer_groups(self, groups: list[Any]) -> list[Any]:
        """The host's parameter groups with the masks moved to one of their own, the last, so that `lr` logs stay.

        Args:
            groups: Parameter-group dicts. A flat list of parameters (DeepSpeed sorts Muon's itself) comes back as is.
        """
        mask_parameters = [p for p in self.mask_head.parameters() if p.requires_grad] if self.mask_head else []
        if not mask_parameters or not isinstance(groups[0], dict):
            return groups
        masks = {id(p) for p in mask_parameters}
        groups = [{**group, "params": [p for p in group["params"] if id(p) not in masks]} for group in groups]
        own = {"params": mask_parameters, "weight_decay": self.section.mask_weight_decay}
        if self.section.mask_lr != "policy":
            own["lr"] = self.section.mask_lr
        return [*groups, own]

    def export(self, state_dict: dict[str, Tensor], output_dir: str | Path) -> tuple[nn.Module, dict[str, Tensor]]:
        """Write the mask head beside the model that the host is about to save.

        Args:
            state_dict: Full state of this module, gathered by the host.
            output_dir: Folder of the Hugging Face model.

        Returns:
            The policy alone and its state, which loads without this plugin.
        """
        parts: dict[str, dict[str, Tensor]] = {"policy": {}, "mask_head": {}}
        for key, value in state_dict.items():
            part, _, name = key.partition(".")
            parts[part][name] = value
        if self.mask_head:
            save_mask(output_dir, self.section, parts["mask_head"], self._reference_config)
        return self.policy, parts["policy"]


def raw_parameters(module: nn.Module) -> dict[str, nn.Parameter | None]:
    """Own parameters, read past the ZeRO-3 mapping that would claim them for the module that is running."""
    return {name: dict.__getitem__(module._parameters, name) for name in module._parameters}


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Dropout off: a reference with active dropout is not frozen."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
