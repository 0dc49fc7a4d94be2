"""One pair file, model, seed, order and learning rate: every host gives the losses and the weights of OpenRLHF's.

Ten fp32 steps. The tolerances are a few times the largest difference seen, which comes from the order of fp32
additions alone (hosts pad batches and clip gradients in orders of their own); OpenRLHF's losses are read from float32.
"""

import sys
from pathlib import Path

import axolotl_runs
import pytest
import torch
from host_runs import Run, difference, difference_of_weights, merge
from trl_runs import train as train_trl
from weighed_pairs import write_weighed

import sparsepo_plugin

LOSS, WEIGHTS = 1e-5, 1e-5
THIRD_PARTY = Path(__file__).parents[1] / "third_party"
AXOLOTL = Path(__file__).parents[2] / ".venv-axolotl" / "bin" / "python"
WARMUP = 2  # steps of ten: Axolotl makes two of one

# What each case is, in the keys of a YAML that all hosts share.
LEARNED = {"mask": "learned", "l1_reward": 1e-3, "l1_kl": 1e-3, "mask_lr": 1e-2}
CASES = {
    "shared": {"loss": "sparsepo", "sparsepo": {**LEARNED, "shared": True}},
    "independent": {"loss": "sparsepo", "sparsepo": {**LEARNED, "shared": False}},
    "dpo": {"loss": "dpo", "dpo": {}},
    "third party": {
        "loss": "registered-margin",
        "loss_plugins": ["token_ideas.registering"],
        "registered-margin": {"mask": "registered-probe", "margin": 0.2, "mask_lr": 1e-2},
    },
    "weights of the data": {
        "loss": "sparsepo",
        "sparsepo": {"reward": {"mask": "column", "end": 0.5}, "kl": {"mask": "uniform", "value": 0.5}},
    },
}


@pytest.fixture(autouse=True)
def _third_party(monkeypatch):
    """What a test in this process imports and registers is gone after it."""
    monkeypatch.syspath_prepend(THIRD_PARTY)
    for registry in (sparsepo_plugin.MASKS, sparsepo_plugin.OBJECTIVES):
        registry.names()  # which loads our own
        monkeypatch.setattr(registry, "_classes", dict(registry._classes))
    yield
    for name in [name for name in sys.modules if name.partition(".")[0] == "token_ideas"]:
        del sys.modules[name]


@pytest.fixture(scope="session")
def pairs(tiny):
    """The file of a case."""
    weighed = write_weighed(tiny / "weighed_ended.jsonl", 80, seed=0, end=" </s>")
    return lambda case: weighed if case == "weights of the data" else tiny / "ended.jsonl"


@pytest.fixture(scope="session")
def openrlhf(config, launch, pairs):
    """OpenRLHF's run of a case, made once."""
    finished: dict[str, Run] = {}

    def openrlhf(name: str) -> Run:
        if name not in finished:
            data = {"dataset": str(pairs(name))}
            settings = config(sparsepo=None, data=data, lr_warmup_ratio=WARMUP / 10)
            finished[name] = launch(merge(settings, CASES[name]), path=THIRD_PARTY)
            assert finished[name].code == 0, finished[name].output[-4000:]
        return finished[name]

    return openrlhf


def order_of_openrlhf() -> list[int]:
    """In which its sampler takes the rows."""
    return torch.randperm(80, generator=torch.Generator().manual_seed(42)).tolist()


@pytest.mark.parametrize("case", CASES)
def test_trl(case, openrlhf, pairs, tiny, tmp_path):
    given = CASES[case]
    loss = {"loss": given["loss"], "loss_plugins": given.get("loss_plugins", [])}
    options = dict.fromkeys(("mask", "shared", "l1_reward", "l1_kl", "mask_lr")) | given[given["loss"]]
    given = {"pairs": str(pairs(case)), "order": order_of_openrlhf(), "warmup_steps": WARMUP}
    run = train_trl(tmp_path, tiny, loss_options=options, **given, **loss)
    losses, weights = difference(run, openrlhf(case))
    assert len(run.losses) == 10 and run.losses[0] != run.losses[-1]
    assert losses < LOSS and weights < WEIGHTS


@pytest.fixture(scope="session")
def axolotl(extensions):
    """What starts runs of Axolotl in its own environment."""
    server = axolotl_runs.axolotl_server(extensions, str(AXOLOTL))
    yield server
    server.close()


@pytest.mark.skipif(not AXOLOTL.is_file(), reason="needs the environment of make env-axolotl")
@pytest.mark.parametrize("case", CASES)
def test_axolotl(case, openrlhf, pairs, axolotl, tiny, tmp_path):
    lines = pairs(case).read_text().splitlines(keepends=True)
    ordered = tmp_path / "ordered.jsonl"
    ordered.write_text("".join(lines[row] for row in order_of_openrlhf()))
    settings = merge(axolotl_runs.settings(tiny), {"sparsepo": None})
    (dataset,) = settings["datasets"]
    settings |= {
        "datasets": [{**dataset, "path": str(ordered)}],
        "plugins": [axolotl_runs.OURS, "in_order.InOrder"],
        "shuffle_merged_datasets": False,
        "lr_scheduler": "cosine_with_min_lr",
        "lr_scheduler_kwargs": {"min_lr_rate": 0.1},
        "warmup_steps": WARMUP,
        "adam_beta2": 0.95,
    }
    run = axolotl_runs.start(axolotl, {**settings, **CASES[case]}, tmp_path, path=THIRD_PARTY)
    assert run.code == 0, run.output[-4000:]
    losses, theirs = axolotl_runs.losses(run), openrlhf(case).losses
    assert len(losses) == len(theirs) == 10 and losses[0] != losses[-1]
    assert (losses - theirs).abs().max() < LOSS
    assert difference_of_weights(run, openrlhf(case)) < WEIGHTS
