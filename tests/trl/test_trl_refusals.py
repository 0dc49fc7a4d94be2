"""What cannot be honoured is one line with the argument and the reason, before a model is loaded if it can be."""

import pytest
from trl_runs import BASE

from sparsepo_plugin import SparsePOError

NONE = dict.fromkeys(BASE["loss_options"])  # leaves the options out

ARGUMENTS = {
    "precompute_ref_log_probs: must be off": {"precompute_ref_log_probs": True},
    "padding_free: must be off": {"padding_free": True},
    "use_liger_kernel: must be off": {"use_liger_kernel": True},
    "sync_ref_model: must be off": {"sync_ref_model": True},
    "torch_compile: must be off": {"torch_compile": True},
    "loss_type has no effect": {"loss_type": ["ipo"]},
    "loss_weights has no effect": {"loss_weights": [0.5]},
    "ld_alpha has no effect": {"ld_alpha": 0.5},
    "f_divergence_type has no effect": {"f_divergence_type": "forward_kl"},
    "use_weighting has no effect": {"use_weighting": True},
    "disable_dropout: has no effect here, sparsepo.disable_dropout": {"disable_dropout": False},
    "beta has no effect with loss: simpo": {"loss": "simpo", "loss_options": NONE},
    "loss: unknown objective 'sparspo'": {"loss": "sparspo"},
    "sparsepo.l1_rewrd is not a key of this section": {"loss_options": {"l1_rewrd": 1}},
    "sparsepo.mask_lr": {"loss_options": {"mask_lr": -1}},
    "loss_plugins: 'no_such_module' cannot be imported": {"loss_plugins": ["no_such_module"]},
    "loss_plugins: a list of modules is needed": {"loss_plugins": "token_ideas"},
}


@pytest.mark.parametrize("reason", ARGUMENTS)
def test_arguments(reason, make):
    with pytest.raises(SparsePOError) as caught:
        make(model="/no/such/model", **ARGUMENTS[reason])
    assert reason in str(caught.value) and "\n" not in str(caught.value)


def ds(**over) -> dict:
    return {"deepspeed": {"train_micro_batch_size_per_gpu": "auto", "train_batch_size": "auto", **over}}


@pytest.mark.parametrize(
    ("reason", "file"),
    [
        ("optimizer in its file", ds(zero_optimization={"stage": 2}, optimizer={"type": "AdamW"})),
        ("scheduler in its file", ds(zero_optimization={"stage": 2}, scheduler={"type": "WarmupLR"})),
        ("stage3_gather_16bit_weights_on_model_save: true", ds(zero_optimization={"stage": 3})),
        ("is not turned on where ACCELERATE_USE_CPU is set, or use_cpu", ds(zero_optimization={"stage": 2})),
    ],
)
def test_deepspeeds_file(reason, file, make, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "false")  # which the arguments set, for good
    monkeypatch.setattr("transformers.integrations.deepspeed._hf_deepspeed_config_weak_ref", None)
    with pytest.raises(SparsePOError, match="deepspeed: ") as caught:
        make(model="/no/such/model", **file)
    assert reason in str(caught.value)


def test_processes_that_would_train_apart(make, monkeypatch):
    """Started by torchrun on CPUs, with nothing that says so to accelerate."""
    from accelerate.state import PartialState

    monkeypatch.setenv("WORLD_SIZE", "2")
    PartialState._reset_state()
    with pytest.raises(SparsePOError, match="2 processes were started, and each would train alone"):
        make(model="/no/such/model", use_cpu=False)


def test_models_before_they_are_loaded(make, tiny):
    with pytest.raises(SparsePOError, match="model: /no/such/model cannot be loaded"):
        make(model="/no/such/model")
    with pytest.raises(SparsePOError, match=r"sparsepo\.oracle: /no/such/oracle cannot be loaded"):
        make(loss_options={**NONE, "mask": "selected", "oracle": "/no/such/oracle"})
    with pytest.raises(SparsePOError, match=r"sparsepo\.layers"):
        make(loss_options={"layers": [7]})
    with pytest.raises(SparsePOError, match=r"sparsepo\.disable_dropout: false has no effect: llama has no dropout"):
        make(loss_options={"disable_dropout": False})


def test_models_that_are_none(make, tiny, tmp_path):
    from transformers import (
        AutoModelForCausalLM,
        CohereConfig,
        CohereForCausalLM,
        T5Config,
        T5ForConditionalGeneration,
    )

    small = {"vocab_size": 64, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    scaled = CohereForCausalLM(CohereConfig(**small, num_attention_heads=2, num_key_value_heads=2, logit_scale=0.5))
    with pytest.raises(SparsePOError, match="model: the model's config sets logit_scale"):
        make(model=scaled)
    with pytest.raises(SparsePOError, match="model: t5 is an encoder-decoder"):
        make(model=T5ForConditionalGeneration(T5Config(vocab_size=64, d_model=16, d_ff=16, num_layers=1, num_heads=2)))
    reference = AutoModelForCausalLM.from_pretrained(tiny / "other")
    with pytest.raises(SparsePOError, match="ref_model has no effect: loss: simpo reads no reference"):
        make(ref_model=reference, loss="simpo", loss_options=NONE, beta=None)


def test_adapters(make, tiny):
    from peft import PromptTuningConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    with pytest.raises(ValueError, match=r"lm_head|vocabulary head"):  # TRL 1.16 says it itself
        make(lora={"target_modules": ["lm_head"]})
    prompted = get_peft_model(
        AutoModelForCausalLM.from_pretrained(tiny / "model"),
        PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2),
    )
    with pytest.raises(SparsePOError, match="PromptTuningConfig puts tokens before the prompt"):
        make(model=prompted)


def test_logits_are_never_there(make):
    from sparsepo_plugin.hosts.trl import SparsePOTrainer, SparsePOTrainerConfig

    with pytest.raises(SparsePOError, match="compute_metrics: cannot be used"):
        SparsePOTrainer("/no/such/model", args=SparsePOTrainerConfig(use_cpu=True), compute_metrics=print)
    with pytest.raises(SparsePOError, match="predict and compute_metrics cannot be used"):
        trainer = make()
        trainer.predict(trainer.train_dataset)


def test_an_optimizer_without_the_masks(make):
    import torch

    trainer = make()
    trainer.optimizer = torch.optim.SGD(trainer.model.lm_head.parameters(), lr=0.1)
    with pytest.raises(SparsePOError, match=r"optim: adamw_torch\w* does not hold the masks' parameters"):
        trainer.create_optimizer()


def test_arguments_can_be_parsed_and_written(tmp_path):
    """As TRL's own: from a command line, to JSON and back."""
    import json

    from transformers import HfArgumentParser

    from sparsepo_plugin.hosts.trl import SparsePOTrainerConfig

    parser = HfArgumentParser(SparsePOTrainerConfig)
    options = '{"mask": "learned", "shared": false, "l1_kl": 0.1}'
    words = ["--output_dir", str(tmp_path), "--use_cpu", "--loss", "sparsepo", "--loss_options", options]
    (args,) = parser.parse_args_into_dataclasses(words)
    assert args.loss_options == {"mask": "learned", "shared": False, "l1_kl": 0.1}
    again = json.loads(args.to_json_string())
    assert (again["loss"], again["loss_options"], again["loss_plugins"]) == ("sparsepo", args.loss_options, [])
