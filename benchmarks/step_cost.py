"""What one training step costs beside other DPO steps: time and peak memory, to CSV.

A step is forward and backward, without the optimizer; all contestants of a shape take turns. One pass over everything
measures memory, another one time, each in a process of its own (`meter.py` says why).
"""

import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Annotated
from unittest.mock import patch

import report
import torch
import typer
from contestants import Arena, Ours
from grid import GRID, GROWTH, Case
from meter import KEPT, Cost, FreshMemory, Meter, hold, in_process, middle, take_turns
from rows import PROFILE, VOCABULARY, Found, write
from shapes import SECOND
from torch import Tensor
from torch.profiler import record_function
from torch.utils.checkpoint import checkpoint

from sparsepo_plugin import TokenStatistics, divergence, token_statistics

POINT_REPEATS = 3  # of each point of the plot


def measure(device: str, shapes: int | None, repeats: int, fresh: Found | None = None) -> Found:
    """Measure everything once: memory or, once that is known (`fresh`), time with freed memory kept."""
    start, meter, found = time.perf_counter(), Meter(device, fresh is None), {}
    cases = {case: partial(run_case, case, device, repeats) for case in GRID[device][:shapes]}
    if device == "cpu" and shapes is None:
        few = min(repeats, POINT_REPEATS)
        cases |= {case: partial(run_case, case, device, few) for axis in GROWTH.values() for case in axis.values()}
        cases |= {VOCABULARY: partial(vocabulary_part, few), PROFILE: partial(profile, few)}
    if device == "cpu" and fresh:
        known = (costs for found in fresh.values() for costs in found.values() if not isinstance(costs, str))
        hold(3 * max(middle(costs).bytes for costs in known))
    for case, run in cases.items():
        found[case] = run(meter)
        title = case.shape if isinstance(case, Case) else case
        for name, costs in found[case].items():
            if fresh and not isinstance(costs, str):
                middle(costs).check(f"{title}: {name}", middle(fresh[case][name]).bytes)
        typer.echo(f"{time.perf_counter() - start:6.0f} s  {'time' if fresh else 'memory'}  {title}")
    return found


def run_case(case: Case, device: str, repeats: int, meter: Meter) -> dict[object, list[Cost] | str]:
    """Costs of a case's baselines and of our losses."""
    arena = Arena(case.shape, device)
    losses = {name: _lazy(getattr(arena, name)) for name in case.baselines}
    losses |= {ours: arena.ours(ours) for ours in case.ours}
    return take_turns(losses, meter, repeats, arena.policy.zero_grad, may_lack=case.baselines)


def _lazy(build: Callable[[], Callable[[], Tensor]]) -> Callable[[], Tensor]:
    """Build a baseline at its first step, where what is missing is caught."""
    built = cache(build)
    return lambda: built()()


def profile(repeats: int, meter: Meter) -> dict[str, list[Cost]]:
    """Seconds of each part of a dense step on the second shape, by torch.profiler; faults and bytes are the step's."""
    arena = Arena(SECOND, "cpu")
    loss = arena.ours(Ours(), spans=True)

    def step() -> None:
        arena.policy.zero_grad()
        with record_function("step"):
            value = loss()
            with record_function("backward"):
                value.backward()

    for _ in range(2):
        step()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        whole = middle([meter(step) for _ in range(repeats)])
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
    return {part: [replace(whole, seconds=seconds)] for part, seconds in found.items()}


def vocabulary_part(repeats: int, meter: Meter) -> dict[str, list[Cost]]:
    """The second shape's vocabulary alone, forward and backward: all rows, a fifth of them, and other ways."""
    arena = Arena(SECOND, "cpu")
    rows = 2 * SECOND.pairs * SECOND.response
    weight, ref_weight = arena.policy.lm_head.weight, arena.reference.lm_head.weight
    hidden, ref_hidden = (torch.randn(rows, weight.shape[1]).to(weight) for _ in range(2))
    hidden.requires_grad_()
    labels = arena.ids[:, -SECOND.response :].flatten()

    def loss(statistics: Callable[..., TokenStatistics], count: int = rows) -> Tensor:
        found = statistics(hidden[:count], weight, ref_hidden[:count], ref_weight, labels[:count])
        return found.policy_logps.sum() - found.expected_log_ratio.sum()  # one mask for both

    losses = {
        "dense": lambda: loss(token_statistics),
        "80% sparse": lambda: loss(token_statistics, rows // 5),
        "no logits kept": lambda: loss(partial(token_statistics, logits_budget=0)),
        "all logits kept": lambda: loss(partial(token_statistics, logits_budget="100%")),
        "log_softmax of each chunk, checkpointed": lambda: loss(_log_softmax_of_chunks),
    }
    if shutil.which("g++"):  # else the plain code would run, and be measured, in its place
        losses["elementwise part compiled"] = lambda: loss(_compiled)
    return take_turns(losses, meter, repeats, arena.policy.zero_grad)


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


def main(
    device: Annotated[str, typer.Option(help="cpu, or cuda for bf16 at Pythia-1.4B and 7B class shapes")] = "cpu",
    repeats: Annotated[int, typer.Option(min=1, help="steps of each contestant that the medians are of")] = 7,
    shapes: Annotated[int | None, typer.Option(help="measure only the first so many shapes, nothing else")] = None,
    results: Annotated[Path, typer.Option(help="folder of the CSV files")] = Path(__file__).parent / "results",
) -> None:
    """Measure the grid, and on CPU the growth and the parts too, and write them to CSV."""
    results.mkdir(parents=True, exist_ok=True)
    plan = (device, shapes, repeats)
    # What a step holds at its peak is the same each time: one step that counts is enough.
    fresh = in_process({}, measure, device, shapes, 1)
    kept = KEPT if device == "cpu" else {}
    try:
        timed = in_process(kept, measure, *plan, fresh)
    except FreshMemory as error:
        sys.exit(f"refused: {error}")
    write(results, device, fresh, timed)
    if device == "cpu" and shapes is None:
        typer.echo(report.bars_table(results))


if __name__ == "__main__":
    typer.run(main)
