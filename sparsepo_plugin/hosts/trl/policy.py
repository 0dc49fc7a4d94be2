"""The masked policy as part of the model that TRL trains, so that whatever wraps and shards it finds one model."""

import functools
from types import MethodType
from typing import Any

from torch import Tensor, nn

from ...config import LossConfig
from ...policy import MaskedPolicy

ATTACHED = "sparsepo"  # the policy's submodule that holds masks and objective while it trains


class AttachedPolicy(MaskedPolicy):
    """A `MaskedPolicy` that runs inside its policy's own forward, as TRL's fused head does.

    The trainer's model stays the Hugging Face or PEFT model: a call with `tokens` is answered as `MaskedPolicy` says,
    any other one as before. Masks are a submodule of it, so they are trained, sharded and moved with it, and are left
    out when it is saved.

    Args:
        policy: A Hugging Face causal language model, or a PEFT model around one; it is changed.
        reference: See `MaskedPolicy`.
        config: The loss.
        seed: The host's.
    """

    def __init__(self, policy: nn.Module, reference: nn.Module | None, config: LossConfig, seed: int) -> None:
        super().__init__(policy, reference, config, seed)
        attached = nn.ModuleDict({"objective": self.objective})
        if self.masks:
            attached["masks"] = self.masks
        policy.add_module(ATTACHED, attached.to(policy.get_output_embeddings().weight.device))
        del self.policy
        self.policy = policy  # last among the parts, so that parameters of masks are named as theirs
        self._own_forward = policy.forward

        @functools.wraps(policy.forward)  # `generate` looks at the signature
        def forward(_: nn.Module, *args: Any, **inputs: Any) -> Any:
            return (self.forward if "tokens" in inputs else self._own_forward)(*args, **inputs)

        policy.forward = MethodType(forward, policy)
        self._leave_out_of_files()

    def run_policy(self, *args: Any, **inputs: Any) -> Any:
        """The policy's forward without its hooks, which are at work around this one."""
        return self._own_forward(*args, **inputs)

    def split(self, state: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
        """A state of the trainer's model by part: `policy`, `masks` and `objective`."""
        parts: dict[str, dict[str, Tensor]] = {"policy": {}, "masks": {}, "objective": {}}
        for key, value in state.items():
            part, _, name = key.removeprefix(f"{ATTACHED}.").partition(".")
            if key.startswith(f"{ATTACHED}."):
                parts[part][name] = value
            else:
                parts["policy"][key] = value
        return parts

    def _leave_out_of_files(self) -> None:
        """Of `save_pretrained`, whoever calls it; PEFT picks the adapter's weights anyway."""
        if hasattr(self.policy, "_keys_to_ignore_on_save") and not hasattr(self.policy, "peft_config"):
            own = [f"{ATTACHED}.{key}" for key in getattr(self.policy, ATTACHED).state_dict()]
            self.policy._keys_to_ignore_on_save = [*(self.policy._keys_to_ignore_on_save or ()), *own]
