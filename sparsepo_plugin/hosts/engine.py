"""What any host needs of a DeepSpeed engine around a masked policy."""

from typing import Any

import torch
import torch.distributed as dist
from deepspeed.runtime.utils import has_inf_or_nan
from deepspeed.runtime.zero import register_external_parameter
from deepspeed.utils import safe_get_local_grad
from torch import Tensor, nn

from ..faults import GradientWatch
from ..policy import MaskedPolicy
from .gathers import gather_one_by_one
from .guard import Guard


class EngineGuard(Guard):
    """A guard of a DeepSpeed engine; an update is left out in DeepSpeed's own way, that of fp16.

    The gradients are dropped, and weights, optimizer and scheduler stay as they are.
    """

    def check_gradients(self, engine: Any, watch: GradientWatch) -> None:
        """Look at the gradients of a step before they update anything.

        Args:
            engine: DeepSpeed's.
            watch: What the step kept of its gradients.

        Raises:
            NonFinite: one is not finite, and such steps are not skipped, or too many in a row were; on all ranks.
        """
        if engine.is_gradient_accumulation_boundary():
            finite, number = not _overflows(engine), engine.global_steps + 1
            scales = engine.fp16_enabled() and engine._get_optimizer_loss_scale() > 1
            self.judge(finite, number, watch, scales=scales, gradient=_local_gradient)


def prepare_zero_3(policy: MaskedPolicy, dtype: torch.dtype) -> None:
    """Make a policy with masks one that ZeRO-3 can shard.

    Args:
        policy: Before an engine is around it.
        dtype: Of the models: ZeRO-3 wants one for all parameters and, unlike ZeRO-2, does not see to it itself.
    """
    gather_one_by_one()
    for parameter in policy.masks.parameters() if policy.masks else ():
        parameter.data = parameter.data.to(dtype)
    # The reference's head is gathered together with the policy's, in forward and backward.
    for parameter in policy.reference_parameters():
        register_external_parameter(policy.policy.get_output_embeddings(), parameter)


def _overflows(engine: Any) -> bool:
    """Whether a gradient of any rank is not finite; if so DeepSpeed leaves out the update that follows."""
    optimizer = engine.optimizer
    if hasattr(optimizer, "check_overflow"):  # ZeRO 1 to 3
        optimizer.check_overflow()
        optimizer.check_grad_overflow = optimizer.overflow  # newer ones forget what was found, and look again
        return optimizer.overflow
    gradients = [_local_gradient(parameter) for parameter in engine.module.parameters()]
    found = torch.stack([has_inf_or_nan(own) for own in gradients if own is not None]).any().byte()
    dist.all_reduce(found, op=dist.ReduceOp.MAX)
    overflow = bool(found)
    if isinstance(optimizer, torch.optim.Optimizer):  # that of 16 bits looks itself
        if not hasattr(optimizer, "overflow"):
            optimizer.register_step_pre_hook(_drop_gradients)
        optimizer.overflow = overflow
    return overflow


def _drop_gradients(optimizer: torch.optim.Optimizer, *_: Any) -> None:
    """Of an update that is left out: PyTorch's optimizers pass over what has no gradient."""
    if optimizer.overflow:
        optimizer.zero_grad()


def _local_gradient(parameter: nn.Parameter) -> Tensor | None:
    """This process's share of the gradient that the next update will use."""
    if hasattr(parameter, "ds_id"):
        return safe_get_local_grad(parameter)
    if mapping := getattr(parameter, "_hp_mapping", None):
        return mapping.get_lp_grad_fragment(parameter._index_in_param_group)
    return parameter.grad
