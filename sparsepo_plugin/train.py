"""`deepspeed --module sparsepo_plugin.train --config FILE.yaml`: OpenRLHF's trainer, patched, on one process."""

import os
import sys
from importlib.util import find_spec

from .errors import SparsePOError, telling_its_starter
from .hosts.openrlhf.program import read_run


def main(argv: list[str] | None = None, program: str = "train_dpo") -> None:
    """Train with OpenRLHF.

    Args:
        argv: OpenRLHF's command line, `--config` included; the process's own by default.
        program: `train_dpo` or `train_sft`.
    """
    from .hosts.openrlhf.checks import check_models

    with telling_its_starter():
        if "RANK" not in os.environ and find_spec("mpi4py") is None:  # by which DeepSpeed would look for it
            raise SparsePOError("RANK is not in the environment: start with `sparsepo train`, deepspeed or torchrun")
        host, args = read_run(sys.argv[1:] if argv is None else argv, program)
        if getattr(args, "loss", None) is None:
            check_models(args)  # a loss does it itself
        host.train(args)


if __name__ == "__main__":
    main()
