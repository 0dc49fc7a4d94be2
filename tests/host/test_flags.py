"""OpenRLHF's flags keep their meaning under `loss: sparsepo`: the same change as in the host's own DPO, or none."""

from types import SimpleNamespace

import pytest
import torch
import yaml
from host_runs import DPO, difference, difference_of_weights
from tiny import decoder
from transformers import AutoTokenizer, MixtralConfig, MixtralForCausalLM

from sparsepo_plugin.hosts.openrlhf.program import load_program


@pytest.fixture(scope="session")
def mixture(tiny):
    """A tiny mixture of experts beside the other models."""
    torch.manual_seed(2)
    config = MixtralConfig(
        vocab_size=512,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_local_experts=4,
        pad_token_id=1,
        eos_token_id=2,
        initializer_range=0.2,
    )
    MixtralForCausalLM(config).save_pretrained(tiny / "mixture")
    AutoTokenizer.from_pretrained(tiny / "model").save_pretrained(tiny / "mixture")
    return str(tiny / "mixture")


def test_aux_loss_of_a_mixture_of_experts(train, mixture):
    model = {"model_name_or_path": mixture, "aux_loss_coef": 0.5}
    ours, host = train(model=model, sparsepo=DPO), train(model=model, loss=None, sparsepo=None)
    loss, weights = difference(ours, host)
    assert loss < 1e-5 and weights < 1e-5
    without = train(model={**model, "aux_loss_coef": 0}, sparsepo=DPO)
    assert difference_of_weights(ours, without) > 1e-4


def test_an_offloaded_reference(train):
    zero_3 = {"zero_stage": 3}
    loss, weights = difference(train(ds=zero_3, ref={"offload": True}), train(ds=zero_3))
    assert loss < 1e-6 and weights < 1e-6


def test_weight_decay_of_policy_and_masks_are_apart(train):
    decayed = train(sparsepo={"mask_weight_decay": 0.9}, adam={"weight_decay": 0.0})
    plain = train()
    first = {key: (decayed.weights[key] - plain.weights[key]).abs().max() for key in plain.weights}
    assert first["mask_head.reward.weight"] > 1e-4
    assert decayed.losses[0] == plain.losses[0]


def test_a_reference_of_its_own(train, tiny):
    """The losses start away from log 2 as soon as the reference is another model."""
    run = train(ref={"model_name_or_path": str(tiny / "other")})
    assert abs(run.losses[0] - train().losses[0]) > 1e-3


def test_the_host_says_when_all_tokens_are_computed(config, tmp_path):
    """Of the steps that it logs (`logger.logging_steps`), one in `metrics_every`."""
    file, host = tmp_path / "run.yaml", load_program()
    file.write_text(yaml.safe_dump(config()))
    for flags, full in (
        ([], [7, 14]),
        (["--sparsepo.metrics_every", "14"], [14]),
        (["--sparsepo.metrics_every", "10"], [14]),
    ):
        args = host.parse_args(["--config", str(file), "--logger.logging_steps", "7", *flags])
        loss = host.get_loss_class(args.loss, args.loss_plugins)(args)
        loss.wrap(*(SimpleNamespace(model=decoder("llama")) for _ in range(2)))
        step = loss.preference_step
        assert [number for number in range(1, 18) if step._needs_full_statistics(number)] == full


@pytest.mark.parametrize(
    ("prompt_key", "chat", "template"), [("prompt", False, "Q: {}"), (None, False, None), ("prompt", True, None)]
)
def test_the_template_that_a_run_describes_is_the_one_it_used(config, tmp_path, prompt_key, chat, template):
    """OpenRLHF puts `data.input_template` around prompts, and rows without a prompt's column have none."""
    file, host = tmp_path / "run.yaml", load_program()
    data = {"prompt_key": prompt_key, "input_template": "Q: {}", "apply_chat_template": chat}
    file.write_text(yaml.safe_dump(config(data=data)))
    args = host.parse_args(["--config", str(file)])
    loss = host.get_loss_class(args.loss, args.loss_plugins)(args)
    actor = SimpleNamespace(model=decoder("llama"))
    loss.wrap(actor, SimpleNamespace(model=decoder("llama")))
    assert actor.model.description.joining.input_template == template


@pytest.mark.parametrize(("program", "name"), [("train_dpo", "checkpoints_dpo"), ("train_sft", "checkpoints_sft")])
def test_checkpoints_lie_in_the_output_folder_unless_told(program, name):
    """Two runs with an `output_dir` each do not share their checkpoints."""
    parse = load_program(program).parse_args
    assert parse(["--ckpt.output_dir", "runs/a"]).ckpt.path == f"runs/a/{name}"
    assert parse(["--ckpt.output_dir", "runs/a", "--ckpt.path", "b"]).ckpt.path == "b"
