"""What `sparsepo train` and `sparsepo sft` start for OpenRLHF: a process that looks at the run, and then is the run.

Where several processes train it becomes their launcher instead. So mistakes come before any other process is started,
and what takes seconds to import is imported once.
"""

import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from . import train
from .errors import SparsePOError, telling_its_starter

_MODULES = {"train_dpo": "sparsepo_plugin.train", "train_sft": "sparsepo_plugin.sft"}


def main(program: str, num_processes: int, argv: list[str]) -> None:
    """Run a program of OpenRLHF.

    Args:
        program: `train_dpo` or `train_sft`.
        num_processes: 0 for one a GPU, or one without any.
        argv: OpenRLHF's command line, `--config` included.
    """
    if "LOCAL_RANK" in os.environ:  # a launcher has started this process, and each of the others, as a rank
        with telling_its_starter():
            if num_processes:
                raise SparsePOError("--num-processes has no effect: a launcher has started this process")
        train.main(argv, program)
        return
    processes = num_processes or _gpus() or 1
    if processes == 1:
        with _reserved_port() as port:
            alone = {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 1, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            os.environ.update({name: str(value) for name, value in alone.items()})
            train.main(argv, program)
        return
    with telling_its_starter():
        host, args = train.read_run(argv, program, processes)
        if program == "train_dpo":
            host.get_loss_class(args.loss, args.loss_plugins)(args)
    _launch(_MODULES[program], processes, argv)


def _launch(module: str, processes: int, argv: list[str]) -> None:
    from deepspeed.launcher import runner

    # Its own port is always the same, and a second run on this machine would not get it.
    with _reserved_port() as port:
        runner.main(["--num_gpus", str(processes), "--master_port", str(port), "--module", module, *argv])


def _gpus() -> int:
    import torch

    return torch.cuda.device_count()


@contextmanager
def _reserved_port() -> Iterator[int]:
    """A port for the first rank to listen on: it is bound here meanwhile, so that no other program is given it."""
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind(("127.0.0.1", 0))
        yield holder.getsockname()[1]


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3:])
