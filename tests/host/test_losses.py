"""Each baseline objective through the real command line; tolerances as in test_equivalence.py."""

import json

import pytest
import torch
import yaml
from host_runs import difference, merge, places
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

from sparsepo_plugin.cli import app

LOSS, WEIGHTS = 1e-5, 1e-5
LOSSES = ("dpo", "tdpo", "dpop", "simpo", "d2po", "sepo", "weighted_dpo", "confpo", "selective", "wpo")
LOSSES += ("ln_dpo", "adpo", "alphapo")
OWN_SCALE = {"beta": None}  # of the base configuration, for losses whose scale is in their own section
SELECTED = {"mask": "selected", "shared": False, "oracle": "a"}
LORA = {"lora": {"rank": 4, "alpha": 8, "dropout": 0.0}}


@pytest.fixture(scope="session")
def method(tiny):
    """What the base configuration needs for a loss, as arguments of `train` and `config`."""
    sections = {
        "sparsepo": None,
        "dpo": {},
        "tdpo": {"version": 2, "alpha": 0.7},
        "dpop": {"lambda": 5},
        "simpo": {"beta": 2.5, "gamma": 0.3},
        "d2po": {"gamma": 0.9},
        "sepo": {"oracle": str(tiny / "other"), "k": 0.4},
        "weighted_dpo": {"mask": "sampled"},
        "confpo": {"beta": 2.5, "gamma": 0.3},
        "selective": {},
        "wpo": {},
        "ln_dpo": {"beta": 3},
        "adpo": {"segments": 3},
        "alphapo": {"beta": 1.5, "gamma": 0.3, "alpha": 0.2},
    }

    def method(loss: str, **over) -> dict:
        scale = {"model": OWN_SCALE} if loss in ("simpo", "sepo", "confpo", "ln_dpo", "alphapo") else {}
        return merge({"loss": loss, "sparsepo": None, loss: sections[loss], **scale}, over)

    return method


def test_dpo_is_the_hosts_own(train, method):
    ours, host = train(**method("dpo")), train(loss=None, sparsepo=None)
    loss, weights = difference(ours, host)
    assert len(host.losses) == 10 and host.losses[0] != host.losses[-1]
    assert loss < LOSS and weights < WEIGHTS


@pytest.mark.parametrize("loss", LOSSES[1:])
def test_two_packed_processes_under_zero_3_equal_one_padded(loss, train, method):
    one = train(**method(loss))
    zero_3 = {"zero_stage": 3, "packing_samples": True}
    two = train(processes=2, **method(loss, ds=zero_3, train={"micro_batch_size": 4}))
    difference_of_losses, difference_of_weights = difference(two, one)
    assert len(one.losses) == 10 and one.losses[0] != one.losses[-1]
    assert difference_of_losses < LOSS and difference_of_weights < WEIGHTS


def test_a_mask_that_learns_beside_one_of_the_policy(train):
    """Then both come after the policy's forward, and ZeRO-3 gathers the parameters of the one in that order."""
    masks = {"sparsepo": {"reward": {"mask": "confidence"}, "l1_reward": None, "metrics_every": None}}
    one = train(**masks)
    two = train(processes=2, **masks, ds={"zero_stage": 3, "packing_samples": True}, train={"micro_batch_size": 4})
    difference_of_losses, difference_of_weights = difference(two, one)
    assert any(name.startswith("mask_head.kl") for name in one.weights)
    assert difference_of_losses < LOSS and difference_of_weights < WEIGHTS


def test_every_method_takes_steps_of_its_own(train, method):
    """The equalities above would hold too if all names led to one loss."""
    runs = {loss: train(**method(loss)).losses for loss in LOSSES}
    runs["diff"] = train(**method("weighted_dpo", weighted_dpo={"mask": "diff", "outside": 0.2})).losses
    assert all(len(run) == 10 and run.isfinite().all() for run in runs.values())
    last = {loss: run[-1].item() for loss, run in runs.items()}
    assert len({round(value, 4) for value in last.values()}) == len(last), last


@pytest.mark.parametrize(
    "mask",
    [{"mask": "length", "alpha": 0.3}, {"mask": "oracle_reward", "scale": 0.2}, {"mask": "transport"}],
    ids=lambda mask: mask["mask"],
)
def test_masks_that_make_a_method_of_their_own(mask, train, method, tiny):
    """Ten steps of DPO's body with them, which are not DPO's."""
    oracle = {"oracle": str(tiny / "other")} if mask["mask"] == "oracle_reward" else {}
    run = train(**method("weighted_dpo", weighted_dpo={**mask, **oracle}))
    assert len(run.losses) == 10 and run.losses.isfinite().all()
    assert abs(run.losses[-1] - train(**method("dpo")).losses[-1]) > 1e-4


def test_models_that_are_loaded(train, method):
    """Each load of a checkpoint shows one progress bar: the policy's, the reference's, the oracle's."""
    loads = {loss: train(**method(loss)).output.count("Loading weights: 100%") for loss in ("simpo", "dpo", "sepo")}
    assert loads == {"simpo": 1, "dpo": 2, "sepo": 3}


def test_what_is_logged(train, method):
    first, *_, last = train(**method("tdpo")).scalars("train/token_kl_chosen")
    assert first == 0 < last
    selected = [100 - share for share in train(**method("sepo")).scalars("train/sparsity_reward_rejected")]
    assert all(20 < share <= 45 for share in selected)  # 0.4 of each response, rounded down, one token at least
    # All tokens are equal as long as the policy is its reference: the first step of the warm-up changes nothing.
    first, second, *later = train(**method("selective")).scalars("train/sparsity_reward_chosen")
    assert first == second == 0 and all(30 < share < 70 for share in later)
    with pytest.raises(KeyError):
        train(**method("simpo")).scalars("train/token_kl_chosen")


def test_lora_shared_reference_of_sepo(train, method):
    """The selection reads the policy without its adapter: two models are loaded, and the run is that of three."""
    shared, separate = train(**method("sepo", ds=LORA)), train(**method("sepo", ds=LORA, ref={"share": False}))
    assert shared.output.count("Loading weights: 100%") == 2
    loss, weights = difference(shared, separate)
    assert loss < LOSS and weights < WEIGHTS


def check(config: dict, folder) -> str:
    """The one line that `sparsepo check` refuses a configuration with."""
    file = folder / "bad.yaml"
    file.write_text(yaml.safe_dump(config))
    result = CliRunner().invoke(app, ["check", str(file)])
    assert result.exit_code == 2, result.output
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("sparsepo: error:")]
    return line


@pytest.mark.parametrize(
    ("loss", "over", "says"),
    [
        ("simpo", {"model": {"beta": 0.5}}, "model.beta has no effect with loss: simpo"),
        ("sepo", {"model": {"beta": 0.5}}, "model.beta has no effect with loss: sepo"),
        ("simpo", {"ref": {"model_name_or_path": "other"}}, "loss: simpo reads no reference"),
        ("simpo", {"ref": {"share": True}, "ds": LORA}, "loss: simpo reads no reference"),
        ("simpo", {"ref": {"offload": True}}, "loss: simpo reads no reference"),
        ("sepo", {"ref": {"share": True}}, "ref.share: true needs LoRA"),
        ("sepo", {"sepo": {"oracle": "/nowhere/oracle"}}, "sepo.oracle: /nowhere/oracle cannot be loaded"),
        ("sepo", {"sepo": {"oracle": None}}, "sepo.oracle is needed"),
        ("sparsepo", {"sparsepo": {**SELECTED, "kl": {"oracle": "b"}}}, "sparsepo.oracle: one oracle serves both"),
        ("tdpo", {"tdpo": {"version": 1}}, "tdpo.alpha has no effect with tdpo.version: 1"),
        ("dpo", {"dpo": {"mask": "learned"}}, "dpo.mask is not a key"),
        ("dpo", {"model": {"ipo_enable": True}}, "model.ipo_enable"),
    ],
)
def test_refused(loss, over, says, config, method, tmp_path):
    assert says in check(config(**method(loss, **over)), tmp_path)


def test_sft(tiny, sparsepo, tmp_path):
    """`sparsepo sft` is OpenRLHF's own train_sft: it learns, and leaves a model that preferences can start from."""
    settings = {
        "model": {"model_name_or_path": str(tiny / "model")},
        "data": {
            "dataset": str(tiny / "pairs.jsonl"),
            "input_key": "prompt",
            "output_key": "chosen",
            "input_template": "{}",
            "max_len": 32,
        },
        "train": {"batch_size": 8, "micro_batch_size": 8, "max_epochs": 1},
        "ds": {"zero_stage": 2, "param_dtype": "fp32", "attn_implementation": "sdpa"},
        "adam": {"lr": 1e-3},
    }
    file = tmp_path / "sft.yaml"
    file.write_text(yaml.safe_dump(merge(places(tmp_path), settings)))
    done = sparsepo("sft", str(file), "--adam.lr", "2e-3")
    assert done.returncode == 0, done.stderr[-3000:]
    texts = [row["prompt"] + row["chosen"] + " </s>" for row in map(json.loads, (tiny / "pairs.jsonl").open())]
    assert loss_of(tmp_path / "out", texts) < loss_of(tiny / "model", texts) - 0.1


def loss_of(folder, texts) -> float:
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    rows = [torch.tensor([tokenizer(text)["input_ids"]]) for text in texts]
    with torch.no_grad():
        return sum(model(row, labels=row).loss.item() for row in rows) / len(rows)


def test_sft_refuses_what_train_sft_does_not_know(tmp_path):
    file = tmp_path / "sft.yaml"
    file.write_text(yaml.safe_dump({"loss": "sparsepo"}))
    result = CliRunner().invoke(app, ["sft", str(file)])
    assert result.exit_code == 2 and "loss" in result.stderr
