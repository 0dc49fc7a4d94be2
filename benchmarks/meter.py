"""Measuring steps that take turns: their time where freed memory is kept, their memory where it is given back.

A page that the process has not had before costs a fault and its zeroing, on a CPU often more than the arithmetic.
A GPU's allocator keeps what is freed, so time is measured in a process whose malloc does the same.
"""

import ctypes
import gc
import os
import resource
import statistics
import time
from collections.abc import Callable, Collection
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from unittest.mock import patch

import torch
from torch import Tensor

# Settings of glibc's malloc: large blocks come from the heap too, its end is not given back and grows in large
# steps, and all threads share it, as a heap of their own would be given back when it is empty.
KEPT = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": "100000000000",
    "MALLOC_TOP_PAD_": "500000000",
    "MALLOC_ARENA_MAX": "1",
}
# A waiting thread sleeps: spinning is no work, but would count as user time.
ALWAYS = {"OMP_WAIT_POLICY": "PASSIVE"}
# New pages a step may touch, as a share of those it works on at its peak. With fresh memory it touches all of those,
# so within this limit new memory costs a fiftieth of what it costs there.
LIMIT = 0.02


class FreshMemory(Exception):
    """A step touched new memory where none should be needed, so its time is not that of its arithmetic."""


@dataclass(frozen=True)
class Cost:
    """What a step took; user time and faults on the CPU alone, bytes where they are measured.

    Attributes:
        seconds: Wall time.
        user: Seconds in user mode, of all threads together.
        faults: Pages touched for the first time (minor faults).
        bytes: At the peak above what was there before.
    """

    seconds: float
    user: float | None = None
    faults: int | None = None
    bytes: int | None = None

    def check(self, name: object, size: int) -> None:
        """Refuse a step of `size` bytes that touched new memory."""
        pages = size // resource.getpagesize()
        if self.faults is not None and self.faults > LIMIT * pages:
            text = f"{name} touched {self.faults:,} new pages in a step after the first; it works on {pages:,}"
            raise FreshMemory(f"{text}, and at most {LIMIT:.0%} of them may be new where freed memory is kept")


class Meter:
    """Cost of a call.

    Args:
        device: `cpu` or `cuda`.
        fresh: Give freed memory back before the call and measure bytes, resident memory as Linux counts it.
    """

    def __init__(self, device: str, fresh: bool) -> None:
        self.cuda, self.fresh = device == "cuda", fresh

    def __call__(self, call: Callable[[], None]) -> Cost:
        """Run `call` once."""
        gc.collect()
        before = self._reset() if self.fresh else 0
        self._wait()
        used, start = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
        call()
        self._wait()
        seconds, now = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF)
        size = self._peak() - before if self.fresh else None
        if self.cuda:
            return Cost(seconds, bytes=size)
        return Cost(seconds, now.ru_utime - used.ru_utime, now.ru_minflt - used.ru_minflt, size)

    def _wait(self) -> None:
        if self.cuda:
            torch.cuda.synchronize()

    def _reset(self) -> int:
        if self.cuda:
            torch.cuda.reset_peak_memory_stats()
            return torch.cuda.memory_allocated()
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
        return _status("VmRSS")

    def _peak(self) -> int:
        return torch.cuda.max_memory_allocated() if self.cuda else _status("VmHWM")


def _status(key: str) -> int:
    """A size in bytes that Linux keeps of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(key))


def take_turns(
    losses: dict[object, Callable[[], Tensor]],
    meter: Meter,
    repeats: int,
    reset: Callable[[], None],
    may_lack: Collection[object] = (),
) -> dict[object, list[Cost] | str]:
    """Costs of each contestant's forward and backward, in `repeats` turns after one that is not counted.

    `reset` runs before every step. A contestant in `may_lack` that cannot run, as a library is missing, gets the
    reason in place of its costs.
    """
    costs: dict[object, list[Cost]] = {name: [] for name in losses}
    reasons = {}
    for _ in range(1 + repeats):
        for name, loss in losses.items():
            reset()
            try:
                costs[name].append(meter(lambda loss=loss: loss().backward()))
            except (ImportError, NotImplementedError, RuntimeError) as error:
                if costs[name] or name not in may_lack:
                    raise
                reasons[name] = str(error).splitlines()[0]
        losses = {name: loss for name, loss in losses.items() if name not in reasons}
    return reasons | {name: costs[name][1:] for name in losses}


def middle(costs: list[Cost]) -> Cost:
    """Medians, and the most faults."""
    columns = {key: [getattr(cost, key) for cost in costs] for key in ("seconds", "user", "faults", "bytes")}
    found = {key: values for key, values in columns.items() if None not in values}
    return Cost(
        **{key: max(values) if key == "faults" else statistics.median(values) for key, values in found.items()}
    )


def hold(size: int) -> None:
    """Touch so many bytes and free them; where freed memory is kept, steps then find their pages there.

    Without this the heap still grows for some turns, as small objects that stay split the room of large ones.
    """
    torch.ones(size, dtype=torch.uint8)


def in_process(environment: dict[str, str], function: Callable, *args: object) -> object:
    """Call a function in a new process with this environment; malloc reads its settings when a process starts."""
    inherited = {name: value for name, value in os.environ.items() if name not in KEPT}
    with (
        patch.dict(os.environ, inherited | ALWAYS | environment, clear=True),
        ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool,
    ):
        return pool.submit(function, *args).result()
