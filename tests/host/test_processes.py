"""Runs forked from a warm process are those of a launcher, and no process outlives the test that started it."""

import subprocess
import sys
import time
from pathlib import Path

import process_server
import psutil
import pytest
import torch
from linux import die_with_parent
from process_server import ProcessServer, Stop

ZERO_3 = {"ds": {"zero_stage": 3}, "train": {"micro_batch_size": 4}, "sparsepo": {"depth": 2}}
UNSEEN = "setsid sleep 600 &"  # leaves the shell's session and, when the shell ends, its tree


@pytest.mark.parametrize(("processes", "over"), [(1, {}), (2, ZERO_3)])
def test_a_forked_run_is_that_of_torchrun_to_the_last_bit(processes, over, train, launch, config):
    forked, launched = train(processes, **over), launch(config(**over), processes=processes, launcher="torchrun")
    assert launched.code == 0, launched.output[-4000:]
    assert torch.equal(forked.losses, launched.losses)
    assert forked.weights.keys() == launched.weights.keys() and forked.weights
    assert all(torch.equal(value, launched.weights[key]) for key, value in forked.weights.items())


def test_a_killed_run_is_gone(launch, server, config, tmp_path):
    endless = config(train={"max_epochs": 1000, "micro_batch_size": 4}, ckpt={"save_steps": 1})
    first = tmp_path / "checkpoints" / "latest"
    run = launch(endless, processes=2, folder=tmp_path, stop=Stop(first))
    assert run.code is None and first.exists()
    assert not server.running()


def test_what_a_program_leaves_running_is_ended(server):
    for code in (0, 3):
        assert server.run("sh", "-c", f"{UNSEEN} exit {code}").returncode == code
        assert not server.running()


def test_an_interrupted_call_leaves_nothing(server, monkeypatch):
    """As by the timeout of a test; the next call works again."""
    own = ProcessServer(server.environment)
    own.run("true")
    started = [psutil.Process(own.process.pid)]

    def interrupted():
        started.extend(wait_for_descendants(started[0], 3))
        raise TimeoutError

    monkeypatch.setattr(own.process.stdout, "readline", interrupted)
    with pytest.raises(TimeoutError):
        own.run("sh", "-c", f"{UNSEEN} sleep 600")
    assert not any(process.is_running() for process in started)
    assert own.run("true").returncode == 0
    own.close()


def test_nothing_outlives_a_killed_pytest():
    """A small stand-in for pytest, killed while it waits for a program."""
    script = (
        "import os, process_server\n"
        f"process_server.ProcessServer(dict(os.environ)).run('sh', '-c', {f'{UNSEEN} sleep 600'!r})"
    )
    folder = Path(process_server.__file__).parent
    with subprocess.Popen([sys.executable, "-c", script], cwd=folder, preexec_fn=die_with_parent) as process:
        started = wait_for_descendants(psutil.Process(process.pid), 4)
        process.kill()
    _, alive = psutil.wait_procs(started, timeout=60)
    assert not alive


def wait_for_descendants(process: psutil.Process, count: int) -> list[psutil.Process]:
    while len(found := process.children(recursive=True)) < count:
        assert process.is_running()
        time.sleep(0.05)
    return found
