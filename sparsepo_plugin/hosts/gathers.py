"""What ZeRO-3 needs on CPU to read the same weights as on a GPU."""

from functools import cache
from typing import Any


@cache
def gather_one_by_one() -> None:
    """Have ZeRO-3 on CPU gather parameters one at a time; to be called before models are loaded.

    DeepSpeed up to 0.19.7 starts the gathers of several parameters, waits for the last, and takes all for done. On a
    GPU's stream they end in their order. Gloo has two threads for them: a parameter, of those that stay gathered
    between steps, may then be read while memory still holds something else, and a run has other numbers now and then.
    """
    from deepspeed.accelerator import get_accelerator
    from deepspeed.runtime.zero.partition_parameters import Init

    if get_accelerator().device_name() != "cpu":
        return
    gather = Init._allgather_params_coalesced

    def gather_each(self: Init, parameters: list[Any], *rest: Any, **options: Any) -> None:
        for parameter in parameters:
            gather(self, [parameter], *rest, **options)

    Init._allgather_params_coalesced = gather_each
