"""OpenRLHF, as a patched copy of the pinned release: what the command line asks of it."""

import sys
from pathlib import Path

from ...errors import SparsePOError


def check(file: Path, overrides: list[str], causality: bool = False) -> str:
    """Find what can be found before training, with all models' configs and every row.

    Args:
        file: OpenRLHF's flags, nested, and the loss.
        overrides: Flags that win over it.
        causality: Load the models that masks read, and print for each mask whether it looks ahead.

    Returns:
        The name of the loss.

    Raises:
        SparsePOError: the line names the key, the model, or the file and row.
    """
    from .checks import check_run  # here, because torch and the host take seconds to import
    from .program import read_run

    host, args = read_run(["--config", str(file), *overrides])
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
            print(line)
    return args.loss or "OpenRLHF DPO"


def command(file: Path, num_processes: int, overrides: list[str], program: str = "train_dpo") -> list[str]:
    """What to start for a run.

    Args:
        file: OpenRLHF's flags, nested, and the loss.
        num_processes: 0 for one a GPU, or one without any.
        overrides: Flags that win over the file.
        program: `train_dpo` or `train_sft`.
    """
    start = [sys.executable, "-m", "sparsepo_plugin.start", program, str(num_processes)]
    return [*start, "--config", str(file), *overrides]


def show_flags(program: str = "train_dpo") -> str:
    """OpenRLHF's own flags by section, with types and defaults.

    Raises:
        SparsePOError: OpenRLHF cannot be used.
    """
    from .flags import by_section
    from .program import load_program

    return by_section(load_program(program).get_parser())
