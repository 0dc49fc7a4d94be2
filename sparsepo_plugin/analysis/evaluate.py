"""`sparsepo evaluate`: the mean reward of a run's own samples, and how far from its reference it draws them."""

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import typer

from ..checkpoint import DESCRIPTION
from ..errors import SparsePOError
from ..generation.prompts import Prompt, read_prompts
from ..generation.rewards import Reward, load_reward, scored
from ..generation.sampling import Completion, Sampler, Sampling
from ..record import read_metrics
from ..run import Run, default_device, load_run
from .files import check_output, write_lines
from .intervals import mean_with_interval

EVALUATION = "evaluation.jsonl"
MEASURES = ("reward", "kl", "log_ratio")

# What TRL and Axolotl leave, and OpenRLHF with ckpt.save_hf.
_CHECKPOINT = re.compile(r"checkpoint-(\d+)|global_step(\d+)_hf")

Row = dict[str, Any]


class Place(NamedTuple):
    """A saved policy of a run: the finished one, whose name is empty, or a checkpoint."""

    folder: Path
    checkpoint: str
    step: int | None


def evaluate(
    runs: list[Path],
    prompts: Path,
    reward: str,
    sampling: Sampling,
    temperatures: list[float],
    *,
    checkpoints: bool = False,
    reference: str | None = None,
    output: Path | None = None,
    allow_code: bool = False,
) -> Iterator[str]:
    """Write a line of JSON for each sample of each run, and beside it the means; give a line for each mean.

    Args:
        runs: Their output folders.
        prompts: JSON lines with `prompt`.
        reward: See `load_reward`.
        sampling: How completions are drawn, but for the temperature.
        temperatures: To draw at.
        checkpoints: Evaluate the checkpoints below a run's folder too.
        reference: To compare with in place of the run's own.
        output: Of the samples of a single run; `evaluation.jsonl` in the run's folder by default.
        allow_code: Import what the runs' descriptions name, and run code that models bring.

    Raises:
        SparsePOError: a run, the prompts or the reward cannot be used, or the output not be written.
    """
    outputs = _outputs(runs, output)
    places = [_places(run, checkpoints) for run in runs]
    settings = [replace(sampling, temperature=temperature) for temperature in dict.fromkeys(temperatures)]
    asked, score = read_prompts(prompts), load_reward(reward, default_device())
    options = {
        "reward": reward,
        "prompts": str(prompts),
        "reference": reference,
        **{name: getattr(sampling, name) for name in ("seed", "count", "top_p", "max_new_tokens")},
    }
    load, draw = partial(load_run, allow_code=allow_code), partial(_drawn, settings, asked, score)
    for run, of_run, path in zip(runs, places, outputs, strict=True):
        rows = list(_rows(of_run, reference, load, draw))
        write_lines(path, map(json.dumps, [options, *rows]))
        results = summarise(rows, sampling.seed)
        write_lines(path.with_suffix(".json"), [json.dumps({"options": options, "results": results}, indent=2)])
        yield from (f"{run}: {_told(result)}" for result in results)


def summarise(rows: list[Row], seed: int) -> list[Row]:
    """Means and intervals for each checkpoint and temperature; what is resampled is prompts, with all their samples.

    Args:
        rows: Of the file, without its head; neighbours have checkpoint, temperature and prompt in common.
        seed: Of the resampling.
    """
    results = []
    for (checkpoint, step, temperature), group in groupby(rows, key=itemgetter("checkpoint", "step", "temperature")):
        by_prompt = [list(samples) for _, samples in groupby(group, key=itemgetter("prompt_index"))]
        result = {"checkpoint": checkpoint, "step": step, "temperature": temperature, "prompts": len(by_prompt)}
        for name in MEASURES:
            values = [[row[name] for row in samples] for samples in by_prompt]
            known = values[0][0] is not None
            result[name] = mean_with_interval([fmean(own) for own in values], seed) if known else None
        results.append(result)
    return results


def _outputs(runs: list[Path], output: Path | None) -> list[Path]:
    if output is not None and len(runs) > 1:
        raise SparsePOError(f"-o {output} is one file, and {len(runs)} runs are given; without it each gets its own")
    outputs = [output or run / EVALUATION for run in runs]
    for path in outputs:
        if path.suffix != ".jsonl":
            raise SparsePOError(f"-o {path} must end in .jsonl, the means are written beside it as .json")
        check_output(path)
    return outputs


def _places(run: Path, checkpoints: bool) -> list[Place]:
    """The policies of a run that are evaluated, by step, the finished one last."""
    finished = (run / DESCRIPTION).is_file()
    if not checkpoints:
        return [Place(run, "", _step(run))]
    folders = [path.parent for path in run.rglob(DESCRIPTION) if _CHECKPOINT.fullmatch(path.parent.name)]
    folders = sorted((folder for folder in folders if folder != run), key=_step)
    if not folders:
        raise SparsePOError(
            f"--checkpoints: {run} has none: checkpoint-N of TRL and Axolotl, or global_stepN_hf of OpenRLHF, which "
            "ckpt.save_hf leaves in ckpt.path"
        )
    return [Place(folder, folder.name, _step(folder)) for folder in folders] + [Place(run, "", _step(run))] * finished


def _step(folder: Path) -> int | None:
    """The optimizer step of a checkpoint, by its name; of another run the last that it logged."""
    if named := _CHECKPOINT.fullmatch(folder.name):
        return int(named[1] or named[2])
    return max((row["step"] for row in read_metrics(folder)), default=None)


def _rows(
    places: list[Place], reference: Any, load: Callable[..., Run], draw: Callable[..., Iterator[Row]]
) -> Iterator[Row]:
    """The samples of one policy after another; the reference is loaded once."""
    for place in places:
        run = load(place.folder, reference=reference)
        reference = run.reference
        if not run.has_reference:
            typer.echo(f"{place.folder}: the run has no reference, KL is null; --reference names one", err=True)
        yield from (
            {"checkpoint": place.checkpoint, "step": place.step, **row} for row in draw(run, str(place.folder))
        )
        del run  # makes room for the next


def _drawn(settings: list[Sampling], prompts: list[Prompt], score: Reward, run: Run, name: str) -> Iterator[Row]:
    for sampling in settings:
        sampler = Sampler(run.policy, run.tokenizer, run.description.joining, sampling)
        for completions in sampler.batches(prompts, f"{name}, temperature {sampling.temperature:g}"):
            rows, measured = scored(score, completions), _divergences(run, completions)
            for row, (kl, log_ratio), completion in zip(rows, measured, completions, strict=True):
                numbers = {"kl": kl, "log_ratio": log_ratio, "num_tokens": len(completion.ids)}
                yield {"temperature": sampling.temperature, **row, **numbers}


def _divergences(run: Run, completions: list[Completion]) -> list[list[float | None]]:
    """KL and log-ratio of each completion, of the very tokens that were drawn."""
    if not run.has_reference:
        return [[None, None]] * len(completions)
    return run.divergence([completion.sequence for completion in completions]).T.tolist()


def _told(result: Row) -> str:
    place = f"{result['checkpoint'] or 'the policy'}, step {result['step']}, temperature {result['temperature']:g}"
    return f"{place}: " + ", ".join(_mean(name.replace("_", "-"), result[name]) for name in MEASURES)


def _mean(name: str, found: dict[str, float | None] | None) -> str:
    if found is None:
        return f"{name} unknown"
    between = "" if found["low"] is None else f" [{found['low']:.4g}, {found['high']:.4g}]"
    return f"{name} {found['mean']:.4g}{between}"
