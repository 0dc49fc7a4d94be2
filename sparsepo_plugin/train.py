"""`deepspeed --module sparsepo_plugin.train --config FILE.yaml`: OpenRLHF's trainer, patched, on one process."""

import importlib
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from .errors import SparsePOError
from .hosts.openrlhf.overlay import activate


def main(argv: list[str] | None = None, program: str = "train_dpo") -> None:
    """Train with OpenRLHF.

    Args:
        argv: OpenRLHF's command line, `--config` included; the process's own by default.
        program: `train_dpo` or `train_sft`.
    """
    with one_line_errors():
        host = load_host(program)
        host.train(host.parse_args(argv))


def load_host(program: str = "train_dpo") -> Any:
    """A program of the patched `openrlhf.cli`.

    Raises:
        SparsePOError: OpenRLHF is missing, has another version, or the patches do not apply.
    """
    activate()
    return importlib.import_module(f"openrlhf.cli.{program}")


@contextmanager
def one_line_errors(echo: Callable[[str], Any] = lambda line: print(line, file=sys.stderr)) -> Iterator[None]:
    """Turn bad input into one line and exit code 2.

    Mistakes in the configuration are seen by every rank and told by the first; those met on the way (a row of one
    rank's share, a loss that is not finite) are told by the rank that met them.
    """
    try:
        yield
    except ValueError as error:
        if not (isinstance(error, SparsePOError) or type(error).__name__ == "ConfigError"):
            raise
        rank = os.environ.get("RANK", "0")
        if rank == "0" or _distributed():
            echo(f"sparsepo: error: {error}" + ("" if rank == "0" else f" (rank {rank})"))
        sys.exit(2)


def _distributed() -> bool:
    import torch.distributed as dist

    return dist.is_initialized()


if __name__ == "__main__":
    main()
