"""Real runs of Axolotl on a tiny model; the fixtures have the names of those of OpenRLHF, and mean Axolotl's here."""

import json
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
from axolotl_runs import axolotl_server, settings, start
from host_runs import Run, merge
from process_server import ProcessServer

# Axolotl has an environment of its own: make test-axolotl.
collect_ignore_glob = [] if find_spec("axolotl") else ["test_*.py"]


@pytest.fixture(scope="session")
def server(extensions) -> Iterator[ProcessServer]:
    """What starts, and ends, every process of these tests."""
    server = axolotl_server(extensions)
    yield server
    server.close()


@pytest.fixture(scope="session")
def config(tiny) -> Callable[..., dict]:
    """The usual YAML; arguments are merged over it."""
    return lambda **over: merge(settings(tiny), over)


@pytest.fixture(scope="session")
def launch(server, tmp_path_factory) -> Callable[..., Run]:
    """`start`, by default in a new folder."""

    def launch(config: dict, folder: Path | None = None, **how) -> Run:
        return start(server, config, folder or tmp_path_factory.mktemp("run"), **how)

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
