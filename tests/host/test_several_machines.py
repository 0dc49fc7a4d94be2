"""A run on two machines: two launchers on this one, each with a cache and, if need be, a disk of its own."""

import socket
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch.distributed as dist
import torch.multiprocessing as multiprocessing
import yaml
from host_runs import Run, difference, difference_of_weights, merge
from process_server import ProcessServer, Stop

from sparsepo_plugin.hosts.openrlhf.program import load_program

ZERO_3 = {"ds": {"zero_stage": 3}, "train": {"micro_batch_size": 4}}
HERE = {"ckpt": {"output_dir": "out", "path": "checkpoints"}, "logger": {"tensorboard_dir": "tb"}}
ONE_DISK, TWO_DISKS = ["disk", "disk"], ["first", "second"]  # the folders that the same YAML is started in

TRAIN = ["sparsepo_plugin.train", "--config", "run.yaml"]
TORCHRUN = ["-m", "torch.distributed.run", "--nnodes", "2", "--nproc_per_node", "1"]
LAUNCHERS = {
    "torchrun": lambda place: [*TORCHRUN, *place, "-m", *TRAIN],
    "deepspeed": lambda place: [
        *("-m", "deepspeed.launcher.runner", "--hostfile", "hosts", "--no_ssh"),
        *place,
        "--module",
        *TRAIN,
    ],
    "sparsepo": lambda place: [*TORCHRUN, *place, "--no_python", "sparsepo", "train", "run.yaml"],
}


@pytest.fixture
def machines(server, tmp_path) -> Iterator[list[ProcessServer]]:
    """What starts the processes of each machine."""
    caches = [str(tmp_path / f"cache{number}") for number in range(2)]
    machines = [ProcessServer({**server.environment, "XDG_CACHE_HOME": cache}) for cache in caches]
    yield machines
    for machine in machines:
        machine.close()


@pytest.fixture
def both(machines, tmp_path) -> Callable[..., list[Run]]:
    """Start a YAML on both machines; `stops` is for each."""

    def both(
        settings: dict, folders: list[str], launcher: str = "torchrun", stops: tuple[Stop | None, ...] = (None, None)
    ) -> list[Run]:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            master = ["--master_addr", "127.0.0.1", "--master_port", str(probe.getsockname()[1])]

        def start(number: int) -> Run:
            folder = tmp_path / folders[number]
            folder.mkdir(exist_ok=True)
            (folder / "run.yaml").write_text(yaml.safe_dump(merge(HERE, settings)))
            (folder / "hosts").write_text("one slots=1\nother slots=1\n")
            command = LAUNCHERS[launcher](["--node_rank", str(number), *master])
            done = machines[number].run(sys.executable, *command, cwd=folder, stop=stops[number])
            return Run(done.returncode, done.stdout + done.stderr, folder)

        with ThreadPoolExecutor() as threads:
            return list(threads.map(start, range(2)))

    return both


def told(run: Run) -> str:
    (line,) = [line for line in run.output.splitlines() if "sparsepo: error:" in line]
    return line


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_two_machines_are_one_with_two_processes(launcher, both, train, config, tmp_path):
    """With disks of their own: the first has what a run leaves, the second an empty folder, both a patched host."""
    first, second = both(config(**ZERO_3), TWO_DISKS, launcher)
    assert (first.code, second.code) == (0, 0), first.output[-2000:] + second.output[-2000:]
    assert difference(first, train(processes=2, **ZERO_3)) == (0, 0)
    assert {"model.safetensors", "mask_head.safetensors", "sparsepo.json", "README.md"} <= set(names(first.folder))
    assert names(second.folder) == ["hosts", "out", "run.yaml"]
    assert len(list(tmp_path.glob("cache?/*/openrlhf-*/openrlhf"))) == 2


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*"))


@pytest.mark.parametrize("number", range(2))
def test_a_machine_that_dies_ends_the_run_on_the_other(number, both, launch, train, config, tmp_path):
    """With one line. What both have written to the disk that they share is resumed to the same bits."""
    settings = merge(config(**ZERO_3), {"ckpt": {"save_steps": 2, "load_enable": True}})
    last = tmp_path / "disk" / "checkpoints" / "global_step4"
    runs = both(settings, ONE_DISK, stops=tuple(Stop(last) if machine == number else None for machine in range(2)))
    dead, other = runs[number], runs[1 - number]
    assert dead.code is None and other.code == 1 and "Traceback" not in other.output.partition("torch/distributed")[0]
    assert time.time() - last.stat().st_mtime < 60
    assert "another rank has ended" in told(other)
    resumed = launch(settings, processes=2, folder=other.folder)
    assert resumed.code == 0 and "Resuming from" in resumed.output, resumed.output[-4000:]
    assert difference_of_weights(resumed, train(processes=2, **ZERO_3)) == 0


@pytest.mark.parametrize("used", [{"save_steps": 2}, {"load_enable": True}], ids=str)
def test_checkpoints_need_one_disk(used, both, config):
    """Each rank writes its own shards, and the record of all is with the first."""
    for run in both(merge(config(**ZERO_3), {"ckpt": used}), TWO_DISKS):
        assert "ckpt.path: checkpoints of rank 1 on " in told(run) and " is not the folder of rank 0 on " in told(run)
        assert run.code and names(run.folder) == ["hosts", "run.yaml"]


def find_another(rank: int, folder: str) -> None:
    load_program()
    from openrlhf.utils.checkpoints import Checkpoints
    from openrlhf.utils.config import ConfigError

    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    checkpoints = Checkpoints(f"{folder}/absent/checkpoints")
    checkpoints.start(load_enable=True, saves=False)
    checkpoints.agree()
    checkpoints.resumed = {"tag": f"global_step{4 - 2 * rank}"}
    try:
        checkpoints.agree()
    except ConfigError as error:
        Path(folder, f"{rank}.txt").write_text(str(error))
    dist.destroy_process_group()


def test_all_resume_the_same_checkpoint(tmp_path):
    """A shared file system may show a new one later to one machine than to another."""
    multiprocessing.spawn(find_another, (str(tmp_path),), nprocs=2)
    lines = [(tmp_path / f"{rank}.txt").read_text() for rank in range(2)]
    assert lines[0] == lines[1] and "rank 0 finds global_step4 and rank 1" in lines[0] and " global_step2:" in lines[0]
    assert names(tmp_path) == ["0.txt", "1.txt"]


def test_processes_are_the_launchers_business(sparsepo, config, tmp_path):
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(merge(HERE, config())))
    done = sparsepo("train", "run.yaml", "--num-processes", "2", cwd=tmp_path, LOCAL_RANK="0")
    assert done.returncode == 2 and names(tmp_path) == ["run.yaml"]
    assert done.stderr.splitlines()[-1] == (
        "sparsepo: error: --num-processes has no effect: a launcher has started this process"
    )
