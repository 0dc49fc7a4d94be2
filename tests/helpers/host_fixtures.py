"""Real runs of the patched OpenRLHF under DeepSpeed, on a tiny model made here."""

import json
import os
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
import yaml
from host_runs import RELEASES, Run, merge, places
from process_server import Finished, ProcessServer, Stop

# Of all processes: as pytest was given them, before a test in this process activates the patched host.
ENVIRONMENT = {
    **os.environ,
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
}


@pytest.fixture(scope="session")
def extensions(pytestconfig) -> Path:
    """Where torch compiles DeepSpeed's C++: below this checkout, as another one's is compiled anew for its paths."""
    folder = Path(os.environ.get("TORCH_EXTENSIONS_DIR") or pytestconfig.cache.mkdir("torch_extensions"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def release(request) -> str | None:
    """Which OpenRLHF runs, one of RELEASES; None for the installed one."""
    return getattr(request, "param", None)


@pytest.fixture(scope="session")
def server(extensions, release) -> Iterator[ProcessServer]:
    """What starts, and ends, every process of these tests."""
    environment = {**ENVIRONMENT, "TORCH_EXTENSIONS_DIR": str(extensions)}
    if release:
        inherited = filter(None, [environment.get("PYTHONPATH")])
        environment["PYTHONPATH"] = os.pathsep.join([str(RELEASES / release), *inherited])
    server = ProcessServer(environment)
    yield server
    server.close()


@pytest.fixture(scope="session")
def sparsepo(server) -> Callable[..., Finished]:
    """The installed command."""
    return partial(server.run, "sparsepo")


@pytest.fixture(scope="session")
def launch(server, tmp_path_factory) -> Callable[..., Run]:
    """Run the training module, forked from a warm process or under torchrun or DeepSpeed's launcher, to its end."""

    def launch(
        config: dict,
        *flags: str,
        processes: int = 1,
        folder: Path | None = None,
        launcher: str = "fork",
        stop: Stop | None = None,
        path: Path | None = None,
    ) -> Run:
        folder = folder or tmp_path_factory.mktemp("run")
        file = folder / "run.yaml"
        file.write_text(yaml.safe_dump(merge(places(folder), config)))
        command = ["sparsepo_plugin.train", "--config", str(file), *flags]
        starts = {
            "torchrun": [*("-m", "torch.distributed.run", "--standalone"), "--nproc_per_node", str(processes), "-m"],
            "deepspeed": [*("-m", "deepspeed.launcher.runner"), "--num_gpus", str(processes), "--module"],
        }
        if launcher == "fork":
            done = server.fork(*command, processes=processes, stop=stop, path=path)
        else:
            done = server.run(sys.executable, *starts[launcher], *command, stop=stop)
        assert not server.running()
        return Run(done.returncode, done.stdout + done.stderr, folder)

    return launch


@pytest.fixture(scope="session")
def train(config, launch) -> Callable[..., Run]:
    """`launch` of a run that must succeed; the same arguments give the same finished run."""
    finished: dict[str, Run] = {}

    def train(processes: int = 1, **over) -> Run:
        key = json.dumps([processes, over], sort_keys=True)
        if key not in finished:
            run = launch(config(**over), processes=processes)
            assert run.code == 0, run.output[-4000:]
            finished[key] = run
        return finished[key]

    return train
