"""The masked policy with what OpenRLHF's Actor and strategy ask of a model (patch 0008)."""

from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ...checkpoint import RunDescription, save_masks
from ...policy import MaskedPolicy, PolicyOutput


class HostedPolicy(MaskedPolicy):
    """A `MaskedPolicy` inside an Actor; `description` is what is saved of the run beside its model."""

    description: RunDescription

    def forward(self, *args: Any, **inputs: Any) -> dict[str, Tensor | None]:
        """See `MaskedPolicy`; the Actor turns `logits` of what its model answers into float32."""
        output = super().forward(*args, **inputs)
        return {"logits": output["statistics"], "masks": output["masks"], "aux_loss": output["aux_loss"]}

    @staticmethod
    def read(answer: dict[str, Tensor | None]) -> PolicyOutput:
        """The answer that came through the Actor, under its own names again."""
        return PolicyOutput(statistics=answer["logits"], masks=answer["masks"], aux_loss=answer["aux_loss"])

    def optimizer_groups(self, groups: list[Any]) -> list[Any]:
        """The strategy's parameter groups with the masks moved to one of their own, the last, so that `lr` logs stay.

        Args:
            groups: Parameter-group dicts. A flat list of parameters (DeepSpeed sorts Muon's itself) comes back as is.
        """
        own = self.mask_group()
        if own is None or not isinstance(groups[0], dict):
            return groups
        masks = {id(p) for p in own["params"]}
        rest = [{**group, "params": [p for p in group["params"] if id(p) not in masks]} for group in groups]
        return [*rest, own]

    def export(self, state_dict: dict[str, Tensor], output_dir: str | Path) -> tuple[nn.Module, dict[str, Tensor]]:
        """Write the masks and the description beside the model that the strategy is about to save.

        Args:
            state_dict: Full state of this module, gathered by the strategy.
            output_dir: Folder of the Hugging Face model.

        Returns:
            The policy alone and its state, which loads without this plugin.
        """
        parts: dict[str, dict[str, Tensor]] = {"policy": {}, "masks": {}, "objective": {}}
        for key, value in state_dict.items():
            part, _, name = key.partition(".")
            parts[part][name] = value
        save_masks(output_dir, self.description, parts["masks"])
        return self.policy, parts["policy"]
