"""`deepspeed --module sparsepo_plugin.train --config FILE.yaml`: OpenRLHF's trainer, patched, on one process."""

import importlib
from typing import Any

from .hosts.openrlhf.overlay import activate
from .launch import telling_its_starter


def main(argv: list[str] | None = None, program: str = "train_dpo") -> None:
    """Train with OpenRLHF.

    Args:
        argv: OpenRLHF's command line, `--config` included; the process's own by default.
        program: `train_dpo` or `train_sft`.
    """
    with telling_its_starter():
        host = load_host(program)
        host.train(host.parse_args(argv))


def load_host(program: str = "train_dpo") -> Any:
    """A program of the patched `openrlhf.cli`.

    Raises:
        SparsePOError: OpenRLHF is missing, has another version, or the patches do not apply.
    """
    activate()
    return importlib.import_module(f"openrlhf.cli.{program}")


if __name__ == "__main__":
    main()
