"""Weights that the pairs bring, through the real command line of OpenRLHF.

Losses are those of a plain formula over whole logits to 1e-5; runs of other layouts to the tolerances of
tests/invariant: other shapes add in another order.
"""

import json

import pytest
from host_runs import DPO, ONES, difference, difference_of_weights, merge
from transformers import AutoModelForCausalLM, AutoTokenizer
from weighed_pairs import COLUMN, TIS, plain_loss, word_weights, write_scored, write_weighed

from sparsepo_plugin import load_run

LOSS, WEIGHTS = 5e-6, 2.5e-5
PAIRS = 8  # all of them in each step, so that their order means nothing


@pytest.fixture(scope="session")
def weighed(tiny):
    """Files of pairs with weights, by name."""
    folder = tiny / "weighed"
    folder.mkdir(exist_ok=True)
    return {
        "train": write_weighed(folder / "train.jsonl", PAIRS, seed=3),
        "held out": write_weighed(folder / "held_out.jsonl", 6, seed=4),
        "ones": write_weighed(folder / "ones.jsonl", PAIRS, seed=3, weights=(1.0,)),
    }


@pytest.fixture(scope="session")
def weighing(train, tiny, weighed):
    """Ten steps over all pairs, with a reference that is another model than the policy."""

    def weighing(processes: int = 1, section: dict = COLUMN, **over):
        base = {
            "data": {"dataset": str(weighed["train"])},
            "ref": {"model_name_or_path": str(tiny / "other")},
            "train": {"max_epochs": 10},
            "sparsepo": section,
        }
        return train(processes=processes, **merge(base, over))

    return weighing


@pytest.fixture(scope="session")
def plain(tiny):
    """The loss before the first step on the rows of a file."""
    policy, reference = (AutoModelForCausalLM.from_pretrained(tiny / name).eval() for name in ("model", "other"))
    tokenizer = AutoTokenizer.from_pretrained(tiny / "model")

    def plain(file, beta=0.5, **column):
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        return plain_loss(policy, reference, tokenizer, rows, beta, **column)

    return plain


def assert_equal(one, other):
    loss, weights = difference(one, other)
    assert len(one.losses) == 10 and one.losses[0] != one.losses[-1]
    assert loss < LOSS and weights < WEIGHTS


def test_the_first_loss_is_that_of_the_formula(weighing, plain, weighed):
    loss = plain(weighed["train"])
    assert weighing().losses[0].item() == pytest.approx(loss, abs=1e-5)
    assert abs(loss - plain(weighed["ones"])) > 1e-2


def test_tis_dpo(weighing, plain, tiny, tmp_path):
    """From the scores of two models to ten steps; no token but the end has the weight 0."""
    file = write_scored(tmp_path / "scored.jsonl", tiny, PAIRS, seed=3)
    run = weighing(section=None, loss="weighted_dpo", weighted_dpo=TIS, data={"dataset": str(file)})
    assert run.losses[0].item() == pytest.approx(plain(file, end=0.0), abs=1e-5)
    assert len(run.losses) == 10 and run.losses.isfinite().all()
    spans = [
        span
        for row in map(json.loads, file.open())
        for key in ("chosen", "rejected")
        for span in row[f"{key}_weights"]
    ]
    assert 0.7 == min(span["weight"] for span in spans) < max(span["weight"] for span in spans) == 1.3


def test_options_of_the_column(weighing, plain, weighed):
    over = {"reward": {"default": 0.5, "end": 0.0, "scale": 0.5}}
    found = weighing(sparsepo=over).losses[0].item()
    assert found == pytest.approx(plain(weighed["train"], beta=0.25, default=0.5, end=0.0), abs=1e-5)


LAYOUTS = {
    "packed": {"ds": {"packing_samples": True}, "sparsepo": {"share_prefix": False}},
    "padded, its prefixes twice": {"sparsepo": {"share_prefix": False}},
    "packed, its prefixes once": {"ds": {"packing_samples": True}, "sparsepo": {"share_prefix": True}},
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_layout_changes_nothing(layout, weighing):
    assert_equal(weighing(**LAYOUTS[layout]), weighing())


def test_accumulation_changes_nothing(weighing):
    """Of a step OpenRLHF logs the last micro-batch's loss."""
    apart = difference_of_weights(weighing(train={"micro_batch_size": 2}), weighing())
    assert apart < WEIGHTS


def test_two_packed_processes_under_zero_3(weighing):
    over = {"ds": {"packing_samples": True, "zero_stage": 3}, "train": {"micro_batch_size": 4}}
    assert_equal(weighing(processes=2, **over), weighing())


def test_weights_of_one_are_dpo_and_tdpo(weighing, weighed):
    ones = {"dataset": str(weighed["ones"])}
    assert_equal(weighing(data=ones), weighing(data=ones, section=DPO))
    assert_equal(weighing(data=ones, section={**ONES, "mask": "column"}), weighing(data=ones, section=ONES))


def test_evaluation_is_weighed(weighing, plain, weighed):
    """With a learning rate too small to move a float32, after a step the loss is that before it."""
    over = {"eval": {"dataset": str(weighed["held out"]), "split": "train", "steps": 1}, "adam": {"lr": 1e-30}}
    found = weighing(**over, train={"micro_batch_size": 2}).scalars("eval/eval_loss")
    assert found[0] == pytest.approx(plain(weighed["held out"]), abs=1e-5)


def test_blended_data_sets_of_which_one_has_no_weights(weighing, plain, tiny, weighed):
    """Their columns differ in type too: the weights of one file are whole numbers."""
    bare, whole = (weighed["train"].with_name(f"{name}.jsonl") for name in ("bare", "whole"))
    rows = [json.loads(line) for line in (tiny / "pairs.jsonl").read_text().splitlines()[:4]]
    bare.write_text("".join(json.dumps(row) + "\n" for row in rows))
    span = {"start": 0, "end": 1, "weight": 0}
    whole.write_text("".join(json.dumps({**row, "chosen_weights": [span]}) + "\n" for row in rows))
    both = weighed["train"].with_name("blended.jsonl")
    both.write_text("".join(file.read_text() for file in (weighed["train"], bare, whole)))
    names = ",".join(map(str, (weighed["train"], bare, whole)))
    run = weighing(data={"dataset": names}, train={"batch_size": 16, "micro_batch_size": 16})
    assert run.losses[0].item() == pytest.approx(plain(both), abs=1e-5)
    assert f"{bare}: 4 of 4 rows have no chosen_weights or rejected_weights" in run.output


def test_rows_that_are_dropped(weighing, plain, weighed):
    """A row with a wrong span is left out like others that cannot be trained on, and long prompts as ever."""
    file = weighed["train"].with_name("bad.jsonl")
    row = json.loads(weighed["train"].read_text().splitlines()[0])
    wrong = {**row, "chosen_weights": [{"start": 0, "end": 1000, "weight": 1.0}]}
    added = "".join(json.dumps(each) + "\n" for each in (wrong, {**row, "prompt": "w1 " * 30}))
    file.write_text(added + weighed["train"].read_text())
    run = weighing(data={"dataset": str(file), "on_bad_row": "drop"})
    assert "bad.jsonl, row 1: chosen_weights: span 1 is from 0 to 1000" in run.output
    assert run.losses[0].item() == pytest.approx(plain(weighed["train"]), abs=1e-5)


def test_a_finished_run_is_asked_with_weights(weighing, weighed):
    run = load_run(weighing().folder / "out")
    row = json.loads(weighed["train"].read_text().splitlines()[0])
    table = run.tokens(**row)
    for key in ("chosen", "rejected"):
        expected = word_weights(row[key], row[f"{key}_weights"])
        assert table.of(key).mask_reward.tolist() == pytest.approx(expected, abs=1e-7)


CHAT = "{% for m in messages %}w9 {{ m.content }} </s>{% endfor %}{% if add_generation_prompt %}w9 {% endif %}"


def test_messages_through_a_chat_template(weighing, weighed):
    """What the template adds to the response is its end, here alone the end of the sequence."""
    file = weighed["train"].with_name("messages.jsonl")
    rows = [json.loads(line) for line in weighed["train"].read_text().splitlines()]
    roles = {"prompt": "user", "chosen": "assistant", "rejected": "assistant"}
    chats = [{**row, **{key: [{"role": role, "content": row[key]}] for key, role in roles.items()}} for row in rows]
    file.write_text("".join(json.dumps(row) + "\n" for row in chats))
    data = {"dataset": str(file), "apply_chat_template": True, "tokenizer_chat_template": CHAT}
    given = [{**row, "prompt": f"w9 {row['prompt']}</s>w9 "} for row in rows]
    texts = weighed["train"].with_name("rendered.jsonl")
    texts.write_text("".join(json.dumps(row) + "\n" for row in given))
    assert_equal(weighing(data=data), weighing(data={"dataset": str(texts)}))
