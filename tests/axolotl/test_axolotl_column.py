"""Weights that the pairs bring, through Axolotl's prompt strategies; tests/hosts_agree compares whole runs."""

import json

import pytest
from axolotl_runs import LORA

from sparsepo_plugin import load_run
from sparsepo_plugin.record import read_metrics

SECTION = {
    **dict.fromkeys(("mask", "shared", "l1_reward", "l1_kl", "mask_lr")),
    "reward": {"mask": "column", "end": 0.25},
    "kl": {"mask": "uniform", "value": 0.0},
}
PAIR = {
    "prompt": "w1 w2",
    "chosen": "w3 w4 w5",
    "rejected": "w6 w7",
    "chosen_weights": [{"start": 3, "end": 7, "weight": 0.5}],
    "rejected_weights": [{"start": 0, "end": 2, "weight": 0.0, "text": "w6"}],
}
# By hand: of the last word of chosen, which is one token with the end of chatml, one of two characters weighs 0.5.
CHOSEN, REJECTED = [1.0, 0.5, 0.75, 0.25], [0.0, 1.0, 0.25]


@pytest.fixture(scope="module")
def settings(config, tmp_path_factory):
    """A LoRA run with a prompt strategy on eight times the pair, evaluated on it too."""
    file = tmp_path_factory.mktemp("pair") / "pair.jsonl"
    file.write_text((json.dumps(PAIR) + "\n") * 8)
    data = {**config()["datasets"][0], "type": "chatml.prompt_pairs", "path": str(file)}
    return {**config(**LORA, sparsepo=SECTION, datasets=[data], test_datasets=[data]), "eval_steps": 1}


def test_weights_find_the_response_within_its_template(settings, launch):
    run = launch(settings)
    assert run.code == 0, run.output[-4000:]
    for row in read_metrics(run.folder / "out"):
        assert row["mask_reward_mean_chosen"] == pytest.approx(sum(CHOSEN) / 4)
        assert row["mask_reward_mean_rejected"] == pytest.approx(sum(REJECTED) / 3)
    table = load_run(run.folder / "out").tokens(**PAIR)
    assert table.of("chosen").mask_reward.tolist() == CHOSEN
    assert table.of("rejected").mask_reward.tolist() == REJECTED


OUTSIDE = [{"start": 3, "end": 9, "weight": 0.5}]
REFUSED = {
    "past the end": ({"chosen_weights": OUTSIDE}, "row 9: chosen_weights: span 1 is from 3 to 9"),
    "another text": ({"rejected_weights": [{**OUTSIDE[0], "end": 5, "text": "w8"}]}, "span 1 has text 'w8'"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_spans_that_are_none(case, settings, launch, tmp_path):
    changes, says = REFUSED[case]
    file = tmp_path / "pairs.jsonl"
    file.write_text((json.dumps(PAIR) + "\n") * 8 + json.dumps(PAIR | changes) + "\n")
    run = launch({**settings, "datasets": [{**settings["datasets"][0], "path": str(file)}]})
    assert run.code and says in run.output and "Traceback" not in run.output, run.output[-4000:]
