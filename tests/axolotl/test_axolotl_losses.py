"""Losses and what is logged of them: Axolotl's own DPO is our `loss: dpo`, and somebody else's loss trains too."""

import json
from pathlib import Path

import pytest
import torch
from axolotl_runs import LORA, losses
from host_runs import difference_of_weights
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from sparsepo_plugin import load_run
from sparsepo_plugin.checkpoint import load_description
from sparsepo_plugin.record import read_metrics

THIRD_PARTY = Path(__file__).parents[1] / "third_party"
LOSS, WEIGHTS = 1e-5, 1e-5  # as in test_axolotl_runs


def test_loss_dpo_equals_axolotls_own(train):
    ours = train(loss="dpo", sparsepo=None)
    own = train(loss=None, sparsepo=None, plugins=None)
    state = json.loads((own.folder / "out" / "checkpoint-10" / "trainer_state.json").read_text())
    logged = torch.tensor([row["loss"] for row in state["log_history"] if "loss" in row], dtype=torch.float64)
    assert len(logged) == 10 and logged[0] != logged[-1]
    assert (losses(ours) - logged).abs().max() < LOSS
    assert difference_of_weights(ours, own) < WEIGHTS
    assert load_description(ours.folder / "out").loss.loss == "dpo"  # also of a loss without masks


def test_a_loss_of_somebody_elses(config, launch):
    loss = {"loss": "registered-margin", "registered-margin": {"mask": "registered-probe", "margin": 0.2}}
    settings = config(**loss, sparsepo=None, loss_plugins=["token_ideas.registering"])
    run = launch(settings, path=THIRD_PARTY)
    assert run.code == 0, run.output[-4000:]
    assert {key for key in run.weights if key.startswith("mask_head.")} == {
        "mask_head.reward.linear.weight",
        "mask_head.reward.linear.bias",
    }
    assert "margin_met" in read_metrics(run.folder / "out")[0]


PAIR = {"prompt": "w1 w2", "chosen": "w3 w4 w5", "rejected": "w6 w7"}


@pytest.fixture(scope="module")
def evaluated(config, launch, tmp_path_factory):
    """A LoRA run with a prompt strategy, evaluated on one pair, at the start and after every fifth step."""
    file = tmp_path_factory.mktemp("pair") / "pair.jsonl"
    file.write_text(json.dumps(PAIR) + "\n")
    (dataset,) = config()["datasets"]
    data = {**dataset, "type": "chatml.prompt_pairs"}
    settings = config(**LORA, datasets=[data], test_datasets=[{**data, "path": str(file)}])
    run = launch({**settings, "eval_steps": 5, "use_tensorboard": True})
    assert run.code == 0, run.output[-4000:]
    return run


def test_evaluation_and_loggers(evaluated):
    rows = read_metrics(evaluated.folder / "out")
    assert [row["step"] for row in rows if row["split"] == "eval"] == [0, 5, 10]
    (folder,) = {event.parent for event in evaluated.folder.rglob("events*")}
    events = EventAccumulator(str(folder))
    events.Reload()
    for name, split in (("train/sparsity_reward_chosen", "train"), ("eval/token_kl_chosen", "eval")):
        logged = [event.value for event in events.Scalars(name)]
        own = [row[name.partition("/")[2]] for row in rows if row["split"] == split]
        assert logged == pytest.approx(own, rel=1e-6)


def test_a_finished_run_can_be_asked(evaluated):
    """The policy, its reference, the masks and the joining of texts are those of the last evaluation."""
    out = evaluated.folder / "out"
    (*_, last) = [row for row in read_metrics(out) if row["split"] == "eval"]
    run = load_run(out)
    assert run.description.joining.output_template == "{}<|im_end|>"
    table = run.tokens(**PAIR)
    for name in ("chosen", "rejected"):
        rows = table.of(name)
        assert rows.logps.sum().item() == pytest.approx(last[f"logps/{name}"], abs=1e-4)
        assert 0.5 * rows.advantage.sum().item() == pytest.approx(last[f"{name}_reward"], abs=1e-5)
        assert rows.mask_reward.mean().item() == pytest.approx(last[f"mask_reward_mean_{name}"], abs=1e-5)


def test_qlora(config, launch):
    """4-bit weights on the CPU: they train, and the reference is the model without the adapter."""
    settings = config(**{**LORA, "adapter": "qlora", "load_in_4bit": True, "val_set_size": 0.1})
    run = launch({**settings, "eval_steps": 5})
    assert run.code == 0, run.output[-4000:]
    rows = read_metrics(run.folder / "out")
    assert [row["step"] for row in rows if row["split"] == "eval"] == [0, 5, 9]
    assert rows[0]["token_kl_chosen"] == 0 and rows[-1]["token_kl_chosen"] > 0
