"""Weights that the pairs bring, through TRL's trainer.

Losses are those of a plain formula over whole logits to 1e-5; layouts to the tolerances of tests/invariant.
"""

import json

import pytest
import torch
from datasets import Dataset
from host_runs import difference
from test_trl_processes import zero
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl.trainer.dpo_trainer import DataCollatorForPreference
from weighed_pairs import COLUMN, TIS, plain_loss, word_weights, write_scored, write_weighed

from sparsepo_plugin import SparsePOError, load_run
from sparsepo_plugin.hosts.trl.weighed import Weigher, WeighingCollator
from sparsepo_plugin.spans import WeightColumn

LOSS, WEIGHTS = 5e-6, 2.5e-5
PAIRS = 8  # all of them in each step


@pytest.fixture(scope="session")
def pairs(tiny):
    """Files of the same pairs with weights; of `ended` the responses have their end."""
    folder = tiny / "weighed_trl"
    folder.mkdir(exist_ok=True)
    files = {"bare": write_weighed(folder / "bare.jsonl", PAIRS, seed=3)}
    files["ended"] = write_weighed(folder / "ended.jsonl", PAIRS, seed=3, end=" </s>")
    return files


@pytest.fixture(scope="session")
def weighing(train, pairs):
    """Ten steps over all pairs, with a reference that is another model than the policy."""

    def weighing(file: str = "bare", **over):
        return train(pairs=str(pairs[file]), other=True, num_train_epochs=10, loss_options=COLUMN, **over)

    return weighing


@pytest.fixture(scope="session")
def loss_before(tiny, pairs):
    """The loss before the first step, written out."""
    policy, reference = (AutoModelForCausalLM.from_pretrained(tiny / name).eval() for name in ("model", "other"))
    rows = [json.loads(line) for line in pairs["bare"].read_text().splitlines()]
    return plain_loss(policy, reference, AutoTokenizer.from_pretrained(tiny / "model"), rows, 0.5)


@pytest.mark.parametrize("file", ["bare", "ended"])
def test_the_first_loss_is_that_of_the_formula(file, weighing, loss_before):
    run = weighing(file)
    assert run.losses[0].item() == pytest.approx(loss_before, abs=1e-5)
    assert len(run.losses) == 10 and run.losses[0] != run.losses[-1]


def test_tis_dpo(train, tiny, tmp_path):
    """From the scores of two models to ten steps."""
    file = write_scored(tmp_path / "scored.jsonl", tiny, PAIRS, seed=3)
    options = {**dict.fromkeys(COLUMN), **TIS}
    run = train(pairs=str(file), other=True, num_train_epochs=10, loss="weighted_dpo", loss_options=options)
    policy, reference = (AutoModelForCausalLM.from_pretrained(tiny / name).eval() for name in ("model", "other"))
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    plain = plain_loss(policy, reference, AutoTokenizer.from_pretrained(tiny / "model"), rows, 0.5, end=0.0)
    assert run.losses[0].item() == pytest.approx(plain, abs=1e-5)
    assert len(run.losses) == 10 and run.losses.isfinite().all()


LAYOUTS = {
    "accumulation": {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4},
    "evaluation": {"evaluated": 5, "eval_strategy": "epoch"},
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_layout_changes_nothing(layout, weighing):
    loss, weights = difference(weighing(**LAYOUTS[layout]), weighing())
    assert loss < LOSS and weights < WEIGHTS


def test_two_processes_under_zero_3_equal_one(launch, train, pairs):
    given = {"deepspeed": zero(3), "use_cpu": False, "per_device_train_batch_size": 4}
    run = {"pairs": str(pairs["bare"]), "num_train_epochs": 10, "loss_options": COLUMN}
    two = launch(**run, **given)
    assert two.code == 0, two.output[-4000:]
    loss, weights = difference(two, train(**run))
    assert loss < LOSS and weights < WEIGHTS


def test_a_finished_run_is_asked_with_weights(weighing, pairs):
    run = load_run(weighing().folder / "out", reference=None)
    row = json.loads(pairs["bare"].read_text().splitlines()[0])
    table = run.tokens(**row)
    for key in ("chosen", "rejected"):
        assert table.of(key).mask_reward.tolist() == pytest.approx(word_weights(row[key], row[f"{key}_weights"]))


@pytest.mark.parametrize("keeps_end", [False, True])
def test_weights_of_sequences_that_are_cut(keeps_end):
    """Whatever is left of a response has the weights of those tokens, exactly."""
    mode = "keep_end" if keeps_end else "keep_start"
    collate = WeighingCollator(DataCollatorForPreference(0, max_length=4, truncation_mode=mode), keeps_end)
    rows = [
        {"prompt_ids": [1, 2], "chosen_ids": [3, 4, 5], "rejected_ids": [6]},
        {"prompt_ids": [7], "chosen_ids": [8, 9], "rejected_ids": [1, 2, 3, 4, 5]},
    ]
    for row in rows:
        for key in ("chosen", "rejected"):
            row[f"{key}_token_weights"] = [0.1 * token for token in row[f"{key}_ids"]]
    batch = collate(rows)
    weights = batch["token_weights"].view(torch.float32)
    assert torch.equal(weights, batch["completion_mask"] * (batch["input_ids"].double() * 0.1).float())


CHAT = "{% for m in messages %}w9 {{ m.content }} </s>{% endfor %}{% if add_generation_prompt %}w9 {% endif %}"


def test_weights_of_messages(tiny):
    """A chat template's tokens behind the response are its end."""
    tokenizer = AutoTokenizer.from_pretrained(tiny / "model")
    tokenizer.chat_template = CHAT
    row = {"prompt": [{"role": "user", "content": "w1 w2"}], "chosen_weights": [{"start": 0, "end": 1, "weight": 0.0}]}
    row |= {key: [{"role": "assistant", "content": "w3 w4"}] for key in ("chosen", "rejected")}
    ids = tokenizer("w3 w4 </s>", add_special_tokens=False)["input_ids"]
    prepared = Dataset.from_list([{**row, "prompt_ids": [], "chosen_ids": ids, "rejected_ids": ids}])
    (found,) = Weigher(WeightColumn(end=0.25), "sparsepo").weigh(prepared, tokenizer, None)
    assert found["chosen_token_weights"] == [0.5, 1.0, 0.25]
    assert found["rejected_token_weights"] == [1.0, 1.0, 0.25]
    other = Dataset.from_list([{**row, "prompt_ids": [], "chosen_ids": ids[::-1], "rejected_ids": ids}])
    with pytest.raises(SparsePOError, match="tokens of chosen are not what the tokenizer makes of its text"):
        Weigher(WeightColumn(), "sparsepo").weigh(other, tokenizer, None)


SPAN = {"start": 0, "end": 2, "weight": 0.5}
REFUSED = {
    "past the end": ([{**SPAN, "end": 6}], "train_dataset, row 9: chosen_weights: span 1 is from 0 to 6"),
    "negative": ([{**SPAN, "weight": -1.0}], "row 9: chosen_weights: span 1 has weight -1, below 0 only with signed"),
    "into the end that TRL adds": ([{**SPAN, "end": 9}], "row 9: chosen_weights: span 1 is from 0 to 9"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_spans_that_are_none(case, make, tmp_path):
    spans, says = REFUSED[case]
    row = {"prompt": "w1 ", "chosen": "w3 w4", "rejected": "w5", "chosen_weights": [SPAN]}
    file = tmp_path / "pairs.jsonl"
    file.write_text((json.dumps(row) + "\n") * 8 + json.dumps({**row, "chosen_weights": spans}) + "\n")
    with pytest.raises(SparsePOError, match=says):
        make(pairs=str(file), loss_options=COLUMN)


def test_data_without_weights(make):
    with pytest.raises(SparsePOError, match="mask 'column' has no effect, no row of the training data has chosen_wei"):
        make(loss_options=COLUMN)
