"""`sparsepo train` and its processes end together, and the last line says why."""

import signal
from pathlib import Path

import pytest
import yaml
from host_runs import merge, places
from process_server import Stop

ENDLESS = {"train": {"max_epochs": 1000, "micro_batch_size": 4}, "ckpt": {"save_steps": 1, "max_num": 1}}


@pytest.fixture
def train(sparsepo, config, tmp_path):
    """`sparsepo train` in two processes on a run without end, stopped at its first checkpoint."""

    def train(stop: Stop | None = None, **over):
        file = tmp_path / "run.yaml"
        file.write_text(yaml.safe_dump(merge(places(tmp_path), merge(config(**ENDLESS), over))))
        return sparsepo("train", str(file), "--num-processes", "2", stop=stop, cwd=tmp_path)

    return train


@pytest.fixture
def first(tmp_path) -> Path:
    return tmp_path / "checkpoints" / "global_step1"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_reaches_every_process(number, train, first):
    """The code is the shells': 128 and the number of the signal."""
    done = train(Stop(first, signal=number, rank="main"))
    assert done.returncode == 128 + number and not done.left
    assert "Traceback" not in done.stderr and not (first.parents[1] / "out" / "sparsepo.json").exists()


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_dies_ends_the_others(rank, train, first):
    done = train(Stop(first, after=0.1, rank=rank))
    assert done.returncode == 128 + signal.SIGKILL and not done.left
    assert done.stderr.splitlines()[-1] == (
        "sparsepo: error: a process of the run was ended by SIGKILL, as the kernel does when memory runs out"
    )


def test_the_reason_of_one_rank_is_the_last_line(train, tmp_path):
    """The other one would have told of a lost connection, at length."""
    rows = tmp_path / "rows.jsonl"
    good = '{"prompt": "w1 ", "chosen": "w2", "rejected": "w3"}\n'
    rows.write_text(good * 8 + good.replace("w3", ""))
    done = train(data={"dataset": str(rows)})
    assert done.returncode == 2 and not done.left
    assert "Traceback" not in done.stderr
    assert f"{rows}, row 9: rejected is empty" in done.stderr.splitlines()[-1]


FAULTY = """
import os

from sparsepo_plugin import OBJECTIVES
from sparsepo_plugin.objectives.sparsepo import SparsePO


@OBJECTIVES.register("faulty")
class Faulty(SparsePO):
    calls = 0

    def forward(self, *args):
        self.calls += 1  # the check before training calls once
        if os.environ["RANK"] == "1" and self.calls > 1:
            raise KeyError("a fault of one rank")
        return super().forward(*args)
"""


def test_a_fault_in_the_code_of_one_rank_is_the_last_line_too(train, tmp_path):
    """With its traceback above it, and none of the other rank's."""
    (tmp_path / "faulty.py").write_text(FAULTY)
    done = train(loss="faulty", loss_plugins=["faulty"], sparsepo=None)
    assert done.returncode == 1 and not done.left
    assert done.stderr.count("Traceback") == 1
    assert done.stderr.splitlines()[-1] == "sparsepo: error: KeyError: 'a fault of one rank' (rank 1)"
