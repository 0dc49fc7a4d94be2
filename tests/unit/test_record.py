"""What a run tells of itself: its metrics file, progress line, summary and model card, against values by hand."""

import json
import math

import pytest
import yaml
from tiny import describe

from sparsepo_plugin import LossConfig
from sparsepo_plugin.card import card_text, write_card
from sparsepo_plugin.record import METRICS, MetricsFile, last_metrics, progress, read_metrics, summary

NUMBERS = {
    "loss": 0.61234,
    "accuracy": 0.75,
    "margin": 0.125,
    "sparsity_reward_chosen": 40.0,
    "sparsity_reward_rejected": 50.0,
    "sparsity_kl_chosen": 10.0,
    "sparsity_kl_rejected": 20.0,
    "token_kl_chosen": 0.25,
    "token_kl_rejected": 0.35,
    "masked_kl_margin": 9.0,
}


def test_a_line_a_step(tmp_path):
    log = MetricsFile(tmp_path / "new")
    log.write(1, {"loss": 0.5})
    log.write(1, {"loss": math.inf, "accuracy": math.nan}, split="eval")
    lines = (tmp_path / "new" / METRICS).read_text().splitlines()
    assert [json.loads(line) for line in lines] == [
        {"step": 1, "split": "train", "loss": 0.5},
        {"step": 1, "split": "eval", "loss": None, "accuracy": None},
    ]


@pytest.mark.parametrize(("resumed_at", "kept"), [(0, []), (2, [1, 2]), (9, [1, 2, 3])])
def test_steps_that_are_done_again_are_not_there_twice(resumed_at, kept, tmp_path):
    log = MetricsFile(tmp_path)
    for step in (1, 2, 3):
        log.write(step, {"loss": 1.0 / step})
    with log.path.open("a") as file:
        file.write('{"step": 4, "split": "tr')  # a kill cut it off
    again = MetricsFile(tmp_path, resumed_at)
    again.write(resumed_at + 1, {"loss": 0.25})
    assert [row["step"] for row in read_metrics(tmp_path)] == [*kept, resumed_at + 1]


def test_progress_line():
    assert progress(NUMBERS) == {
        "loss": "0.612",
        "accuracy": "0.75",
        "margin": "0.125",
        "sparsity": "45/15%",
        "kl": "0.3",
    }


def test_progress_of_a_loss_without_masks_or_of_a_step_without_kl():
    assert progress({"loss": 0.5, "chosen_reward": 1.0}) == {"loss": "0.5"}
    assert progress({"sparsity_reward_chosen": 0.0, "sparsity_reward_rejected": 1.0}) == {"sparsity": "0%"}


def test_summary(tmp_path):
    log = MetricsFile(tmp_path)
    log.write(1, NUMBERS)
    log.write(2, {**NUMBERS, "loss": 0.5})
    log.write(2, {"loss": 0.7, "accuracy": math.nan}, split="eval")
    assert summary(tmp_path).splitlines() == [
        f"The run is in {tmp_path}",
        "  train step 2: loss 0.5  accuracy 0.75  margin 0.125  sparsity 45/15%  kl 0.3",
        "  eval  step 2: loss 0.7",
        f"  every number: {tmp_path / METRICS}",
    ]


def test_summary_says_which_step_the_token_kl_is_of(tmp_path):
    """It is not computed at every step."""
    log = MetricsFile(tmp_path)
    log.write(10, NUMBERS)
    log.write(10, {"loss": 0.7, "token_kl_chosen": 1.0, "token_kl_rejected": 3.0}, split="eval")
    log.write(12, {"loss": 0.5})
    assert summary(tmp_path).splitlines()[1:3] == [
        "  train step 12: loss 0.5  kl 0.3 (step 10)",
        "  eval  step 10: loss 0.7  kl 2",
    ]


def test_card(tmp_path):
    """Hub names in the front matter, every option of the loss as YAML, and the last numbers."""
    (tmp_path / "pairs.jsonl").touch()
    log = MetricsFile(tmp_path)
    log.write(1, {"loss": 0.5})
    log.write(10, {"loss": 0.25, "token_kl_chosen": 1e-3})
    log.write(10, {"loss": 0.75}, split="eval")
    description = describe(LossConfig.from_section({"l1_reward": 0.5}, beta=0.3))
    description = description.model_copy(update={"base_model": "org/base", "host": "trl"})
    write_card(tmp_path, description, [str(tmp_path / "pairs.jsonl"), "org/pairs"])
    text = (tmp_path / "README.md").read_text()
    front = yaml.safe_load(text.split("---")[1])
    assert front["base_model"] == "org/base" and front["datasets"] == ["org/pairs"] and "sparsepo" in front["tags"]
    options = yaml.safe_load(text.split("```yaml\n")[1].split("```")[0])
    assert LossConfig(**options) == description.loss
    assert options["objective"]["beta"] == 0.3 and options["objective"]["l1_reward"] == 0.5
    assert f"- `{tmp_path / 'pairs.jsonl'}`" in text and "in TRL" in text
    assert "|  | train, step 10 | eval, step 10 |" in text
    assert "| `loss` | 0.25 | 0.75 |" in text and "| `token_kl_chosen` | 0.001 |  |" in text
    assert "2025.findings-emnlp.1389" in text


def test_card_of_a_local_base_model_without_masks(tmp_path):
    description = describe(LossConfig.from_section({}, "simpo", beta=2.0))
    description = description.model_copy(update={"base_model": str(tmp_path), "reference": None})
    text = card_text(description, [str(tmp_path)], {}, "mine")
    assert not {"base_model", "datasets"} & yaml.safe_load(text.split("---")[1]).keys()
    assert "# mine" in text and "No reference model is read." in text and "mask_head" not in text
    assert last_metrics(tmp_path) == {} and "No numbers were logged." in text
