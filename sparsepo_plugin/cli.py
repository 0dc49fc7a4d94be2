"""`sparsepo …`: train, check, and what is registered."""

import inspect
import os
import sys
from pathlib import Path
from typing import Annotated

import typer
from pydantic import BaseModel

from .config import FROM_RUN, mask_class, objective_class, section_keys
from .data.command import data
from .errors import SparsePOError, one_line_errors
from .launch import run
from .options import describe, options_of
from .registry import MASKS, OBJECTIVES, Registry
from .train import read_run

app = typer.Typer(no_args_is_help=True, add_completion=False)
ConfigFile = Annotated[Path, typer.Argument(metavar="FILE.yaml", help="OpenRLHF's flags, nested, and the loss.")]
NumProcesses = Annotated[int, typer.Option(min=0, help="Processes to start; 0: one a GPU, or one.")]
Name = Annotated[str | None, typer.Argument(help="One of them: its options, types, defaults and description.")]
HOST_FLAGS = {"allow_extra_args": True, "ignore_unknown_options": True}


@app.callback()
def main() -> None:
    """Token-level preference optimisation with sparse masks."""
    # Modules of one's own beside the YAML are found, as they are with python -m.
    sys.path.insert(0, os.getcwd())


@app.command(context_settings=HOST_FLAGS)
def train(context: typer.Context, file: ConfigFile, num_processes: NumProcesses = 0) -> None:
    """Train on pairs with FILE.yaml; further arguments are OpenRLHF's flags and win over the file."""
    arguments = ["--config", str(file), *context.args]
    with one_line_errors():
        host, args = read_run(arguments, processes=num_processes or _gpus() or 1)
        host.get_loss_class(args.loss, args.loss_plugins)(args)  # its mistakes, before any process is started
    raise typer.Exit(run("sparsepo_plugin.train", num_processes, arguments))


@app.command(context_settings=HOST_FLAGS)
def sft(context: typer.Context, file: ConfigFile, num_processes: NumProcesses = 0) -> None:
    """Fine-tune before preferences, with OpenRLHF's own train_sft and FILE.yaml."""
    arguments = ["--config", str(file), *context.args]
    with one_line_errors():
        read_run(arguments, "train_sft", num_processes or _gpus() or 1)
    raise typer.Exit(run("sparsepo_plugin.sft", num_processes, arguments))


@app.command(context_settings=HOST_FLAGS)
def check(
    context: typer.Context,
    file: ConfigFile,
    causality: Annotated[
        bool, typer.Option("--causality", help="Load the models that masks read, and see whether masks look ahead.")
    ] = False,
) -> None:
    """Validate FILE.yaml, its models' configs and every pair of its data, without training."""
    from .hosts.openrlhf.checks import check_run

    with one_line_errors():
        host, args = read_run(["--config", str(file), *context.args])
        loss = host.get_loss_class(args.loss, args.loss_plugins)(args)
        strategy = host.get_strategy(args)
        if args.loss is None:
            check_run(args, strategy)
        else:
            loss.check(strategy)
        strategy.find_checkpoint(loss.run_options(), loss.restored_options())
        if causality:
            if args.loss is None:
                raise SparsePOError("--causality has no effect: OpenRLHF's own DPO reads no masks")
            for line in loss.check_causality():
                typer.echo(line)
    typer.echo(f"{file}: ok, loss: {args.loss or 'OpenRLHF DPO'}")


app.command()(data)


@app.command()
def masks(name: Name = None) -> None:
    """List the masks that a loss can read, or describe NAME."""
    with one_line_errors():
        if name is None:
            _list(MASKS)
        else:
            cls = mask_class(name, "mask")
            _describe(cls, options_of(cls, without=FROM_RUN))


@app.command()
def objectives(name: Name = None) -> None:
    """List the objectives that `loss:` can name, or describe NAME."""
    with one_line_errors():
        if name is None:
            _list(OBJECTIVES)
        else:
            cls = objective_class(name)
            _describe(cls, options_of(cls, without=cls.from_host), section_keys(cls))


def _list(registry: Registry) -> None:
    for name in registry.names():
        summary = (inspect.getdoc(registry.get(name)) or "").partition("\n")[0]
        typer.echo(f"{name:<12} {summary}")


def _describe(cls: type, *models: type[BaseModel]) -> None:
    typer.echo(f"{inspect.getdoc(cls) or cls.__name__}\n\nKeys of the YAML, with type and default:")
    rows = [row for model in models for row in describe(model)]
    widths = [max((len(row[column]) for row in rows), default=0) for column in range(3)]
    for row in rows:
        typer.echo("  " + "  ".join(cell.ljust(width) for cell, width in zip(row, [*widths, 0], strict=True)).rstrip())


def _gpus() -> int:
    import torch

    return torch.cuda.device_count()
