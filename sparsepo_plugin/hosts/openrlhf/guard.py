"""No update by numbers that are not finite, and no file with them: decided by all ranks together."""

from typing import Any

import torch
import torch.distributed as dist
from deepspeed.runtime.utils import has_inf_or_nan
from deepspeed.utils import safe_get_local_grad
from torch import Tensor, nn

from ...faults import (
    PATIENCE,
    GradientWatch,
    NonFinite,
    fault_of_gradient,
    fault_of_weight,
    first_non_finite,
    stop_or_warn,
)
from .keys import named
from .policy import HostedPolicy


class Guard:
    """What becomes of steps and weights that are not finite.

    A loss that is not finite makes gradients so, in the end on all ranks. They look at them together, between the last
    backward of a step and its update. An update is left out in DeepSpeed's own way, that of fp16: the gradients are
    dropped, and weights, optimizer and scheduler stay as they are.

    Args:
        policy: The policy with its masks.
    """

    def __init__(self, policy: HostedPolicy) -> None:
        self.policy = policy
        self.on_nonfinite = policy.loss_config.on_nonfinite
        self._noted: NonFinite | None = None
        self._left_out = 0

    def note(self, fault: NonFinite) -> None:
        """Keep what is not finite in a micro-batch until the ranks meet; evaluation has nothing to wait for.

        Raises:
            NonFinite: `fault`, in evaluation.
        """
        if torch.is_grad_enabled():
            self._noted = self._noted or fault
        else:
            stop_or_warn(named(fault), self.on_nonfinite)

    def check_gradients(self, engine: Any, watch: GradientWatch) -> None:
        """Look at the gradients of a step before they update anything.

        Args:
            engine: DeepSpeed's.
            watch: What the step kept of its gradients.

        Raises:
            NonFinite: one is not finite, and such steps are not skipped, or too many in a row were; on all ranks.
        """
        if not engine.is_gradient_accumulation_boundary():
            return
        if not _overflows(engine):
            self._left_out = 0
            return
        if fault := self._find_fault(engine, watch):
            self._left_out += 1
            if self.on_nonfinite == "skip" and not fault.lasting:
                fault.lasting = self._left_out == PATIENCE
                fault.args = (f"{fault}; updates left out in a row: {self._left_out}",)
            _stop_or_warn_once(fault, self.on_nonfinite)

    def check_weights(self, engine: Any) -> None:
        """Look at the weights before they are saved.

        Raises:
            NonFinite: one is not finite, on all ranks.
        """
        if name := next(filter(None, _gather(first_non_finite(self.policy))), None):
            _stop_or_warn_once(named(fault_of_weight(name, self.policy, engine.global_steps)), "stop")

    def _find_fault(self, engine: Any, watch: GradientWatch) -> NonFinite | None:
        """The fault of a step, the same one on all ranks; None if fp16 has yet to scale its loss down."""
        own, self._noted = self._noted or watch.fault(), None
        met = [(rank, fault) for rank, fault in enumerate(_gather(own)) if fault]
        if met:
            # A weight first: under ZeRO-3 one rank has it, and the others see what follows from it.
            rank, fault = min(met, key=lambda found: not found[1].lasting)
            if dist.get_world_size() > 1:
                fault.args = (f"rank {rank}: {fault}",)
            return named(fault)
        if engine.fp16_enabled() and engine._get_optimizer_loss_scale() > 1:
            return None
        names = (name for name, parameter in self.policy.named_parameters() if _is_broken(_local_gradient(parameter)))
        name = next(filter(None, _gather(next(names, None))))
        return named(fault_of_gradient(name, self.policy, engine.global_steps + 1))


def _stop_or_warn_once(fault: NonFinite, on_nonfinite: str) -> None:
    """As `stop_or_warn`, on all ranks, of which the first tells."""
    fault.met_by_all = True
    if fault.lasting or on_nonfinite == "stop" or dist.get_rank() == 0:
        stop_or_warn(fault, on_nonfinite)


def _overflows(engine: Any) -> bool:
    """Whether a gradient of any rank is not finite; if so DeepSpeed leaves out the update that follows."""
    optimizer = engine.optimizer
    if hasattr(optimizer, "check_overflow"):  # ZeRO 1 to 3
        optimizer.check_overflow()
        optimizer.check_grad_overflow = False  # it would look again
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


def _is_broken(gradient: Tensor | None) -> bool:
    return gradient is not None and bool(has_inf_or_nan(gradient))


def _gather(own: Any) -> list[Any]:
    """What each rank gives."""
    found = [None] * dist.get_world_size()
    dist.all_gather_object(found, own)
    return found
