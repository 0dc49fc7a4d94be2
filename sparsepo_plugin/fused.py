"""Arithmetic over whole chunks of logits as few GPU kernels, with the plain code to fall back to."""

import logging
from collections.abc import Callable
from functools import cache, wraps
from typing import Any

import torch
from torch import Tensor

logger = logging.getLogger("sparsepo_plugin")


def fused(plain: Callable[..., Any]) -> Callable[..., Any]:
    """`plain`, compiled at its first call, and for all shapes at once.

    What does not compile, as without Triton or a C compiler, is warned of and runs as written.

    Args:
        plain: A function of two [n, V] tensors of logits, the second of which may be None, and of what else it needs.
            It reads them and writes nothing but its results.
    """
    # At the first call: loading the compiler takes seconds.
    compiled = cache(lambda: torch.compile(plain, dynamic=True, fullgraph=True))
    broken = False

    @wraps(plain)
    def run(logits: Tensor, *rest: Any) -> Any:
        nonlocal broken
        # One row would be compiled again, and so would every pattern of strides and every view of something larger.
        if broken or len(logits) == 1:
            return plain(logits, *rest)
        try:
            return compiled()(logits, *map(_own, rest))
        except (torch._dynamo.exc.TorchDynamoException, torch._dynamo.exc.FailOnRecompileLimitHit) as error:
            broken = True
            reason = " ".join(str(error).strip().splitlines()[:2])
            logger.warning("the vocabulary arithmetic is not fused, which costs time: %s", reason)
            return plain(logits, *rest)

    return run


def _own(value: Any) -> Any:
    """A contiguous copy of what belongs to rows, [n] or [k, n, 1]; logits, which no one else holds, as they are."""
    if not isinstance(value, Tensor) or (value.dim() == 2 and value.shape[1] > 1):
        return value
    return value.clone(memory_format=torch.contiguous_format)
