"""Runs of TRL's trainer, each made once."""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import trl_runs
from trl_runs import TrlRun


@pytest.fixture(scope="session")
def train(tiny, tmp_path_factory) -> Callable[..., TrlRun]:
    """A run in this process; the same arguments give the same finished run."""
    finished: dict[str, TrlRun] = {}

    def train(**over) -> TrlRun:
        key = json.dumps(over, sort_keys=True)
        if key not in finished:
            finished[key] = trl_runs.train(tmp_path_factory.mktemp("run"), tiny, **over)
        return finished[key]

    return train


@pytest.fixture
def make(tiny, tmp_path) -> Callable[..., object]:
    """A trainer that has not trained, in this process."""
    return lambda **over: trl_runs.make_trainer(tmp_path, tiny, **over)


@pytest.fixture(scope="session")
def launch(server, tiny, tmp_path_factory) -> Callable[..., TrlRun]:
    """A run in two processes under `accelerate launch`, to its end."""

    def launch(**over) -> TrlRun:
        folder = tmp_path_factory.mktemp("launched")
        spec = folder / "spec.json"
        spec.write_text(json.dumps({"folder": str(folder), "tiny": str(tiny), **over}))
        kind = "--use_deepspeed" if "deepspeed" in over else "--multi_gpu"  # which is how it says torchrun
        plain = [
            "--num_machines",
            "1",
            "--mixed_precision",
            "no",
            "--dynamo_backend",
            "no",
            "--main_process_port",
            "0",
        ]
        command = [sys.executable, "-m", "accelerate.commands.launch", kind, "--num_processes", "2", *plain]
        path = [str(Path(trl_runs.__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])]
        done = server.run(*command, trl_runs.__file__, spec, PYTHONPATH=os.pathsep.join(path), DS_ACCELERATOR="cpu")
        return TrlRun(done.returncode, done.stdout + done.stderr, folder)

    return launch
