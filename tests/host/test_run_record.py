"""What a run tells of itself: a metrics file, a short progress line, a summary and a model card."""

import re
from pathlib import Path

import pytest
import yaml
from host_runs import Run, merge
from process_server import Stop
from test_logging import HOST, OURS

from sparsepo_plugin.record import METRICS, read_metrics

EVALUATION = {"split": "train", "steps": 5}
RENAMED = {"accuracy": "acc", "rejected_reward": "reject_reward"}


@pytest.fixture
def rows():
    return lambda run, split="train": [row for row in read_metrics(run.folder / "out") if row["split"] == split]


@pytest.fixture
def evaluated(train, tiny) -> Run:
    return train(eval={"dataset": str(tiny / "held_out.jsonl"), **EVALUATION})


def test_the_file_has_every_number_of_every_step(evaluated, rows):
    """The host's own logger is the witness, which rounds to float32."""
    logged = rows(evaluated)
    assert [row["step"] for row in logged] == list(range(1, 11))
    names = logged[0].keys() - {"step", "split", "margin"}
    assert {RENAMED.get(name, name) for name in names} == (OURS | HOST | {"dead_steps_reward", "dead_steps_kl"}) - {
        "loss_mean",
        "acc_mean",
    }
    for name in names:
        expected = evaluated.scalars(f"train/{RENAMED.get(name, name)}")
        assert [row[name] for row in logged] == pytest.approx(expected, rel=1e-6, abs=1e-12), name
    assert all(row["margin"] == pytest.approx(row["chosen_reward"] - row["rejected_reward"]) for row in logged)


def test_evaluations_stand_between_the_steps(evaluated, rows):
    whole = [(row["step"], row["split"]) for row in read_metrics(evaluated.folder / "out")]
    assert whole == sorted(whole, key=lambda row: (row[0], row[1] == "eval"))
    found = rows(evaluated, "eval")
    assert [row["step"] for row in found] == [5, 10]
    assert found[0].keys() == rows(evaluated)[0].keys() - {"lr", "grad_norm", "dead_steps_reward", "dead_steps_kl"}
    for name, logged in {"loss": "eval_loss", "accuracy": "acc_mean", "token_kl_chosen": "token_kl_chosen"}.items():
        assert [row[name] for row in found] == pytest.approx(evaluated.scalars(f"eval/{logged}"), rel=1e-6), name


def test_numbers_are_means_over_accumulated_micro_batches(train, rows):
    """Against the same steps in one micro-batch; rewards and the loss are means over pairs."""
    parts, whole = train(train={"micro_batch_size": 2}), train()
    for name in ("loss", "accuracy", "margin", "chosen_reward", "rejected_reward"):
        expected = pytest.approx([row[name] for row in rows(whole)], rel=1e-4, abs=1e-5)
        assert [row[name] for row in rows(parts)] == expected, name


def test_two_processes_write_one_line_for_each_step(train, rows):
    two = train(2, train={"micro_batch_size": 4})
    assert [row["step"] for row in read_metrics(two.folder / "out")] == list(range(1, 11))
    expected = pytest.approx([row["loss"] for row in rows(train())], abs=1e-5)
    assert [row["loss"] for row in rows(two)] == expected


def test_a_resumed_run_repeats_no_step(config, launch, tmp_path, tiny):
    """Stopped after steps that its checkpoint does not have, it tells what a run that never was stopped tells."""
    saving = {"ckpt": {"save_steps": 4, "load_enable": True}, "eval": {"dataset": str(tiny / "held_out.jsonl")}}
    settings = merge(config(**saving), {"eval": EVALUATION})
    whole = launch(settings)
    assert whole.code == 0, whole.output[-3000:]
    stopped = launch(settings, folder=tmp_path, stop=Stop(tmp_path / "checkpoints" / "global_step4", after=0.3))
    assert stopped.code is None
    with (tmp_path / "out" / METRICS).open("a") as file:
        file.write('{"step": 5, "split": "train", "loss": 9.0}\n{"step": 6, "spl')
    resumed = launch(settings, folder=tmp_path)
    assert resumed.code == 0 and "Resuming from" in resumed.output, resumed.output[-3000:]
    assert read_metrics(tmp_path / "out") == read_metrics(whole.folder / "out")


def test_a_new_run_in_an_old_folder_starts_its_file_anew(config, launch, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / METRICS).write_text('{"step": 3, "split": "eval", "loss": 9.0}\n')
    assert launch(config(data={"max_samples": 16}), folder=tmp_path).code == 0
    assert [row["step"] for row in read_metrics(tmp_path / "out")] == [1, 2]


def test_the_progress_line_is_short(evaluated):
    lines = [line for line in re.split(r"[\r\n]", evaluated.output) if "Train step of epoch" in line]
    columns = re.findall(r"(\w+)=", lines[-1])
    assert columns == ["loss", "accuracy", "margin", "sparsity", "kl"]


def test_the_end_is_a_summary(evaluated):
    out = evaluated.folder / "out"
    told = evaluated.output[evaluated.output.index(f"The run is in {out}") :].splitlines()
    assert told[1].startswith("  train step 10: loss ") and told[2].startswith("  eval  step 10: loss ")
    assert told[3] == f"  every number: {out / METRICS}"


@pytest.mark.parametrize("lora", [False, True], ids=["full", "LoRA"])
def test_the_readme_is_a_model_card(lora, train, tiny):
    """Over the one that PEFT leaves beside an adapter."""
    run = train(ds={"lora": {"rank": 4, "alpha": 8}}) if lora else train()
    _, front, text = (run.folder / "out" / "README.md").read_text().split("---\n", 2)
    assert "sparsepo" in yaml.safe_load(front)["tags"]
    for words in (str(tiny / "model"), str(tiny / "pairs.jsonl"), "mask_weight_decay: 0.01", "train, step 10"):
        assert words in text, words
    assert "token_kl_chosen" in text and "openrlhf 0." in text and "@inproceedings" in text


def test_openrlhfs_own_dpo_stays_its_own(train):
    run = train(loss=None, sparsepo=None)
    files = {path.name for path in Path(run.folder / "out").iterdir()}
    assert not files & {METRICS, "README.md", "sparsepo.json"}
    assert "grad_norm=" in run.output and "The run is in" not in run.output
