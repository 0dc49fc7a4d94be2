"""A vocabulary projection taken a chunk of rows at a time, whose logits are kept as far as a budget goes."""

import re
from collections.abc import Callable, Iterable
from typing import NamedTuple

import psutil
import torch
from torch import Tensor

# A chunk's logits and normalised logits of both models, [rows, V] each, share so many bytes, or _MIN_ROWS rows.
_WORKSPACE = {"cpu": 48 << 20, "cuda": 1 << 30}
_MIN_ROWS = 64  # below, the vocabulary projection is read more often than it is worth

# What is kept for the backward where nobody says. On a CPU about what is left to half of the memory of a step that
# keeps all logits of all tokens, where responses are most of the tokens; a GPU's memory is as large as its batches.
_KEPT = {"cpu": "128MB", "cuda": "10%"}
BUDGETS = "a number of bytes (0, 256MB, 1.5GB), or a share of free memory from 0% to 100%"
_UNITS = {"MB": 10**6, "GB": 10**9}
_BUDGET = re.compile(r"(\d{1,15}(?:\.\d+)?) ?(MB|GB|%)")


def is_budget(value: object) -> bool:
    """Whether a value is what `BUDGETS` says."""
    if isinstance(value, str) and (found := _BUDGET.fullmatch(value)):
        return found[2] != "%" or float(found[1]) <= 100
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 63


def budget_in_bytes(budget: int | str | None, device: torch.device) -> int:
    """Bytes of logits that may be kept.

    Args:
        budget: As `BUDGETS` says; None is the device's default.
        device: Whose free memory a share is of.
    """
    budget = _KEPT.get(device.type, _KEPT["cpu"]) if budget is None else budget
    if isinstance(budget, int):
        return budget
    number, unit = _BUDGET.fullmatch(budget).groups()
    return int(float(number) / 100 * free_memory(device) if unit == "%" else float(number) * _UNITS[unit])


class Rows(NamedTuple):
    """What a model's logits of N response tokens are made of.

    Attributes:
        hidden: The last hidden rows, [N, d]; None where there is no model.
        weight: Of the vocabulary head. [V, d].
        bias: [V].
    """

    hidden: Tensor | None
    weight: Tensor | None
    bias: Tensor | None


class Projection:
    """The logits of one model's rows, chunk by chunk.

    The weight is converted once and not per chunk, or not at all where tensor cores take it as it is. On CPU what is
    not kept goes to buffers, as fresh memory would be mapped anew for each chunk; a GPU's allocator does that itself.

    Args:
        rows: The model's.
        dtype: Of the logits.
        chunks: The rows of each chunk.
        buffer: For logits of one chunk, which other models may use in between; None on a GPU.
        kept: Logits of the first chunks, where they are known.

    Attributes:
        kept: The logits of the first chunks, as far as they are computed and there was room.
    """

    def __init__(
        self, rows: Rows, dtype: torch.dtype, chunks: list[slice], buffer: Tensor | None, kept: Iterable[Tensor] = ()
    ) -> None:
        native = is_gpu(rows.weight.device) and dtype == torch.float32 and rows.weight.dtype == rows.hidden.dtype
        self.hidden = rows.hidden
        self.weight = rows.weight.detach() if native else rows.weight.detach().to(dtype)
        self.bias = None if rows.bias is None else rows.bias.detach().to(dtype)
        self.dtype, self.chunks = dtype, chunks
        self._logits, self._normalised = buffer, None if buffer is None else torch.empty_like(buffer)
        self.kept, self._keeps = list(kept), 0

    def keep(self, room: int) -> int:
        """Have the logits of the first chunks kept when they are computed; bytes of `room` that are left over."""
        size = self.dtype.itemsize * len(self.weight)
        while self._keeps < len(self.chunks) and room >= size * _length(self.chunks[self._keeps]):
            room -= size * _length(self.chunks[self._keeps])
            self._keeps += 1
        return room

    def logits(self, number: int) -> Tensor:
        """Logits of a chunk, [n, V]; to be read only, and unless they are kept before the buffer is used again."""
        if number < len(self.kept):
            return self.kept[number]
        logits = self._project(number)
        if number < self._keeps:
            self.kept.append(logits)
        return logits

    def normalised(self, number: int, softmax: Callable[..., Tensor]) -> Tensor:
        """`torch.softmax` or `torch.log_softmax` of a chunk's logits, [n, V]; the caller's until the next."""
        logits = self.logits(number)
        return softmax(logits, 1, out=None if self._normalised is None else self._normalised[: len(logits)])

    def _project(self, number: int) -> Tensor:
        hidden = self.hidden[self.chunks[number]]
        out = None if number < self._keeps or self._logits is None else self._logits[: len(hidden)]
        # Not F.linear: under ZeRO-3 DeepSpeed replaces it by a function that expects to own the weight.
        logits = product(hidden.to(self.weight.dtype), self.weight.T, self.dtype, out)
        return logits if self.bias is None else logits.add_(self.bias)


def product(a: Tensor, b: Tensor, dtype: torch.dtype, out: Tensor | None = None) -> Tensor:
    """The product a @ b, added up and returned in `dtype`; on a GPU a and b may be of 16 bits and `dtype` float32."""
    return torch.mm(a, b, out=out) if a.dtype == dtype else torch.mm(a, b, out_dtype=dtype)


def add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """`total` + a @ b in place, as in `product`."""
    if a.dtype == total.dtype:
        total.addmm_(a, b)
    else:
        total += product(a, b, total.dtype)


def chunks_of(rows: int, size: int) -> list[slice]:
    """The rows from 0 to `rows` in slices of `size`, the last of what is left."""
    return [slice(start, min(start + size, rows)) for start in range(0, rows, size)]


def rows_per_chunk(vocabulary: int, device: torch.device) -> int:
    """Rows whose logits fit into the workspace of the device."""
    room = _WORKSPACE.get(device.type, _WORKSPACE["cpu"])
    # Free memory differs from step to step, and with the rows the order of sums.
    if not torch.are_deterministic_algorithms_enabled():
        room = min(room, free_memory(device) // 8)
    return max(_MIN_ROWS, room // (3 * 4 * vocabulary))


def is_gpu(device: torch.device) -> bool:
    """Whether a device has tensor cores, and an allocator that keeps what is freed."""
    return device.type == "cuda"


def free_memory(device: torch.device) -> int:
    """Bytes that an allocation on `device` may still take."""
    if not is_gpu(device):
        return psutil.virtual_memory().available
    cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + cached


def _length(chunk: slice) -> int:
    return chunk.stop - chunk.start
