"""`sparsepo sweep`, as a user types it: against runs of the same YAML, and killed for real."""

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest
import torch
import yaml
from host_runs import merge
from process_server import Stop
from safetensors.torch import load_file
from test_stopping import FAULTY

from sparsepo_plugin.errors import REASON
from sparsepo_plugin.sweep.runs import _end_leftovers

RESUMED = {"ckpt": {"save_steps": 3, "load_enable": True}}
GRID = ("--set", "loss=dpo,sparsepo", "--seeds", "3", "-o", "sweep")
DPO, SPARSEPO = "dpo_seed=3", "sparsepo_seed=3"


@pytest.fixture
def sweep(sparsepo, config, tmp_path):
    """The command on `base.yaml`, in the folder of the test."""

    def sweep(*flags: str, stop: Stop | None = None, **over):
        (tmp_path / "base.yaml").write_text(yaml.safe_dump(merge(config(), over)))
        return sparsepo("sweep", "base.yaml", *flags, stop=stop, cwd=tmp_path)

    return sweep


def finished(folder: Path) -> bool:
    return json.loads((folder / "point.json").read_text())["finished"]


def test_a_killed_sweep_goes_on_to_the_same_weights(sweep, launch, config, tmp_path):
    """Every process is killed in the second run, after its first checkpoint; nothing is repeated, nothing lost."""
    folder = tmp_path / "sweep"
    done = sweep(*GRID, stop=Stop(folder / SPARSEPO / "run/checkpoints_dpo/latest"), **RESUMED)
    assert done.returncode is None
    assert finished(folder / DPO) and not finished(folder / SPARSEPO)
    before = {path: os.stat(path).st_mtime_ns for path in (folder / DPO).rglob("*")}

    done = sweep(*GRID, **RESUMED)
    assert done.returncode == 0 and not done.left, done.stderr
    assert done.stdout.splitlines() == [f"{folder}: 2 points, 1 of them finished before", f"{SPARSEPO}: done, 0 to go"]
    assert {path: os.stat(path).st_mtime_ns for path in (folder / DPO).rglob("*")} == before
    for name, over in ((DPO, {"loss": "dpo", "sparsepo": None}), (SPARSEPO, {})):
        assert finished(folder / name)
        lines = (folder / name / "run/sparsepo_metrics.jsonl").read_text().splitlines()
        assert [json.loads(line)["step"] for line in lines] == list(range(1, 11))
        alone = launch(merge(config(train={"seed": 3}), over))
        assert alone.code == 0, alone.output[-4000:]
        theirs, ours = (
            load_file(place / "model.safetensors") for place in (alone.folder / "out", folder / name / "run")
        )
        assert all(torch.equal(value, ours[key]) for key, value in theirs.items())

    done = sweep(*GRID, model={"beta": 0.25}, **RESUMED)
    assert done.returncode == 2
    assert f"{folder / DPO} is finished, with model.beta: 0.5 and not 0.25: take another folder" in done.stderr


def test_a_signal_ends_every_process(sweep, tmp_path):
    endless = {"train": {"max_epochs": 1000}, "ckpt": {"save_steps": 1, "max_num": 1}}
    second = tmp_path / "sweep/sparsepo_seed=1/run/checkpoints_dpo/latest"
    stop = Stop(second, signal=signal.SIGTERM, rank="main")
    done = sweep("--seeds", "0,1", "--set", "loss=sparsepo", "-o", "sweep", "--jobs", "2", stop=stop, **endless)
    assert done.returncode == 128 + signal.SIGTERM and not done.left
    assert "Traceback" not in done.stderr
    assert not any(finished(folder) for folder in (tmp_path / "sweep").glob("*_seed=*"))


def test_failures_are_listed_and_the_rest_is_run(sweep, tmp_path):
    (tmp_path / "faulty.py").write_text(FAULTY.replace('os.environ["RANK"] == "1"', "True"))
    short = {"loss_plugins": ["faulty"], "data": {"max_samples": 24}}
    done = sweep("--set", "loss=faulty,sparsepo", "--seeds", "0", "-o", "sweep", **short)
    assert done.returncode == 1
    folder = tmp_path / "sweep"
    line = f"failed: {folder}/faulty_seed=0/log.txt: sparsepo: error: KeyError: 'a fault of one rank' (rank 0)"
    assert done.stderr.splitlines() == [line]
    assert "Traceback" in (folder / "faulty_seed=0/log.txt").read_text()
    assert not finished(folder / "faulty_seed=0") and finished(folder / "sparsepo_seed=0")


def test_the_last_point_is_checked_before_the_first_is_run(sweep, tmp_path):
    done = sweep("--set", "loss=dpo,sparsepo", "--set", "sparsepo.l1_kl=0.1,-1", "--seeds", "0", "-o", "sweep")
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("sparsepo: error: sparsepo_sparsepo.l1_kl=-1_seed=0: sparsepo.l1_kl: "), line
    assert [path.name for path in tmp_path.iterdir()] == ["base.yaml"]


def test_what_has_outlived_a_sweep_is_ended_by_the_next(tmp_path):
    """The processes of a point, and of no other."""
    started = [
        subprocess.Popen(["sleep", "600"], env={**os.environ, REASON: str(tmp_path / name / "reason")})
        for name in ("mine", "other")
    ]
    try:
        _end_leftovers([tmp_path / "mine"])
        assert started[0].poll() is not None and started[1].poll() is None
    finally:
        for process in started:
            process.kill()
            process.wait()
