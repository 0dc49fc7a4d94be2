"""The programs of the patched OpenRLHF, and their arguments."""

import importlib
from types import SimpleNamespace
from typing import Any

from ...errors import naming_faults
from ..gathers import gather_one_by_one
from .flags import check_flags
from .overlay import activate


def read_run(argv: list[str], program: str = "train_dpo", processes: int | None = None) -> tuple[Any, SimpleNamespace]:
    """A program of OpenRLHF and its arguments, checked as far as that needs neither models nor data.

    Args:
        argv: OpenRLHF's command line, `--config` included.
        program: `train_dpo` or `train_sft`.
        processes: How many will train; by default as the launcher says.

    Raises:
        SparsePOError: OpenRLHF cannot be used, or a flag is wrong; names it.
    """
    host = load_program(program)
    args = host.parse_args(argv)
    check_flags(args, host.get_parser(), processes)
    return host, args


def load_program(program: str = "train_dpo") -> Any:
    """A program of the patched `openrlhf.cli`.

    Raises:
        SparsePOError: OpenRLHF is missing, has another version, or the patches do not apply; or what it imports fails.
    """
    activate()
    with naming_faults("OpenRLHF cannot be imported", None):
        gather_one_by_one()
        return importlib.import_module(f"openrlhf.cli.{program}")
