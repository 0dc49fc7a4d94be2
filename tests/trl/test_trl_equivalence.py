"""TRL's trainer with our losses against TRL's own, and settings that are the same experiment. Ten fp32 steps.

The tolerances are a few times the largest difference seen, which comes from the order of fp32 additions alone.
"""

from dataclasses import fields
from pathlib import Path

import pytest
from datasets import load_dataset
from host_runs import difference
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl_runs import BASE, TrlRun, make_trainer

LOSS, WEIGHTS = 1e-5, 1e-5
DPO = {"loss": "dpo", "loss_options": dict.fromkeys(("mask", "shared", "l1_reward", "l1_kl", "mask_lr"))}
LORA = {"lora": {"lora_dropout": 0.0}}


def assert_equal(one, other):
    loss, weights = difference(one, other)
    assert len(one.losses) == 10 and one.losses[0] != one.losses[-1]
    assert loss < LOSS and weights < WEIGHTS


class Plain(TrlRun):
    """What TRL's own trainer leaves: its losses are in its state."""

    @property
    def metrics(self):
        return self.history


def train_plain(folder, tiny, **over) -> Plain:
    return finish(make_trainer(folder, tiny, plain=True, **over))


def finish(trainer) -> Plain:
    trainer.train()
    trainer.save_model()
    run = Plain(0, "", Path(trainer.args.output_dir).parent)
    run.history = [row for row in trainer.state.log_history if "loss" in row]
    return run


@pytest.mark.parametrize("kind", ["full", "LoRA", "accumulated, evaluated"])
def test_dpo_is_the_hosts_own(kind, train, tiny, tmp_path):
    """Losses, weights, and the numbers that both log."""
    over = {"full": {}, "LoRA": {**LORA, "learning_rate": 1e-2}}.get(
        kind, {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4}
    )
    ours, host = train(**DPO, **over), train_plain(tmp_path, tiny, **over)
    assert_equal(ours, host)
    for name, theirs in {
        "accuracy": "rewards/accuracies",
        "margin": "rewards/margins",
        "chosen_reward": "rewards/chosen",
        "logps/rejected": "logps/rejected",
        "lr": "learning_rate",
        "num_tokens": "num_tokens",
    }.items():
        assert ours.scalars(name) == pytest.approx(host.scalars(theirs), abs=1e-4), name


def test_length_normalised_dpo_is_the_hosts_own(train, tiny, tmp_path):
    """`loss_type: sigmoid_norm`."""
    own = train(loss="ln_dpo", loss_options={**DPO["loss_options"], "beta": 3.0}, beta=None)
    assert_equal(own, train_plain(tmp_path, tiny, beta=3.0, loss_type="sigmoid_norm"))


def test_alphapo_is_trls_own(train, tiny, tmp_path):
    """`loss_type: alphapo` of the experimental CPO, where a release has it."""
    cpo = pytest.importorskip("trl.experimental.cpo")
    known = {field.name for field in fields(cpo.CPOConfig)}
    if "alphapo" not in cpo.CPOConfig.__dataclass_fields__["loss_type"].metadata["choices"]:
        pytest.skip("this release has no alphapo")
    given = {key: value for key, value in BASE.items() if key in known and key != "beta"}
    config = cpo.CPOConfig(
        **given, output_dir=str(tmp_path / "out"), loss_type="alphapo", beta=1.5, simpo_gamma=0.3, alpha=0.2
    )
    pairs = load_dataset("json", data_files=str(tiny / "ended.jsonl"), split="train", cache_dir=str(tmp_path))
    model, tokenizer = (loader.from_pretrained(tiny / "model") for loader in (AutoModelForCausalLM, AutoTokenizer))
    trainer = cpo.CPOTrainer(model=model, args=config, train_dataset=pairs, processing_class=tokenizer)
    own = {"beta": 1.5, "gamma": 0.3, "alpha": 0.2}
    assert_equal(train(loss="alphapo", loss_options={**DPO["loss_options"], **own}, beta=None), finish(trainer))


def test_the_length_mask_is_the_hosts_ld_alpha(train, tiny, tmp_path):
    options = {**DPO["loss_options"], "mask": "length", "alpha": 0.3}
    ours, host = train(loss="weighted_dpo", loss_options=options), train_plain(tmp_path, tiny, ld_alpha=0.3)
    assert_equal(ours, host)
    assert ours.losses[-1] != train(**DPO).losses[-1]


def test_masks_one_and_zero_are_dpo(train):
    ones = {**DPO["loss_options"], "mask": "uniform", "shared": False, "kl": {"value": 0.0}}
    assert_equal(train(loss="sparsepo", loss_options=ones), train(**DPO))


def test_lora_shared_reference_equals_a_separate_one(train, tiny, tmp_path):
    """With `ref_model` the reference is a model of its own, and not the policy without its adapter."""
    apart = make_trainer(tmp_path, tiny, **LORA, ref_model=AutoModelForCausalLM.from_pretrained(tiny / "model"))
    apart.train()
    apart.save_model()
    assert apart.reference is not None and not apart.masked.shares_reference
    assert_equal(train(**LORA), TrlRun(0, "", tmp_path))


def test_an_adapter_that_was_trained_before_is_its_own_reference(train, tiny, tmp_path):
    """TRL keeps a copy of it under `ref`: the first loss is that of a policy that equals its reference."""
    from peft import PeftModel

    from sparsepo_plugin import load_run

    before = train(**LORA, **DPO, learning_rate=1e-2).folder / "out"
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny / "model"), before, is_trainable=True)
    trainer = make_trainer(tmp_path, tiny, **DPO, model=model, learning_rate=1e-2)
    trainer.train()
    trainer.save_model()
    assert trainer.state.log_history[0]["loss"] == pytest.approx(0.693147, abs=1e-6)
    table = load_run(tmp_path / "out").tokens("w1 w2 ", chosen="w3 w4 </s>", rejected="w5 </s>")
    off = load_run(before).tokens("w1 w2 ", chosen="w3 w4 </s>", rejected="w5 </s>")
    assert table.reference_logps.tolist() == pytest.approx(off.logps.tolist(), abs=1e-5)
    assert table.log_ratio.abs().max() > 1e-3


def test_gradient_checkpointing_changes_nothing(train):
    assert_equal(train(gradient_checkpointing=False), train())


def test_skipping_tokens_with_zero_masks_trains_the_same(train):
    """The start leaves many zeros. By default only every tenth step has the numbers that need all tokens."""
    start = {"init": "linear", "layers": "last", "shared": True}
    every, spare = train(loss_options={**start, "metrics_every": 1}), train(loss_options=start)
    assert 10 < every.scalars("sparsity_reward_chosen")[0] < 90
    assert_equal(spare, every)
    for name in ("token_kl_chosen", "logps/chosen"):
        assert [row["step"] for row in every.metrics if name in row] == [*range(1, 11)]
        (row,) = (row for row in spare.metrics if name in row)
        assert row["step"] == 10 and row[name] == pytest.approx(every.scalars(name)[-1], abs=1e-5)


LOSSES = ("tdpo", "simpo", "d2po", "dpop", "sepo", "confpo", "selective", "wpo", "adpo", "weighted_dpo")


@pytest.mark.parametrize("loss", LOSSES)
def test_the_other_losses_train(loss, train, tiny):
    options = {"sepo": {"oracle": str(tiny / "other")}, "weighted_dpo": {"mask": "diff"}}.get(loss, {})
    flags = {"beta": None} if loss in ("simpo", "sepo", "confpo") else {}  # they have one of their own
    run = train(loss=loss, loss_options={**DPO["loss_options"], **options}, **flags)
    assert len(run.losses) == 10 and run.losses.isfinite().all()


def test_no_reference_is_loaded_where_none_is_read(make, capfd):
    trainer = make(**{**DPO, "loss": "simpo", "beta": None})
    assert trainer.ref_model is None and trainer.description.reference is None
    assert "precompute_ref_log_probs" not in capfd.readouterr().err
    assert trainer.args.precompute_ref_log_probs is False


def test_the_transport_mask_weighs_both_responses_alike(train):
    run = train(loss="weighted_dpo", loss_options={**DPO["loss_options"], "mask": "transport"})
    assert len(run.losses) == 10 and run.losses.isfinite().all()
    assert all(0 < value <= 1 for value in run.scalars("mask_reward_mean_chosen"))


def test_as_many_tokens_are_sampled_of_both_responses(train):
    run = train(loss="weighted_dpo", loss_options={**DPO["loss_options"], "mask": "sampled"})
    assert len(run.losses) == 10 and run.losses.isfinite().all()
    assert all(0 < value < 100 for value in run.scalars("sparsity_reward_chosen"))


def test_the_oracle_reward_may_be_negative(train, tiny):
    options = {**DPO["loss_options"], "mask": "oracle_reward", "oracle": str(tiny / "other"), "scale": 5.0}
    run = train(loss="weighted_dpo", loss_options=options)
    assert len(run.losses) == 10 and run.losses.isfinite().all()
    assert run.scalars("sparsity_reward_chosen") == [0.0] * 10


def test_the_selected_mask_reads_its_oracle(train, tiny):
    options = {**DPO["loss_options"], "mask": "selected", "oracle": str(tiny / "other"), "k": 0.5}
    run = train(loss="sparsepo", loss_options=options)
    assert all(20 < value < 60 for value in run.scalars("sparsity_reward_chosen"))
