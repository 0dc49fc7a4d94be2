"""`deepspeed --module sparsepo_plugin.train --config FILE.yaml`: OpenRLHF's trainer, patched, on one process."""

import importlib
import sys
from types import SimpleNamespace
from typing import Any

from .hosts.openrlhf.overlay import activate
from .launch import telling_its_starter


def main(argv: list[str] | None = None, program: str = "train_dpo") -> None:
    """Train with OpenRLHF.

    Args:
        argv: OpenRLHF's command line, `--config` included; the process's own by default.
        program: `train_dpo` or `train_sft`.
    """
    from .hosts.openrlhf.checks import check_models

    with telling_its_starter():
        host, args = read_run(sys.argv[1:] if argv is None else argv, program)
        if getattr(args, "loss", None) is None:
            check_models(args)  # a loss does it itself
        host.train(args)


def read_run(argv: list[str], program: str = "train_dpo", processes: int | None = None) -> tuple[Any, SimpleNamespace]:
    """A program of OpenRLHF and its arguments, checked as far as that needs neither models nor data.

    Args:
        argv: OpenRLHF's command line, `--config` included.
        program: `train_dpo` or `train_sft`.
        processes: How many will train; by default as the launcher says.

    Raises:
        SparsePOError: OpenRLHF cannot be used, or a flag is wrong; names it.
    """
    from .hosts.openrlhf.flags import check_flags

    host = load_host(program)
    args = host.parse_args(argv)
    check_flags(args, host.get_parser(), processes)
    return host, args


def load_host(program: str = "train_dpo") -> Any:
    """A program of the patched `openrlhf.cli`.

    Raises:
        SparsePOError: OpenRLHF is missing, has another version, or the patches do not apply.
    """
    activate()
    return importlib.import_module(f"openrlhf.cli.{program}")


if __name__ == "__main__":
    main()
