"""A run that is asked gives the numbers of its own training: those that the host logged in its last evaluation.

The host evaluates after the last step, on the weights that it then saves. Tolerance: sums of float32 in another order.
"""

import csv
import json
import re

import pytest
import torch
from torch.nn.functional import logsigmoid
from typer.testing import CliRunner

from sparsepo_plugin import load_run
from sparsepo_plugin.checkpoint import load_description
from sparsepo_plugin.cli import app
from sparsepo_plugin.record import last_metrics, read_metrics

BETA, L1, TOLERANCE = 0.5, 1e-3, 1e-5
LORA = {"lora": {"rank": 4, "alpha": 8, "dropout": 0.3}}
RUNS = {
    "full": {},
    "full, packed, ZeRO-3": {"ds": {"zero_stage": 3, "packing_samples": True}},
    "masks of two kinds": {"sparsepo": {"shared": None, "l1_kl": None, "kl": {"mask": "uniform", "value": 0.7}}},
    "dense": {"sparsepo": {**dict.fromkeys(("shared", "l1_reward", "l1_kl", "mask_lr")), "mask": "activation"}},
    "LoRA, shared reference": {"ds": LORA},
    "LoRA, another reference": {"ds": LORA, "ref": {"model_name_or_path": "other"}},
    "templates": {"data": {"input_template": "w9 {} w8 "}},
    "dpo": {"loss": "dpo", "sparsepo": None},
}


@pytest.fixture
def asked(train, tiny):
    """A finished run with evaluation after its last step, and the tables of the evaluated pairs."""

    def asked(name: str):
        over = {"eval": {"dataset": str(tiny / "held_out.jsonl"), "split": "train", "steps": 10}, **RUNS[name]}
        if "ref" in over:
            over["ref"] = {"model_name_or_path": str(tiny / over["ref"]["model_name_or_path"])}
        finished = train(**over)
        run = load_run(finished.folder / "out", device="cpu")
        pairs = [json.loads(line) for line in (tiny / "held_out.jsonl").read_text().splitlines()]
        return finished, [run.tokens(**pair) for pair in pairs]

    return asked


@pytest.mark.parametrize("name", RUNS)
def test_loss_and_accuracy_are_those_of_the_last_evaluation(name, asked):
    finished, tables = asked(name)
    losses, right = [], []
    for table in tables:
        chosen, rejected = (BETA * table.of(side).advantage.sum() for side in ("chosen", "rejected"))
        losses.append(-logsigmoid(chosen - rejected) + l1_norms(table, RUNS[name].get("sparsepo", {})))
        right.append(float(chosen > rejected))
    assert torch.stack(losses).mean().item() == pytest.approx(finished.scalars("eval/eval_loss")[-1], abs=TOLERANCE)
    assert sum(right) / len(right) == pytest.approx(finished.scalars("eval/acc_mean")[-1])
    assert max(table.log_ratio.abs().max() for table in tables) > 0.01, "a policy that is its reference shows nothing"


def l1_norms(table, section):
    """λ_u·‖m_u‖₁ + λ_d·‖m_d‖₁ of both responses, where the run has such terms."""
    if table.mask_reward is None:
        return 0.0
    weights = {"l1_reward": L1, "l1_kl": L1, **(section or {})}
    return (weights["l1_reward"] or 0) * table.mask_reward.sum() + (weights["l1_kl"] or 0) * table.mask_kl.sum()


def test_what_is_logged_of_the_tokens_is_what_the_table_says(asked):
    """Means over the tokens of a batch, weighted by its pairs: the evaluation has batches of 8 and 4."""
    finished, tables = asked("full")
    for side in ("chosen", "rejected"):
        for name, column in (("token_kl", "kl"), ("mask_reward_mean", "mask_reward"), ("mask_kl_mean", "mask_kl")):
            means = [
                torch.cat([getattr(table.of(side), column) for table in batch]).mean()
                for batch in (tables[:8], tables[8:])
            ]
            expected = (8 * means[0] + 4 * means[1]).item() / 12
            assert finished.scalars(f"eval/{name}_{side}")[-1] == pytest.approx(expected, abs=TOLERANCE), name


def test_the_description_names_what_was_trained(asked, tiny):
    finished, _ = asked("LoRA, another reference")
    described = load_description(finished.folder / "out")
    assert (described.base_model, described.reference) == (str(tiny / "model"), str(tiny / "other"))
    assert (described.shared_reference, described.dtype, described.host) == (False, "float32", "openrlhf")
    assert described.versions.keys() >= {"sparsepo-plugin", "openrlhf", "deepspeed", "torch", "transformers", "peft"}
    assert described.loss.objective["beta"] == BETA
    shared = load_description(asked("LoRA, shared reference")[0].folder / "out")
    assert (shared.reference, shared.shared_reference) == (str(tiny / "model"), True)


def test_pages_and_figures_of_a_run(asked, tiny, tmp_path):
    """From the command line: its last numbers in the report, and in the CSV of the curves all that it logged."""
    folder, pairs = asked("full")[0].folder / "out", str(tiny / "held_out.jsonl")
    for arguments in (
        ["report", folder, "--pairs", pairs, "-o", tmp_path / "report.html"],
        ["curves", folder, "--pairs", pairs, "-o", tmp_path],
    ):
        done = CliRunner().invoke(app, [str(argument) for argument in arguments])
        assert done.exit_code == 0, done.output
    page, last = (tmp_path / "report.html").read_text(), last_metrics(folder)
    for name, value in last["eval"].items():
        if name not in ("step", "split"):
            assert re.search(rf"<th>{name}</th>(<td>[^<]*</td>)<td>{re.escape(f'{value:.4g}')}</td>", page), name
    with (tmp_path / "curves.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    logged = read_metrics(folder)
    assert [(row["split"], row["step"]) for row in rows] == [(row["split"], str(row["step"])) for row in logged]
    for row, numbers in zip(rows, logged, strict=True):
        for name in ("sparsity_reward_chosen", "sparsity_kl_rejected", "token_kl_chosen", "token_kl_margin"):
            assert float(row[name]) == numbers[name]
        assert float(row["accuracy"]) == numbers["accuracy"]
