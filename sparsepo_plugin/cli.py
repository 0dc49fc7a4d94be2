"""`sparsepo …`: train, check, and what is registered."""

import inspect
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

from .data.command import data
from .registry import MASKS, OBJECTIVES, Registry
from .train import load_host, one_line_errors

app = typer.Typer(
    help="Token-level preference optimisation with sparse masks.", no_args_is_help=True, add_completion=False
)
ConfigFile = Annotated[Path, typer.Argument(metavar="FILE.yaml", help="OpenRLHF's flags, nested, and the loss.")]
NumProcesses = Annotated[int, typer.Option(min=0, help="Processes to start; 0: one a GPU, or one.")]
HOST_FLAGS = {"allow_extra_args": True, "ignore_unknown_options": True}


@app.command(context_settings=HOST_FLAGS)
def train(context: typer.Context, file: ConfigFile, num_processes: NumProcesses = 0) -> None:
    """Train on pairs with FILE.yaml; further arguments are OpenRLHF's flags and win over the file."""
    arguments = ["--config", str(file), *context.args]
    with one_line_errors():
        host = load_host()
        args = host.parse_args(arguments)
        host.get_loss_class(args.loss)(args)  # the section's mistakes, before any process is started
    raise typer.Exit(subprocess.run([*launcher("sparsepo_plugin.train", num_processes), *arguments]).returncode)


@app.command(context_settings=HOST_FLAGS)
def sft(context: typer.Context, file: ConfigFile, num_processes: NumProcesses = 0) -> None:
    """Fine-tune before preferences, with OpenRLHF's own train_sft and FILE.yaml."""
    arguments = ["--config", str(file), *context.args]
    with one_line_errors():
        load_host("train_sft").parse_args(arguments)
    raise typer.Exit(subprocess.run([*launcher("sparsepo_plugin.sft", num_processes), *arguments]).returncode)


@app.command(context_settings=HOST_FLAGS)
def check(context: typer.Context, file: ConfigFile) -> None:
    """Validate FILE.yaml, its models' configs and every pair of its data, without training."""
    with one_line_errors():
        host = load_host()
        args = host.parse_args(["--config", str(file), *context.args])
        host.get_loss_class(args.loss)(args).check(host.get_strategy(args))
    typer.echo(f"{file}: ok, loss: {args.loss or 'OpenRLHF DPO'}")


app.command()(data)


@app.command()
def masks() -> None:
    """List the masks that `sparsepo.mask` can name."""
    _list(MASKS)


@app.command()
def objectives() -> None:
    """List the objectives."""
    _list(OBJECTIVES)


def launcher(module: str, num_processes: int) -> list[str]:
    """The command that starts `module`: DeepSpeed's launcher on GPUs, torchrun without."""
    import torch

    gpus = torch.cuda.device_count()
    if gpus:
        runner = "deepspeed.launcher.runner"
        return [sys.executable, "-m", runner, "--num_gpus", str(num_processes or gpus), "--module", module]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    return [*torchrun, "--nproc_per_node", str(num_processes or 1), "-m", module]


def _list(registry: Registry) -> None:
    for name in registry.names():
        summary = (inspect.getdoc(registry.get(name)) or "").partition("\n")[0]
        typer.echo(f"{name:<12} {summary}")
