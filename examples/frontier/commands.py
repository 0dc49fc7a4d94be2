"""Where `make frontier` writes, and how it calls the command line."""

import os
import subprocess
import sys
from pathlib import Path

import typer

OUTPUT = Path("runs/frontier")  # base.yaml, sft.yaml and more.yaml have it too


def sparsepo(command: str, *arguments: object, **environment: str) -> None:
    """A command of this environment; its exit code is ours if it fails."""
    print(f"\nsparsepo {command}", flush=True)
    words = [Path(sys.executable).with_name("sparsepo"), command, *map(str, arguments)]
    if code := subprocess.run(words, env=os.environ | environment).returncode:
        raise typer.Exit(code)
