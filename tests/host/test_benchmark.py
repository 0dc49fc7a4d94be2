"""The benchmark compares steps that compute the same thing: hosts' own losses against ours on its batches.

float32; steps sum tokens and rows in different orders: 1e-5, relative.
And it refuses to time a step that touches fresh memory.
"""

import csv
import json
import math
import sys
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import pytest
from host_runs import write_pairs

SCRIPT = """
import json
from dataclasses import replace
from contestants import Arena, Ours
from shapes import Shape, Size
import torch

shape = Shape(2, 8, 5, 64, size=Size("tiny", 16, 32, 2, 2))
found = {}
for name, batch in {"padded": shape, "packed": replace(shape, packed=True), "lora": replace(shape, lora=True)}.items():
    arena = Arena(batch, "cpu")
    losses = {"openrlhf_dpo": arena.openrlhf_dpo(), "plain": arena.plain()}
    if not batch.packed:
        losses["trl_dpo"] = arena.trl_dpo()
    losses |= {key: arena.ours(Ours(key)) for key in ("dpo", "simpo", "sepo")}
    losses |= {key: arena.ours(Ours(mask=key)) for key in ("uniform", "learned", "activation")}
    for key, loss in losses.items():
        arena.policy.zero_grad()
        value = loss()
        value.backward()
        norm = sum(p.grad.double().square().sum() for p in arena.policy.parameters() if p.grad is not None).sqrt()
        found[f"{name} {key}"] = [value.item(), norm.item()]
print(json.dumps(found))
"""

# The program itself, on a small shape where a baseline maps new memory at each step.
MAPPING = """
import mmap
import typer
from contestants import Arena
from grid import GRID, Case
from shapes import Shape, Size
import step_cost

GRID["cpu"] = [Case(Shape(2, 32, 32, 32_000, size=Size("tiny", 16, 32, 2, 2)))]
build = Arena.openrlhf_dpo

def mapping(arena):
    loss = build(arena)
    def step():
        with mmap.mmap(-1, 1 << 26) as block:
            block[::4096] = bytes(1 << 14)
        return loss()
    return step

Arena.openrlhf_dpo = mapping
if __name__ == "__main__":
    typer.run(step_cost.main)
"""


@pytest.fixture(scope="module")
def python(server):
    """Runs Python with the benchmark's modules on its path."""
    return partial(server.run, sys.executable, PYTHONPATH=str(Path(__file__).parents[2] / "benchmarks"))


@pytest.fixture(scope="module")
def found(python):
    done = python("-c", SCRIPT)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.skipif(not find_spec("trl"), reason="needs TRL")
def test_trl_computes_the_same(found):
    assert found["padded trl_dpo"] == pytest.approx(found["padded openrlhf_dpo"], rel=1e-5)
    assert found["lora trl_dpo"] == pytest.approx(found["lora dpo"], rel=1e-5)


@pytest.mark.parametrize("layout", ["padded", "packed"])
def test_hosts_and_ours_compute_the_same(found, layout):
    """Loss and gradient norm: OpenRLHF's DPO is `dpo`, and the authors' arithmetic is `uniform` masks of 1."""
    assert found[f"{layout} dpo"] == pytest.approx(found[f"{layout} openrlhf_dpo"], rel=1e-5)
    assert found[f"{layout} uniform"] == pytest.approx(found[f"{layout} plain"], rel=1e-5)
    assert found[f"{layout} dpo"] != pytest.approx(found[f"{layout} uniform"], rel=1e-5)


def test_packed_is_padded(found):
    for key in ("dpo", "simpo", "sepo", "uniform", "learned", "activation"):
        assert found[f"packed {key}"] == pytest.approx(found[f"padded {key}"], rel=1e-5), key


def test_with_lora_the_reference_is_the_policy(found):
    """A fresh adapter changes nothing, so the loss is log 2 and only its gradient is not zero."""
    for key in ("dpo", "uniform", "learned", "activation"):
        loss, norm = found[f"lora {key}"]
        assert loss == pytest.approx(0.6931472, abs=1e-6)
        assert norm > 0


# The measurement of starts, two steps of one seed.
STARTS = """
import sys
import mask_start

mask_start.LANGUAGE_STEPS, mask_start.STEPS, mask_start.EVERY, mask_start.HELD_OUT = 3, 2, 1, 4
mask_start.SEEDS, mask_start.L1 = (0,), (0.001,)
mask_start.main(*map(mask_start.Path, sys.argv[1:]))
"""


def test_every_start_has_its_curve(python, tmp_path):
    """Before the first step policy and reference are one: no KL, and the loss is log 2 and the L1 term."""
    pairs = write_pairs(tmp_path / "pairs.jsonl", 40, seed=0)
    done = python("-c", STARTS, str(pairs), str(pairs), str(tmp_path))
    assert done.returncode == 0, done.stderr[-2000:]
    with (tmp_path / "mask_start.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["init"], row["step"]) for row in rows] == [
        (init, step) for init in ("positive", "linear", "normal") for step in "012"
    ]
    for row in rows[::3]:
        assert float(row["token_kl"]) == 0
        assert float(row["loss"]) >= round(math.log(2), 4)
    assert all(float(row["token_kl"]) > 0 for row in rows[2::3])
    means = [float(row["mask_mean"]) for row in rows[::3]]
    assert 0.3 < means[0] < 0.7 and max(means[1:]) < 0.3, "the starts differ"


def test_a_run_with_fresh_memory_is_refused(python, tmp_path):
    """Its children are new processes that import the script, so it is a file."""
    script, results = tmp_path / "mapping.py", tmp_path / "results"
    script.write_text(MAPPING)
    done = python(str(script), "--shapes", "1", "--repeats", "1", "--results", str(results))
    assert done.returncode == 1, done.stderr[-2000:]
    refusal = [line for line in done.stderr.splitlines() if line.startswith("refused: ")]
    assert len(refusal) == 1 and "openrlhf_dpo touched 16,3" in refusal[0]
    assert "Traceback" not in done.stderr
    assert list(results.iterdir()) == []
