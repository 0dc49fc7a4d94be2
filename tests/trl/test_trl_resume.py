"""What a run of TRL leaves: checkpoints that go on to the same bits, a plain model, masks, a card and numbers."""

import json
import shutil
import sys

import pytest
import torch
import trl_runs
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from sparsepo_plugin import SparsePOError, load_run

# Ten steps, a checkpoint after five; all kinds of dropout that there are draw at random.
SAVING = {"save_strategy": "steps", "save_steps": 5, "loss_options": {"dropout": 0.2}}
KINDS = {"full": SAVING, "LoRA": {**SAVING, "lora": {"lora_dropout": 0.1}}}


@pytest.mark.parametrize("kind", KINDS)
def test_stopping_changes_no_bit(kind, train, tiny, tmp_path):
    whole = train(**KINDS[kind])
    shutil.copytree(whole.folder / "out" / "checkpoint-5", tmp_path / "out" / "checkpoint-5")
    shutil.copy(whole.folder / "out" / "sparsepo_metrics.jsonl", tmp_path / "out")
    resumed = trl_runs.train(tmp_path, tiny, resume=True, **KINDS[kind])
    mine, theirs = resumed.weights, whole.weights
    assert mine.keys() == theirs.keys() and any(key.startswith("mask_head.") for key in mine)
    for key, value in mine.items():
        assert torch.equal(value, theirs[key]), key
    assert torch.equal(resumed.losses, whole.losses)
    assert [row["step"] for row in resumed.metrics] == list(range(1, 11))
    start = load_file(whole.folder / "out" / "checkpoint-5" / "mask_head.safetensors")
    assert all(not torch.equal(value, mine[f"mask_head.{key}"]) for key, value in start.items())


def test_under_zero_3_too(launch, tmp_path):
    """On two processes, from DeepSpeed's own checkpoint."""
    from test_trl_processes import zero

    given = {**SAVING, "deepspeed": zero(3), "use_cpu": False, "per_device_train_batch_size": 4}
    whole = launch(**given)
    assert whole.code == 0, whole.output[-4000:]
    shutil.rmtree(whole.folder / "out" / "checkpoint-10")
    before = whole.weights
    resumed = launch(**given, resume=True, output_dir=str(whole.folder / "out"))
    assert resumed.code == 0, resumed.output[-4000:]
    for key, value in whole.weights.items():
        assert torch.equal(value, before[key]), key
    assert [row["step"] for row in whole.metrics] == list(range(1, 11))


@pytest.mark.parametrize("kind", KINDS)
def test_the_folder_is_a_plain_model_with_the_masks_beside_it(kind, train, server):
    folder = train(**KINDS[kind]).folder / "out"
    for place in (folder, folder / "checkpoint-5"):
        (weights,) = place.glob("*model.safetensors")
        assert not any("sparsepo" in key or "mask" in key for key in load_file(weights))
        assert (place / "mask_head.safetensors").is_file() and (place / "sparsepo.json").is_file()
    if kind == "full":  # in a process that cannot import the plugin
        code = (
            "import sys; sys.modules['sparsepo_plugin'] = None\n"
            "from transformers import AutoModelForCausalLM\n"
            f"_, info = AutoModelForCausalLM.from_pretrained({str(folder)!r}, output_loading_info=True)\n"
            "print(sorted(key for kind in ('missing_keys', 'unexpected_keys') for key in info[kind]))"
        )
        done = server.run(sys.executable, "-c", code, TORCH_DEVICE_BACKEND_AUTOLOAD="0")  # nor has its entry point
        assert done.returncode == 0 and done.stdout.strip() == "[]", done.stderr


@pytest.mark.parametrize("kind", KINDS)
def test_the_run_can_be_asked(kind, train, make):
    """By the tokens that TRL trained on: the end of a response is right after it, where it is not there."""
    run = load_run(train(**KINDS[kind]).folder / "out")
    table = run.tokens("w1 w2 ", chosen="w3 w4 </s>", rejected="w5 </s>")
    assert table.text == ["w3", "w4", "</s>", "w5", "</s>"]
    assert table.mask_reward.max() > 0 and not torch.equal(table.mask_reward, table.mask_kl)
    trained = next(iter(make().train_dataset))
    ((ids, start),) = run.description.joining.encode(run.tokenizer, trained["prompt"], [trained["chosen"]])
    assert (ids[:start], ids[start:]) == (trained["prompt_ids"], trained["chosen_ids"])


def test_saving_by_hand_leaves_the_masks_out_too(make, tmp_path):
    trainer = make()
    trainer.model.save_pretrained(tmp_path / "by_hand")
    _, info = AutoModelForCausalLM.from_pretrained(tmp_path / "by_hand", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]


NONE = dict.fromkeys((*trl_runs.BASE["loss_options"], "dropout"))
OTHERS = {
    "sparsepo.l1_reward: 0.001, not 0.5": {"loss_options": {"l1_reward": 0.5}},
    "sparsepo.mask_lr: 0.01, not 0.5": {"loss_options": {"mask_lr": 0.5}},
    "loss: sparsepo, not tdpo": {"loss": "tdpo", "loss_options": NONE},
    "beta: 0.5, not 0.7": {"beta": 0.7},
    "sparsepo.reward.depth: 1, not 2": {"loss_options": {"depth": 2}},
}


@pytest.mark.parametrize("difference", OTHERS)
def test_another_run_is_refused(difference, train, make):
    written = train(**KINDS["full"]).folder / "out" / "checkpoint-5"
    options = {**SAVING["loss_options"], **OTHERS[difference].get("loss_options", {})}
    over = {**SAVING, **OTHERS[difference], "loss_options": options}  # None leaves a default of the tests out
    with pytest.raises(SparsePOError) as caught:
        make(**over).train(resume_from_checkpoint=str(written))
    assert f"{written} was written by a run with" in str(caught.value) and difference in str(caught.value)


def test_another_reference_is_refused(train, make, tiny):
    written = train(**KINDS["full"]).folder / "out" / "checkpoint-5"
    other = AutoModelForCausalLM.from_pretrained(tiny / "other")
    with pytest.raises(SparsePOError, match=r"with ref_model: .*/model, not .*/other"):
        make(**SAVING, ref_model=other).train(resume_from_checkpoint=str(written))


def test_a_checkpoint_of_trl_alone_is_refused(make, train, tmp_path):
    written = shutil.copytree(train(**KINDS["full"]).folder / "out" / "checkpoint-5", tmp_path / "theirs")
    (written / "sparsepo.json").unlink()
    with pytest.raises(SparsePOError, match=r"sparsepo\.json is missing"):
        make(**SAVING).train(resume_from_checkpoint=str(written))


def test_masks_have_a_group_of_their_own(make):
    trainer = make()
    *_, masks = trainer.create_optimizer().param_groups
    assert {id(p) for p in masks["params"]} == {id(p) for p in trainer.masked.masks.parameters()}
    assert (masks["lr"], masks["weight_decay"]) == (0.01, 0.01)
    groups = trainer.create_optimizer().param_groups
    parameters = [id(p) for group in groups for p in group["params"]]
    assert len(groups) == 3 and len(parameters) == len(set(parameters)) == len(list(trainer.model.parameters()))


def test_the_best_model_has_its_masks(train, tiny, tmp_path):
    """The best of two is the first: its masks come back with its weights."""
    best = {"evaluated": 8, "eval_strategy": "steps", "eval_steps": 5, "load_best_model_at_end": True}
    by = {"metric_for_best_model": "eval_rewards/chosen", "greater_is_better": False, "learning_rate": 5e-3}
    run = trl_runs.train(tmp_path, tiny, **SAVING, **best, **by)
    (chosen,) = {
        json.loads(path.read_text())["best_model_checkpoint"] for path in run.folder.glob("out/*10/*state.json")
    }
    for name in ("model", "mask_head"):
        saved = load_file(f"{chosen}/{name}.safetensors")
        assert all(torch.equal(run.weights[f"{name}.{key}"], value) for key, value in saved.items())


def test_card_numbers_and_progress(tiny, tmp_path, capsys):
    """The names that every host has are in the file, a few of them on the screen, method and paper in the card."""
    run = trl_runs.train(tmp_path, tiny, evaluated=8, eval_strategy="steps", eval_steps=10)
    common = {"loss", "accuracy", "margin", "chosen_reward", "rejected_reward", "lr"}
    ours = {"sparsity_reward_chosen", "mask_kl_mean_rejected", "masked_kl_margin", "l1_kl"}
    rows = [json.loads(line) for line in (run.folder / "out" / "sparsepo_metrics.jsonl").read_text().splitlines()]
    assert [row["split"] for row in rows] == ["train"] * 10 + ["eval"]
    assert all((common | ours | {"dead_steps_reward"}) <= row.keys() for row in rows[:10])
    assert ((common - {"lr"}) | ours) <= rows[-1].keys()
    assert ["token_kl_chosen" in row for row in rows] == [False] * 9 + [True, True]  # every tenth step, and evaluation
    said = capsys.readouterr().out
    shown = [line for line in said.splitlines() if line.startswith("{'loss'")]
    assert len(shown) == 11 and all("sparsity" in line and "l1_kl" not in line for line in shown)
    assert f"The run is in {run.folder / 'out'}" in said
    card = (run.folder / "out" / "README.md").read_text()
    assert "loss: sparsepo" in card and "l1_reward: 0.001" in card and "christopoulou-etal-2025" in card
    assert "`json, 80 pairs`" in card
