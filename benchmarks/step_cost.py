"""What one training step costs beside other DPO steps: time and peak memory, to CSV.

One process, one run; all contestants of a shape take turns. A step is forward and backward, without the optimizer.
"""

import csv
import ctypes
import gc
import platform
import shutil
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated
from unittest.mock import patch

import report
import torch
import typer
from contestants import Arena, Ours
from shapes import FIRST, PYTHIA, SECOND, SEVEN_B, SMALL, THIRD, Shape
from torch import Tensor
from torch.profiler import record_function
from torch.utils.checkpoint import checkpoint

from sparsepo_plugin import TokenStatistics, divergence, token_statistics

SHAPE_COLUMNS = ["pairs", "prompt", "response", "vocab", "packed", "lora"]
COST_COLUMNS = ["time_ratio", "memory_ratio", "seconds", "bytes", "versions"]
COLUMNS = ["device", "baseline", "objective", "mask", "shared", "sparsity", *SHAPE_COLUMNS, *COST_COLUMNS]
GROWTH_COLUMNS = ["axis", "value", "contestant", "seconds", "bytes", "versions"]
PARTS_COLUMNS = ["measurement", "part", "seconds", "share", "bytes", "versions"]
BASELINES = ("openrlhf_dpo", "trl_dpo", "trl_dpo_chunked", "plain")
METHODS = ("dpo", "tdpo", "dpop", "simpo", "d2po", "sepo")
SPARSE = Ours(sparsity=0.8)
MASKS = (Ours(), Ours(shared=False), SPARSE, Ours(mask="activation"))

Cost = tuple[float, int]


@dataclass(frozen=True)
class Case:
    """Contestants that take turns on one shape."""

    shape: Shape
    ours: tuple[Ours, ...]
    baselines: tuple[str, ...] = BASELINES


ALL = (*MASKS, *(Ours(name) for name in METHODS))
# On CPU only what fits into 15 minutes on two cores.
GRID = {
    "cpu": [
        Case(FIRST, ALL),
        Case(SECOND, MASKS, ("openrlhf_dpo", "trl_dpo_chunked", "plain")),
        Case(THIRD, MASKS, ("openrlhf_dpo", "trl_dpo_chunked")),
        Case(replace(FIRST, packed=True), (Ours(),), ("openrlhf_dpo",)),
        Case(replace(FIRST, lora=True), (Ours(),), ("openrlhf_dpo",)),
        Case(Shape(2, 128, 64, 151_936), (Ours(),), ("openrlhf_dpo",)),
    ],
    "cuda": [
        *(Case(Shape(4, 512, 512, 50_304, packed, size=PYTHIA), ALL) for packed in (False, True)),
        Case(Shape(2, 512, 512, 32_000, size=SEVEN_B), MASKS),
        Case(Shape(2, 512, 512, 128_256, lora=True, size=SEVEN_B), MASKS),
    ],
}
POINT = Shape(2, 64, 64, 32_000)
GROWTH = {  # what the plot shows: every axis alone, from one point
    "response": [(n, replace(POINT, response=n), Ours()) for n in (32, 128, 256)],
    "vocabulary": [(v, replace(POINT, vocab=v), Ours()) for v in (8_000, 32_000, 96_000)],
    "layers": [(n, replace(POINT, size=replace(SMALL, layers=n)), Ours()) for n in (2, 6, 12)],
    "sparsity": [(s, replace(POINT, response=192), replace(SPARSE, sparsity=s)) for s in (0.0, 0.4, 0.8)],
}


class Meter:
    """Seconds of a call, and bytes at its peak above what was there before.

    Args:
        device: `cpu`, where the resident memory is read from Linux, or `cuda`.
    """

    def __init__(self, device: str) -> None:
        self.cuda = device == "cuda"
        self.libc = None if self.cuda else ctypes.CDLL("libc.so.6")

    def __call__(self, call: Callable[[], None]) -> Cost:
        """Run `call` once."""
        gc.collect()
        before = self._reset()
        start = time.perf_counter()
        call()
        if self.cuda:
            torch.cuda.synchronize()
        return time.perf_counter() - start, self._peak() - before

    def _reset(self) -> int:
        if self.cuda:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            return torch.cuda.memory_allocated()
        self.libc.malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
        return _status("VmRSS")

    def _peak(self) -> int:
        return torch.cuda.max_memory_allocated() if self.cuda else _status("VmHWM")


def _status(key: str) -> int:
    """A size in bytes that Linux keeps of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(key))


def take_turns(arena: Arena, losses: dict[object, Callable[[], Tensor]], repeats: int, meter: Meter) -> dict:
    """Median (seconds, bytes) of each contestant's forward and backward, which slow first steps do not move.

    A baseline that cannot run, as a library is missing, gets the reason in place of its cost.
    """
    costs: dict[object, list[Cost]] = {name: [] for name in losses}
    reasons = {}
    for turn in range(repeats):
        for name, loss in losses.items():
            arena.policy.zero_grad()
            try:
                cost = meter(lambda loss=loss: loss().backward())
            except (ImportError, NotImplementedError, RuntimeError) as error:
                if turn or name not in BASELINES:
                    raise
                reasons[name] = str(error).splitlines()[0]
                continue
            costs[name].append(cost)
        losses = {name: loss for name, loss in losses.items() if name not in reasons}
    return reasons | {name: _medians(pairs) for name, pairs in costs.items() if pairs}


def _medians(costs: list[Cost]) -> Cost:
    seconds, size = zip(*costs, strict=True)
    return statistics.median(seconds), int(statistics.median(size))


def run_case(case: Case, device: str, repeats: int) -> list[dict]:
    """Rows of the CSV: one for each of our losses and each baseline."""
    arena = Arena(case.shape, device)
    losses = {name: _lazy(getattr(arena, name)) for name in case.baselines}
    losses |= {ours: arena.ours(ours) for ours in case.ours}
    costs = take_turns(arena, losses, repeats, Meter(device))
    return [
        _row(case.shape, ours, baseline, device, costs[ours], costs[baseline])
        for ours in case.ours
        for baseline in case.baselines
    ]


def _lazy(build: Callable[[], Callable[[], Tensor]]) -> Callable[[], Tensor]:
    """Build a baseline at its first step, where what is missing is caught."""
    built = cache(build)
    return lambda: built()()


def _row(
    shape: Shape, ours: Ours, baseline: str, device: str, cost: Cost | None, other: Cost | str | None = None
) -> dict:
    measured = cost is not None and isinstance(other, tuple)
    sparsepo = ours.objective == "sparsepo"
    return {
        "device": device if shape.size == SMALL else f"{device} {shape.size.name}",
        "baseline": baseline,
        "objective": ours.objective,
        "mask": ours.mask if sparsepo else "",
        "shared": ours.shared if sparsepo else "",
        "sparsity": ours.sparsity,
        **{key: getattr(shape, key) for key in SHAPE_COLUMNS},
        "time_ratio": round(cost[0] / other[0], 4) if measured else report.UNMEASURED,
        "memory_ratio": round(cost[1] / other[1], 4) if measured else report.UNMEASURED,
        "seconds": round(cost[0], 5) if cost else report.UNMEASURED,
        "bytes": cost[1] if cost else report.UNMEASURED,
        "versions": versions(device) + (f"; {baseline}: {other}" if isinstance(other, str) else "") if cost else "",
    }


def unmeasured_rows(device: str) -> list[dict]:
    """The rows of another device's grid."""
    return [
        _row(case.shape, ours, baseline, device, None)
        for case in GRID[device]
        for ours in case.ours
        for baseline in case.baselines
    ]


def growth(device: str, repeats: int) -> list[dict]:
    """How the cost grows along each axis, ours and OpenRLHF's, which knows no sparsity."""
    rows = []
    for axis, points in GROWTH.items():
        for value, shape, ours in points:
            arena = Arena(shape, device)
            losses = {"sparsepo": arena.ours(ours)}
            if axis != "sparsity":
                losses["openrlhf_dpo"] = arena.openrlhf_dpo()
            for name, (seconds, size) in take_turns(arena, losses, repeats, Meter(device)).items():
                cells = (axis, value, name, round(seconds, 5), size, versions(device))
                rows.append(dict(zip(GROWTH_COLUMNS, cells, strict=True)))
    return rows


def parts(device: str, repeats: int) -> list[dict]:
    """What a dense step is made of, and its vocabulary part written in other ways, on the second shape."""
    arena = Arena(SECOND, device)
    rows = []
    for measurement, costs in {"profile": profile(arena, repeats), **vocabulary_part(arena, repeats)}.items():
        whole = sum(seconds for seconds, _ in costs.values()) if measurement == "profile" else costs["dense"][0]
        for part, (seconds, size) in costs.items():
            cells = (measurement, part, round(seconds, 5), round(seconds / whole, 4), size, versions(device))
            rows.append(dict(zip(PARTS_COLUMNS, cells, strict=True)))
    return rows


def profile(arena: Arena, repeats: int) -> dict[str, tuple[float, str]]:
    """Seconds of each part of a dense step, by torch.profiler; bytes are not measured."""
    loss = arena.ours(Ours(), spans=True)
    for _ in range(2):
        loss().backward()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        for _ in range(repeats):
            arena.policy.zero_grad()
            with record_function("step"):
                value = loss()
                with record_function("backward"):
                    value.backward()
    total = {event.key: event.cpu_time_total * 1e-6 / repeats for event in profiler.key_averages()}
    forward, backward = total["_TokenStatistics"], total["_TokenStatisticsBackward"]
    found = {
        "reference forward, without its vocabulary": total["reference"],
        "masks, forward": total["masks"],
        "policy forward, without its vocabulary": total["policy"] - total["masks"] - forward,
        "vocabulary forward, both models": forward,
        "vocabulary backward, both models": backward,
        "policy and masks, backward": total["backward"] - backward,
    }
    found["everything else"] = total["step"] - sum(found.values())
    return {part: (seconds, "") for part, seconds in found.items()}


def vocabulary_part(arena: Arena, repeats: int) -> dict[str, dict[str, Cost]]:
    """The vocabulary part alone, forward and backward: all response rows, a fifth of them, and other ways to do it."""
    rows = 2 * arena.shape.pairs * arena.shape.response
    weight, ref_weight = arena.policy.lm_head.weight, arena.reference.lm_head.weight
    hidden, ref_hidden = (torch.randn(rows, weight.shape[1]).to(weight) for _ in range(2))
    hidden.requires_grad_()
    labels = arena.ids[:, -arena.shape.response :].flatten()

    def loss(statistics: Callable[..., TokenStatistics], count: int = rows) -> Tensor:
        found = statistics(hidden[:count], weight, ref_hidden[:count], ref_weight, labels[:count])
        return found.policy_logps.sum() + found.expected_log_ratio.sum()

    losses = {
        "dense": lambda: loss(token_statistics),
        "80% sparse": lambda: loss(token_statistics, rows // 5),
        "log_softmax of each chunk, checkpointed": lambda: loss(_log_softmax_of_chunks),
    }
    if shutil.which("g++"):  # else the plain code would run, and be measured, in its place
        losses["elementwise part compiled"] = lambda: loss(_compiled)
    costs = take_turns(arena, losses, repeats, Meter(weight.device.type))
    sparse = costs.pop("80% sparse")
    return {"vocabulary": {"dense": costs["dense"], "80% sparse": sparse}, "tried": costs}


def _log_softmax_of_chunks(*args: Tensor) -> TokenStatistics:
    """`token_statistics` as autograd alone would do it, computing each chunk again in the backward."""

    def one(hidden: Tensor, weight: Tensor, ref_hidden: Tensor, ref_weight: Tensor, labels: Tensor) -> Tensor:
        logps, ref_logps = ((x @ w.T).log_softmax(-1) for x, w in ((hidden, weight), (ref_hidden, ref_weight)))
        picked = [x.gather(1, labels[:, None]).squeeze(1) for x in (logps, ref_logps)]
        return torch.stack([*picked, (ref_logps.exp() * (logps - ref_logps)).sum(-1)])

    hidden, weight, ref_hidden, ref_weight, labels = args
    chunks = zip(*(x.split(128) for x in (hidden, ref_hidden, labels)), strict=True)
    found = [checkpoint(one, x, weight, ref_x, ref_weight, y, use_reentrant=False) for x, ref_x, y in chunks]
    return TokenStatistics(*torch.cat(found, dim=1))


def _compiled(*args: Tensor) -> TokenStatistics:
    """`token_statistics` with its elementwise part compiled, as on a GPU."""
    with patch.object(divergence, "_fuses", lambda device: True):
        return token_statistics(*args)


@cache
def versions(device: str) -> str:
    """Hardware and versions."""
    packages = ("torch", "transformers", "openrlhf", "trl", "liger-kernel")
    found = [f"{name} {installed}" for name in packages if (installed := _version(name))]
    if device == "cuda":
        hardware = torch.cuda.get_device_name()
    else:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        models = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
        model = models[0] if models else platform.machine()
        hardware = f"{model}, {torch.get_num_threads()} threads"
    return "; ".join([hardware, f"python {platform.python_version()}", *found])


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _write(path: Path, columns: list[str], rows: list[dict]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def main(
    device: Annotated[str, typer.Option(help="cpu, or cuda for bf16 at Pythia-1.4B and 7B class shapes")] = "cpu",
    repeats: Annotated[int, typer.Option(min=1, help="steps of each contestant that the medians are of")] = 7,
    shapes: Annotated[int | None, typer.Option(help="measure only the first so many shapes, nothing else")] = None,
    results: Annotated[Path, typer.Option(help="folder of the CSV files")] = Path(__file__).parent / "results",
) -> None:
    """Measure the grid, and on CPU the growth and the parts too, and write them to CSV."""
    results.mkdir(parents=True, exist_ok=True)
    start, rows = time.perf_counter(), []
    for case in GRID[device][:shapes]:
        rows += run_case(case, device, repeats)
        typer.echo(f"{time.perf_counter() - start:6.0f} s  {case.shape}")
    _write(results / f"step_cost_{device}.csv", COLUMNS, rows + (unmeasured_rows("cuda") if device == "cpu" else []))
    if device == "cpu" and shapes is None:
        _write(results / "growth_cpu.csv", GROWTH_COLUMNS, growth(device, min(repeats, 3)))
        typer.echo(f"{time.perf_counter() - start:6.0f} s  growth")
        _write(results / "parts_cpu.csv", PARTS_COLUMNS, parts(device, repeats))
        typer.echo(f"{time.perf_counter() - start:6.0f} s  parts")
        typer.echo(report.bars_table(results))


if __name__ == "__main__":
    typer.run(main)
