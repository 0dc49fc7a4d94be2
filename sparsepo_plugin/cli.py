"""`sparsepo …`: train, check, and what is registered."""

import inspect
import os
import socket
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
    raise typer.Exit(_start("sparsepo_plugin.train", num_processes, arguments))


@app.command(context_settings=HOST_FLAGS)
def sft(context: typer.Context, file: ConfigFile, num_processes: NumProcesses = 0) -> None:
    """Fine-tune before preferences, with OpenRLHF's own train_sft and FILE.yaml."""
    arguments = ["--config", str(file), *context.args]
    with one_line_errors():
        load_host("train_sft").parse_args(arguments)
    raise typer.Exit(_start("sparsepo_plugin.sft", num_processes, arguments))


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


def _start(module: str, num_processes: int, arguments: list[str]) -> int:
    """Run `module`: under DeepSpeed's launcher on GPUs, under torchrun on several CPU processes.

    One CPU process needs no launcher, whose traceback would follow a one-line error.
    """
    import torch

    environment = dict(os.environ)
    if gpus := torch.cuda.device_count():
        starter = ["deepspeed.launcher.runner", "--num_gpus", str(num_processes or gpus), "--module", module]
    elif num_processes > 1:
        starter = ["torch.distributed.run", "--standalone", "--nproc_per_node", str(num_processes), "-m", module]
    else:
        starter = [module]
        alone = {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 1, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": _free_port()}
        environment |= {name: str(value) for name, value in alone.items()}
    return subprocess.run([sys.executable, "-m", *starter, *arguments], env=environment).returncode


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _list(registry: Registry) -> None:
    for name in registry.names():
        summary = (inspect.getdoc(registry.get(name)) or "").partition("\n")[0]
        typer.echo(f"{name:<12} {summary}")
