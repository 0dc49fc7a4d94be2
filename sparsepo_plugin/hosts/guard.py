"""No update by numbers that are not finite, and no file with them: decided by all ranks together."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..faults import (
    PATIENCE,
    GradientWatch,
    NonFinite,
    fault_of_gradient,
    fault_of_weight,
    first_non_finite,
    stop_or_warn,
)
from ..policy import MaskedPolicy


class Guard:
    """What becomes of steps and weights that are not finite.

    A loss that is not finite makes gradients so, in the end on all ranks. They look at them together, between the last
    backward of a step and its update, which a host's own guard then has to leave out.

    Args:
        policy: The policy with its masks.
        named: Adds to an error which flag of the host decides what it is about.
    """

    def __init__(self, policy: MaskedPolicy, named: Callable[[NonFinite], NonFinite]) -> None:
        self.policy, self.named = policy, named
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
            stop_or_warn(self.named(fault), self.on_nonfinite)

    def check_weights(self, number: int) -> None:
        """Look at the weights before they are saved.

        Args:
            number: The last optimizer step.

        Raises:
            NonFinite: one is not finite, on all ranks.
        """
        if name := next(filter(None, _gather(first_non_finite(self.policy))), None):
            _stop_or_warn_once(self.named(fault_of_weight(name, self.policy, number)), "stop")

    def judge(self, finite: bool, number: int, watch: GradientWatch, *, scales: bool, gradient: Callable) -> None:
        """Stop or warn because of a step whose gradients are not finite; on all ranks.

        Args:
            finite: Whether those of all ranks are.
            number: The optimizer step.
            watch: What the step kept of its gradients.
            scales: Whether the loss has a scale that will now be lowered, as fp16 has: at fault if nothing else is.
            gradient: Gives this process's share of a parameter's gradient, or None.

        Raises:
            NonFinite: one is not finite, and such steps are not skipped, or too many in a row were.
        """
        if finite:
            self._left_out = 0
        elif fault := self._find_fault(number, watch, scales, gradient):
            self._left_out += 1
            if self.on_nonfinite == "skip" and not fault.lasting:
                fault.lasting = self._left_out == PATIENCE
                fault.args = (f"{fault}; updates left out in a row: {self._left_out}",)
            _stop_or_warn_once(fault, self.on_nonfinite)

    def _find_fault(self, number: int, watch: GradientWatch, scales: bool, gradient: Callable) -> NonFinite | None:
        """The fault of a step, the same one on all ranks; None if its scale is too large."""
        own, self._noted = self._noted or watch.fault(), None
        met = [(rank, fault) for rank, fault in enumerate(_gather(own)) if fault]
        if met:
            # A weight first: under ZeRO-3 one rank has it, and the others see what follows from it.
            rank, fault = min(met, key=lambda found: not found[1].lasting)
            if dist.is_initialized() and dist.get_world_size() > 1:
                fault.args = (f"rank {rank}: {fault}",)
            return self.named(fault)
        if scales:
            return None
        names = (name for name, parameter in self.policy.named_parameters() if not all_finite([gradient(parameter)]))
        name = next(filter(None, _gather(next(names, None))))
        return self.named(fault_of_gradient(name, self.policy, number))


def all_finite(gradients: Iterable[Tensor | None]) -> bool:
    """Whether gradients, those that there are, have finite numbers alone."""
    # The norm rather than isfinite, which would take a byte for each number.
    norms = [torch.linalg.vector_norm(own.detach(), torch.inf) for own in gradients if own is not None and own.numel()]
    return not norms or bool(torch.stack([norm.float() for norm in norms]).isfinite().all())


def on_all_ranks(finite: bool, device: torch.device) -> bool:
    """Whether what one process found finite is so on all."""
    if not dist.is_initialized():
        return finite
    broken = torch.tensor([not finite], dtype=torch.uint8, device=device)
    dist.all_reduce(broken, op=dist.ReduceOp.MAX)
    return not bool(broken)


def gradient_of(parameter: nn.Parameter) -> Tensor | None:
    """A parameter's gradient; this process's share where it is sharded."""
    return parameter.grad.to_local() if hasattr(parameter.grad, "to_local") else parameter.grad


def _stop_or_warn_once(fault: NonFinite, on_nonfinite: str) -> None:
    """As `stop_or_warn`, on all ranks, of which the first tells."""
    fault.met_by_all = True
    if fault.lasting or on_nonfinite == "stop" or not dist.is_initialized() or dist.get_rank() == 0:
        stop_or_warn(fault, on_nonfinite)


def _gather(own: Any) -> list[Any]:
    """What each rank gives."""
    if not dist.is_initialized():
        return [own]
    found = [None] * dist.get_world_size()
    dist.all_gather_object(found, own)
    return found
