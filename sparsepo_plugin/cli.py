"""`sparsepo …`: train, check, recipes, data, and what is registered."""

import inspect
import os
import sys
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from .data.command import data
from .errors import SparsePOError, one_line_errors
from .hosts import HOSTS, load_host, openrlhf
from .launch import run
from .recipes import copy_recipe, list_recipes

# What imports torch is imported where it is used: the rest answers at once.
if TYPE_CHECKING:
    from pydantic import BaseModel

    from .registry import Registry

app = typer.Typer(no_args_is_help=True, add_completion=False)
ConfigFile = Annotated[
    Path, typer.Argument(metavar="FILE.yaml", help="The YAML of OpenRLHF or Axolotl, with the loss.")
]
SftFile = Annotated[Path, typer.Argument(metavar="FILE.yaml", help="The flags of OpenRLHF's train_sft, nested.")]
NumProcesses = Annotated[int, typer.Option(min=0, help="Processes to start; 0: one a GPU, or one.")]
Name = Annotated[str | None, typer.Argument(help="One of them: its options, types, defaults and description.")]
RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="The output folder of a finished run, of any host.")]
PairsFile = Annotated[Path, typer.Option("--pairs", help="JSON lines with prompt, chosen and rejected.")]
AllowCode = Annotated[
    bool, typer.Option("--allow-code", help="Import the masks and models that the run brings; its author chose them.")
]
PromptsFile = Annotated[Path, typer.Option("--prompts", help="JSON lines with prompt: text, or a list of messages.")]
RewardName = Annotated[
    str,
    typer.Option(
        "--reward",
        metavar="NAME",
        help="vader; a classifier's folder or hub name, for its probability of POSITIVE; a reward model with one "
        "output; or package.module:function of a list of prompts and a list of texts.",
    ),
]
TopP = Annotated[float, typer.Option(help="Draw from the likeliest tokens that have this probability together.")]
MaxNewTokens = Annotated[int, typer.Option(help="The longest completion, in tokens.")]
Seed = Annotated[int, typer.Option(help="Of everything that is drawn.")]
BatchSize = Annotated[int, typer.Option(help="Completions at a time.")]
HOST_FLAGS = {"allow_extra_args": True, "ignore_unknown_options": True}


class HostCommand(TyperCommand):
    """A command that takes the flags of the file's host too, and shows OpenRLHF's in its help."""

    def format_help(self, ctx: typer.Context, formatter: Any) -> None:
        """The command's own help and, after it, the flags of OpenRLHF's program."""
        super().format_help(ctx, formatter)
        typer.echo(f"Axolotl's keys: {HOSTS['axolotl'].docs}. OpenRLHF's flags, as keys of the YAML nested:\n")
        try:
            typer.echo(openrlhf.show_flags("train_sft" if self.name == "sft" else "train_dpo"))
        except SparsePOError as error:
            typer.echo(f"  {error}")


def _show_versions(asked: bool) -> None:
    if asked:
        typer.echo(f"sparsepo-plugin {version('sparsepo-plugin')}")
        for host in HOSTS.values():
            if host.version:
                typer.echo(f"{host.name} {host.version}")
        raise typer.Exit


@app.callback()
def main(
    versions: Annotated[
        bool, typer.Option("--version", callback=_show_versions, is_eager=True, help="Of the plugin and the hosts.")
    ] = False,
) -> None:
    """Token-level preference optimisation with sparse masks."""
    # Modules of one's own beside the YAML are found, as they are with python -m.
    sys.path.insert(0, os.getcwd())


@app.command(cls=HostCommand, context_settings=HOST_FLAGS)
def train(context: typer.Context, file: ConfigFile, num_processes: NumProcesses = 0) -> None:
    """Train on pairs with FILE.yaml; further arguments are its host's flags and win over the file."""
    with one_line_errors():
        command = load_host(file).command(file, num_processes, context.args)
    raise typer.Exit(run(command))


@app.command(cls=HostCommand, context_settings=HOST_FLAGS)
def sft(context: typer.Context, file: SftFile, num_processes: NumProcesses = 0) -> None:
    """Fine-tune before preferences, with OpenRLHF's own train_sft and FILE.yaml."""
    raise typer.Exit(run(openrlhf.command(file, num_processes, context.args, "train_sft")))


@app.command(cls=HostCommand, context_settings=HOST_FLAGS)
def check(
    context: typer.Context,
    file: ConfigFile,
    causality: Annotated[
        bool, typer.Option("--causality", help="Load the models that masks read, and see whether masks look ahead.")
    ] = False,
) -> None:
    """Validate FILE.yaml, its models' configs and every pair of its data, without training."""
    with one_line_errors():
        host = load_host(file)
        if causality and host is not openrlhf:
            raise SparsePOError("--causality: only a YAML of OpenRLHF can be asked")
        loss = host.check(file, context.args, **({"causality": True} if causality else {}))
    typer.echo(f"{file}: ok, loss: {loss}")


@app.command()
def sweep(
    file: ConfigFile,
    seeds: Annotated[str, typer.Option(help="Seeds, with commas: 0,1,2.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="A folder, with a folder for each point.")],
    sets: Annotated[
        list[str] | None, typer.Option("--set", help="key=value,value: each is tried; may be given again.")
    ] = None,
    variants: Annotated[
        Path | None, typer.Option(help="A YAML of names, each with keys of FILE.yaml: each is tried.")
    ] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Runs at a time.")] = 1,
    num_processes: NumProcesses = 0,
) -> None:
    """Train a grid of runs, each in a folder of its own; the same command again goes on where it was ended."""
    with one_line_errors():
        from .sweep.runs import sweep

        code = sweep(file, sets or [], seeds, output, variants, jobs, num_processes)
    raise typer.Exit(code)


@app.command()
def recipes() -> None:
    """List the examples that ship with the plugin: whose they are, what they are of, and their names for `copy`."""
    rows = [("host", "experiment", "method", "name"), *list_recipes()]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    for row in rows:
        typer.echo("  ".join(cell.ljust(width) for cell, width in zip(row, [*widths, 0], strict=True)))


@app.command()
def copy(name: Annotated[str, typer.Argument(help="As `sparsepo recipes` lists it.")]) -> None:
    """Put an example here, with the files that it names; nothing is overwritten."""
    with one_line_errors():
        for file in copy_recipe(name, Path()):
            typer.echo(file)


app.command()(data)


@app.command()
def score(
    run: Annotated[
        Path,
        typer.Argument(metavar="RUN", help="The output folder of a finished run; with --reference any model's name."),
    ],
    pairs: PairsFile,
    output: Annotated[Path, typer.Option("-o", "--output", help="JSON lines, one a token, or one a pair.")],
    reference: Annotated[
        str | None, typer.Option(metavar="MODEL", help="To compare with, in place of the run's own reference.")
    ] = None,
    column: Annotated[
        str | None,
        typer.Option(
            "--to-column",
            metavar="NAME",
            help="Write the pairs again, with this number as weights for mask: column; or tis or cdpo, made of it.",
        ),
    ] = None,
    transform: Annotated[
        str | None,
        typer.Option(help="What makes weights of scores with tis: rank_based, threshold_and_scale or origin."),
    ] = None,
    count: Annotated[int | None, typer.Option("-n", help="The first so many pairs; all without it.")] = None,
    allow_code: AllowCode = False,
) -> None:
    """Write every number of every response token of pairs: log-ratio, KL, masks, advantage; or one as weights."""
    with one_line_errors():
        if column is not None:
            from .analysis.columns import to_column

            to_column(run, pairs, output, column, reference, transform, count, allow_code)
            return
        if transform is not None:
            raise SparsePOError("--transform has no effect without --to-column tis")
        from .analysis.score import score

        score(run, pairs, output, reference, count, allow_code)


@app.command()
def heatmap(
    run: RunFolder,
    pairs: PairsFile,
    output: Annotated[Path, typer.Option("-o", "--output", help="An HTML file; it needs nothing else.")],
    count: Annotated[int, typer.Option("-n", help="The first so many pairs.")] = 8,
    compare: Annotated[list[Path] | None, typer.Option(help="Another run beside it; may be given again.")] = None,
    allow_code: AllowCode = False,
) -> None:
    """Show the tokens of pairs, coloured by log-ratio, KL, masks or advantage."""
    with one_line_errors():
        from .analysis.heatmap import heatmap

        heatmap([run, *(compare or [])], pairs, output, count, allow_code)


@app.command()
def curves(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN…", help="Output folders of runs, finished or not.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="A folder for PNG, SVG and CSV.")],
    pairs: Annotated[
        Path | None, typer.Option(help="Pairs, JSON lines: draw how the masks' values are distributed on them.")
    ] = None,
    count: Annotated[int | None, typer.Option("-n", help="The first so many pairs; all without it.")] = None,
    allow_code: AllowCode = False,
) -> None:
    """Draw sparsity, token KL, rewards and accuracy of runs against their steps."""
    with one_line_errors():
        from .analysis.curves import curves

        for path in curves(runs, output, pairs, count, allow_code):
            typer.echo(path)


@app.command()
def report(
    run: RunFolder,
    output: Annotated[Path, typer.Option("-o", "--output", help="An HTML file; it needs nothing else.")],
    pairs: Annotated[Path | None, typer.Option(help="Pairs, JSON lines: show what the run makes of them.")] = None,
    count: Annotated[int | None, typer.Option("-n", help="The first so many pairs; 8 without it.")] = None,
    allow_code: AllowCode = False,
) -> None:
    """Put a run on one page: its last numbers, curves, masks, tokens and options."""
    with one_line_errors():
        from .analysis.report import report

        report(run, output, pairs, count, allow_code)


@app.command()
def generate(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Folder or hub name, or a finished run's folder.")],
    prompts: PromptsFile,
    reward: RewardName,
    output: Annotated[Path, typer.Option("-o", "--output", help="JSON lines with prompt, chosen and rejected.")],
    count: Annotated[int, typer.Option(help="Completions of each prompt, of which best and worst are the pair.")] = 2,
    temperature: Annotated[float, typer.Option(help="Logits are divided by it.")] = 1.0,
    top_p: TopP = 1.0,
    max_new_tokens: MaxNewTokens = 128,
    prefix_tokens: Annotated[
        str | None, typer.Option(metavar="LOW-HIGH", help="Cut prompts of so many tokens from text or prompt.")
    ] = None,
    min_difference: Annotated[float, typer.Option(help="Leave out pairs whose scores are nearer.")] = 0.0,
    seed: Seed = 0,
    batch_size: BatchSize = 256,
) -> None:
    """Draw completions of prompts, score them, and write best and worst as pairs; killed, it goes on where it was."""
    with one_line_errors():
        from .generation.generate import generate
        from .generation.sampling import Sampling

        sampling = Sampling(temperature, top_p, count, max_new_tokens, seed, batch_size)
        generate(model, prompts, reward, output, sampling, prefix_tokens, min_difference)


@app.command()
def evaluate(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN…", help="Output folders of runs, of any host.")],
    prompts: PromptsFile,
    reward: RewardName,
    count: Annotated[int, typer.Option(help="Completions of each prompt.")] = 1,
    temperature: Annotated[
        list[float] | None, typer.Option(help="To draw at, by default 1; may be given again.")
    ] = None,
    top_p: TopP = 1.0,
    max_new_tokens: MaxNewTokens = 128,
    checkpoints: Annotated[bool, typer.Option("--checkpoints", help="The checkpoints in a run's folder too.")] = False,
    reference: Annotated[
        str | None, typer.Option(metavar="MODEL", help="To measure KL to, in place of the run's own reference.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="JSON lines; RUN/evaluation.jsonl without it.")
    ] = None,
    seed: Seed = 0,
    batch_size: BatchSize = 256,
    allow_code: AllowCode = False,
) -> None:
    """Draw completions from runs: their mean reward, and their KL to the reference, with intervals."""
    with one_line_errors():
        from .analysis.evaluate import evaluate
        from .generation.sampling import Sampling

        sampling = Sampling(1.0, top_p, count, max_new_tokens, seed, batch_size)
        options = {"checkpoints": checkpoints, "reference": reference, "output": output, "allow_code": allow_code}
        for line in evaluate(runs, prompts, reward, sampling, temperature or [1.0], **options):
            typer.echo(line)


@app.command()
def frontier(
    sweeps: Annotated[list[Path], typer.Argument(metavar="SWEEP…", help="Folders of sweeps, their runs evaluated.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="A folder for figures and tables.")],
    baseline: Annotated[str | None, typer.Option(help="Method to compare with; the first without it.")] = None,
    reference: Annotated[
        Path | None, typer.Option(help="Rewarded samples of the reference, of generate: where frontiers start.")
    ] = None,
    temperature: Annotated[float | None, typer.Option(help="Of the completions, where there are several.")] = None,
) -> None:
    """Draw the reward of methods against their KL, and compare them at equal KL."""
    with one_line_errors():
        from .analysis.frontier import frontier

        for path in frontier(sweeps, output, baseline, reference, temperature):
            typer.echo(path)


@app.command()
def localize(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN…", help="Output folders of finished runs.")],
    pairs: Annotated[
        Path, typer.Option("--pairs", help="Pairs, JSON lines, whose responses differ by edits of known words.")
    ],
    output: Annotated[Path, typer.Option("-o", "--output", help="A folder for CSV, PNG and SVG.")],
    count: Annotated[int | None, typer.Option("-n", help="The first so many pairs; all without it.")] = None,
    allow_code: AllowCode = False,
) -> None:
    """Measure whether masks, log-ratios and advantages are large where responses were edited."""
    with one_line_errors():
        from .analysis.localize import localize

        for line in localize(runs, pairs, output, count, allow_code):
            typer.echo(line)


@app.command()
def masks(name: Name = None) -> None:
    """List the masks that a loss can read, or describe NAME."""
    from .config import FROM_RUN, mask_class
    from .options import options_of
    from .registry import MASKS

    with one_line_errors():
        if name is None:
            _list(MASKS)
        else:
            cls = mask_class(name, "mask")
            _describe(cls, options_of(cls, without=FROM_RUN))


@app.command()
def objectives(name: Name = None) -> None:
    """List the objectives that `loss:` can name, or describe NAME."""
    from .config import objective_class, section_keys
    from .options import options_of
    from .registry import OBJECTIVES

    with one_line_errors():
        if name is None:
            _list(OBJECTIVES)
        else:
            cls = objective_class(name)
            _describe(cls, options_of(cls, without=cls.from_host), section_keys(cls))


def _list(registry: "Registry") -> None:
    for name in registry.names():
        summary = (inspect.getdoc(registry.get(name)) or "").partition("\n")[0]
        typer.echo(f"{name:<12} {summary}")


def _describe(cls: type, *models: "type[BaseModel]") -> None:
    from .options import describe

    typer.echo(f"{inspect.getdoc(cls) or cls.__name__}\n\nKeys of the YAML, with type and default:")
    rows = [row for model in models for row in describe(model)]
    widths = [max((len(row[column]) for row in rows), default=0) for column in range(3)]
    for row in rows:
        typer.echo("  " + "  ".join(cell.ljust(width) for cell, width in zip(row, [*widths, 0], strict=True)).rstrip())
