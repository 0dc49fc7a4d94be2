"""OpenRLHF's own flags: numbers out of range, values and pairs that fail later, and flags that do nothing."""

import argparse
import math
from copy import deepcopy

import pytest
import torch
import yaml
from host_runs import merge

from sparsepo_plugin.errors import SparsePOError
from sparsepo_plugin.hosts.openrlhf.flags import NEEDS, RANGES, check_flags
from sparsepo_plugin.hosts.openrlhf.program import load_program

NAN, INF = math.nan, math.inf


def nest(key: str, value: object) -> dict:
    """`a.b` and 1 as {a: {b: 1}}."""
    for name in reversed(key.split(".")):
        value = {name: value}
    return value


# Whatever the loss: the table is the requirement's, and holds more than the code's where a value is the usual mistake.
OUT_OF_RANGE = {
    "adam.betas": ([1.0, 0.9], [0.9, 1.0], [-0.1, 0.9], [0.9, NAN], [0.9, INF], [0.9, 95.0]),
    "adam.eps": (0.0, -1e-8, NAN, INF),
    "adam.lr": (0.0, -1e-6, NAN, INF, -INF),
    "adam.weight_decay": (-0.1, NAN, INF),
    "ckpt.max_mem": (0, -1),
    "ckpt.max_num": (0, -1, 10**30),
    "ckpt.save_steps": (0, -2),
    "data.dataloader_num_workers": (-1, 1025),
    "data.max_len": (0, -5, 10**30),
    "data.max_samples": (0, -1),
    "ds.lora.alpha": (0, -16),
    "ds.lora.dropout": (1.0, -0.1, 5.0, NAN),
    "ds.lora.rank": (-4,),
    "ds.ring_attn_head_stride": (0,),
    "ds.ring_attn_size": (0, -1),
    "ds.tensor_parallel_size": (0,),
    "ds.zero_stage": (-1, 4),
    "ds.zpg": (0,),
    "eval.steps": (0, -3),
    "local_rank": (-2,),
    "logger.logging_steps": (0, -1),
    "lr_warmup_ratio": (-0.1, 1.5, NAN),
    "max_norm": (-1.0, NAN, INF),
    "min_lr_ratio": (-0.1, 1.1, NAN),
    "model.aux_loss_coef": (-0.1, NAN, INF, 1e-9),
    "model.beta": (0.0, -0.1, NAN, INF, -INF),
    "model.label_smoothing": (0.5, 2.0, -0.1, NAN),
    "model.nll_loss_coef": (-0.1, NAN, INF, 1e-9),
    "muon.lr": (0.0, -1.0, NAN, INF),
    "muon.momentum": (1.0, -0.1, NAN),
    "muon.ns_steps": (0,),
    "train.batch_size": (0, -8, 10**30),
    "train.max_epochs": (0, -1),
    "train.micro_batch_size": (0, -1),
    "train.seed": (-1, 2**32),
}


@pytest.mark.parametrize(
    ("key", "value"), [(key, value) for key, values in OUT_OF_RANGE.items() for value in values], ids=str
)
def test_out_of_range(refused, key, value):
    refused((f"{key}: ", " is needed, not "), over=nest(key, value))


@pytest.mark.parametrize("program", ["train_dpo", "train_sft"])
def test_every_number_has_a_range(program):
    numbers = {action.dest for action in load_program(program).get_parser()._actions if action.type in (int, float)}
    assert numbers <= RANGES.keys()
    assert RANGES.keys() == OUT_OF_RANGE.keys()


@pytest.mark.parametrize(
    ("over", "says"),
    [
        ({"model": {"model_name_or_path": None}}, "model.model_name_or_path is missing: a folder or a hub name"),
        ({"data": {"dataset": None}}, "data.dataset is missing: a file, a folder or a hub name"),
        ({"lr_scheduler": "cosin"}, "lr_scheduler: expected one of linear, cosine, "),
        ({"lr_scheduler": ""}, "lr_scheduler: expected one of linear, cosine, "),
        ({"lr_scheduler": "warmup_stable_decay"}, "lr_scheduler: expected one of"),
        ({"lr_scheduler": "reduce_lr_on_plateau"}, "lr_scheduler: expected one of"),
        ({"lr_scheduler": "polynomial", "adam": {"lr": 1e-8}}, "polynomial ends at 1e-7, which adam.lr must"),
        ({"lr_scheduler": "linear", "min_lr_ratio": 0.2}, "min_lr_ratio has no effect without a scheduler"),
        ({"ds": {"grad_accum_dtype": "fp8"}}, "ds.grad_accum_dtype: expected one of bf16, fp16, fp32, got 'fp8'"),
        ({"ds": {"grad_accum_dtype": "int8"}}, "ds.grad_accum_dtype: expected one of bf16, fp16, fp32"),
        (
            {"ds": {"grad_accum_dtype": "bf16", "zero_stage": 0}},
            "ds.grad_accum_dtype: must be ds.param_dtype (fp32) with ds.zero_stage: 0",
        ),
        ({"train": {"batch_size": 12}}, "12 is no multiple of train.micro_batch_size × processes, 8 × 1"),
        ({"train": {"micro_batch_size": 16}}, "8 is no multiple of train.micro_batch_size × processes, 16 × 1"),
        ({"ds": {"tensor_parallel_size": 2}}, "ds.tensor_parallel_size: more than 1 needs ds.param_dtype: bf16"),
        ({"ds": {"tensor_parallel_size": 2, "param_dtype": "bf16"}}, "must divide the 1 processes"),
        ({"ds": {"ring_attn_size": 2}}, "ds.ring_attn_size: more than 1 needs ds.packing_samples"),
        ({"optim": "muon", "ds": {"zero_stage": 3}}, "optim: muon cannot be used with ds.zero_stage: 3"),
        ({"optim": "muon"}, "optim: muon needs sparsepo.mask_lr: policy"),
        ({"optim": "muon", "muon": {"ns_steps": 6}}, "muon.ns_steps and muon.nesterov have no effect"),
        ({"optim": "muon", "muon": {"nesterov": False}}, "muon.ns_steps and muon.nesterov have no effect"),
        ({"ds": {"load_in_4bit": True}}, "ds.load_in_4bit: needs "),
        ({"model": {"ipo_enable": True}}, "model.ipo_enable: IPO is OpenRLHF's own DPO"),
        ({"model": {"aux_loss_coef": 0.1}}, "model.aux_loss_coef has no effect: llama (model.model_name_or_path)"),
        (
            {"sparsepo": {"share_prefix": True}, "ds": {"lora": {"rank": 4, "dropout": 0.1}}},
            "sparsepo.share_prefix: true is not possible with ds.lora.dropout",
        ),
        ({"sparsepo": {"share_prefix": "maybe"}}, "sparsepo.share_prefix: "),
        ({"ref": {"share": True}}, "ref.share: true needs LoRA (ds.lora.rank above 0)"),
        ({"ds": {"lora": {"rank": 4}}, "ref": {"offload": True}}, "ref.offload has no effect"),
        ({"ds": {"attn_implementation": "nonsense"}}, "ds.attn_implementation: nonsense with llama"),
        ({"ds": {"attn_implementation": ""}}, "ds.attn_implementation: "),
        (
            {"ds": {"attn_implementation": "paged|sdpa"}},
            "ds.attn_implementation: 'paged|sdpa' is for generation alone",
        ),
        ({"ds": {"experts_implementation": "eager"}}, "ds.experts_implementation has no effect: llama"),
        ({"ds": {"experts_implementation": "grouped_mm"}}, "ds.experts_implementation has no effect: llama"),
        ({"ds": {"lora": {"rank": 257}}}, "ds.lora.rank: 257 is above the model's hidden size, 256"),
        ({"ds": {"lora": {"rank": 2**31 - 1}}}, "ds.lora.rank: 2147483647 is above the model's hidden size, 256"),
        ({"ds": {"lora": {"rank": 4, "target_modules": ["nothing"]}}}, "ds.lora.target_modules: NoMatching"),
        ({"ds": {"lora": {"rank": 4, "target_modules": []}}}, "ds.lora.target_modules: NoMatchingPeftModuleError: "),
        ({"ds": {"lora": {"rank": 4, "target_modules": ["lm_head"]}}}, "ds.lora.target_modules: the vocabulary head"),
        ({"loss": "simpo", "model": {"beta": 0.3}}, "model.beta has no effect with loss: simpo"),
        ({"use_ms": True}, "use_ms: needs the package modelscope"),
        ({"logger": {"wandb": {"key": "k"}}}, "logger.wandb.key: needs the package wandb"),
    ],
    ids=str,
)
def test_values_and_pairs_that_fail_later(refused, over, says):
    section = {"sparsepo": None} if over.get("loss") == "simpo" else {}
    refused((says,), over={**over, **section})


IDLE = {
    "ckpt.disable_ds": True,
    "ckpt.save_hf": True,
    "data.tokenizer_chat_template": "{{ messages }}",
    "ds.lora.alpha": 32,
    "ds.lora.dropout": 0.1,
    "ds.lora.target_modules": ["q_proj"],
    "ds.ring_attn_head_stride": 2,
    "ds.use_universal_ckpt": True,
    "ds.zpg": 2,
    "eval.split": "train",
    "eval.steps": 5,
    "logger.wandb.group": "g",
    "logger.wandb.org": "o",
    "logger.wandb.project": "p",
    "model.gradient_checkpointing_reentrant": True,
    "muon.lr": 0.1,
    "muon.momentum": 0.5,
}


@pytest.mark.parametrize("key", IDLE)
def test_flags_without_effect(refused, key):
    refused((f"{key} has no effect without {NEEDS[key][0]}",), over=nest(key, IDLE[key]))


def test_offloading_without_zero(refused):
    over = {"ds": {"adam_offload": True, "zero_stage": 0}}
    refused(("ds.adam_offload has no effect without ds.zero_stage above 0",), over=over)
    assert NEEDS.keys() == {*IDLE, "ds.adam_offload", "min_lr_ratio"}


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize(
    ("ds", "says"),
    [
        ({"attn_implementation": None}, "'flash_attention_2' needs a CUDA GPU"),  # OpenRLHF's default
        ({"attn_implementation": "flash_attention_3"}, "'flash_attention_3' needs a CUDA GPU"),
        ({"attn_implementation": "flash_attention_2", "packing_samples": True}, "needs a CUDA GPU"),
        ({"attn_implementation": "flex_attention", "packing_samples": True}, "'flash_attention_2' needs a CUDA GPU"),
        ({"attn_implementation": "flex_attention"}, "'flex_attention' needs a CUDA GPU"),
        ({"use_liger_kernel": True}, "ds.use_liger_kernel: needs a CUDA GPU"),
        ({"deepcompile": True}, "ds.deepcompile"),
        ({"experts_implementation": "deepgemm"}, "ds.experts_implementation: deepgemm needs a CUDA GPU"),
    ],
    ids=str,
)
def test_what_needs_a_gpu(refused, ds, says):
    refused((says,), over={"ds": ds})


@pytest.mark.parametrize("command", ["check", "train", "sft"])
@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("--model.modle", "x"), "--model.modle: unknown key model.modle; did you mean model"),
        (("--train.batchsize=8",), "unknown key train.batchsize; did you mean train.batch_size"),
        (("--nothing",), "--nothing: unknown key nothing"),
        (("-x",), "unexpected argument '-x'"),
        (("word",), "unexpected argument 'word': flags are --KEY VALUE"),
        (("--adam.lr",), "argument --adam.lr: expected one argument"),
        (("--adam.lr", "fast"), "argument --adam.lr: invalid float value: 'fast'"),
        (("--adam.lr", "nan"), "adam.lr: a number above 0 is needed, not nan"),
        (("--adam.lr", "-1"), "adam.lr: a number above 0 is needed, not -1.0"),
        (("--adam.lr", "inf"), "adam.lr: a number above 0 is needed, not inf"),
        (("--adam.betas", "0.9"), "argument --adam.betas: expected 2 arguments"),
        (("--adam.betas", "0.9", "2"), "adam.betas: a number from 0 to below 1 is needed, not 2.0"),
        (("--train.max_epochs", "1.5"), "argument --train.max_epochs: invalid int value: '1.5'"),
        (("--train.max_epochs", "0"), "train.max_epochs: a whole number from 1 is needed, not 0"),
        (("--train.seed", "9" * 5000), "argument --train.seed: invalid int value: '99999"),
        (("--optim", "sgd"), "argument --optim: invalid choice: 'sgd' (choose from 'adam', 'muon')"),
        (("--ds.packing_samples=1",), "argument --ds.packing_samples: ignored explicit argument '1'"),
        (("--model.gradient_checkpointing",), "ambiguous option: --model.gradient_checkpointing could match"),
        (("--" + "x" * 5000,), "--xxx"),
    ],
    ids=str,
)
def test_command_line(refused, command, flags, says, tiny):
    text = yaml.safe_dump({"model": {"model_name_or_path": str(tiny / "model")}, "data": {"dataset": "x"}})
    refused((says,), *flags, command=command, text=text + "ds: {attn_implementation: sdpa}")


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("--sparsepo.l1_kl",), "--sparsepo.l1_kl: expected a value"),
        (("--sparsepo.l1_kl", "--max_norm", "1"), "--sparsepo.l1_kl: expected a value"),
        (("--sparsepo.l1_kl", "much"), "sparsepo.l1_kl: input should be a valid number, not 'much'"),
        (("--sparsepo.l1_kl", ".nan"), "sparsepo.l1_kl: input should be a finite number, not nan"),
        (("--sparsepo.l1_kl", "0x" + "f" * 9000), "sparsepo.l1_kl: input should be a valid number, not a huge number"),
        (("--sparsepo.mask", "null"), "sparsepo.mask: input should be a valid string, not None"),
        (("--sparsepo.l1_kl", "{a"), "--sparsepo.l1_kl, line 1: while parsing a flow mapping"),
        (("--sparsepo.nothing=1",), "sparsepo.nothing is not a key of this section"),
        (("--sparsepo.",), "--sparsepo.: expected a value"),
        (("--sparsepo.mask.x", "1"), "--sparsepo.mask.x: mask is not a mapping"),
        (("--sparsepo" + ".x" * 50, "1"), "nested deeper than 32 levels"),
        (("--tdpo.alpha", "1"), "--tdpo.alpha: unknown key tdpo.alpha"),
        (("--loss", "sparsedpo"), "unknown loss 'sparsedpo'; registered are "),
        (("--loss", "dpo"), "unknown key sparsepo"),
        (("--loss", ""), "unknown loss ''; registered are "),
        (("--loss",), "argument --loss: expected one argument"),
        (("--loss_plugins", "no_such_module"), "loss_plugins: 'no_such_module' cannot be imported: no such module"),
        (("--config",), "argument --config: expected one argument"),
        (("--config", "absent.yaml"), "--config absent.yaml: No such file"),
    ],
    ids=str,
)
def test_command_line_of_a_loss(refused, flags, says):
    refused((says,), *flags)


SFT = {"data": {"input_key": "prompt", "output_key": "chosen", "input_template": None}, "loss": None, "sparsepo": None}


@pytest.mark.parametrize(
    ("over", "says"),
    [
        ({"model": {"beta": 0.1}}, "unknown key model.beta"),
        ({"loss": "sparsepo"}, "unknown key loss"),
        ({"data": {"multiturn": True}}, "data.multiturn: needs data.apply_chat_template"),
        ({"ds": {"ring_attn_size": 2}}, "ds.ring_attn_size: more than 1 needs ds.packing_samples"),
        ({"use_ms": True}, "use_ms: needs the package modelscope"),
        ({"adam": {"lr": -1.0}}, "adam.lr: a number above 0 is needed, not -1.0"),
        ({"train": {"batch_size": 12}}, "train.batch_size: 12 is no multiple of"),
        ({"lr_scheduler": "x"}, "lr_scheduler: expected one of"),
        ({"ckpt": {"output_dir": ""}}, "ckpt.output_dir: a folder is needed, not ''"),
        ({"model": {"model_name_or_path": None}}, "model.model_name_or_path is missing"),
    ],
    ids=str,
)
def test_fine_tuning(refused, config, over, says):
    good = merge(config(), {**SFT, "model": {"beta": None}, "data": {"prompt_key": None, **SFT["data"]}})
    refused((says,), command="sft", text=yaml.safe_dump(merge(good, over)))


@pytest.mark.parametrize(
    ("processes", "batch", "micro", "ring", "says"),
    [
        (2, 8, 8, 1, "8 is no multiple of train.micro_batch_size × processes, 8 × 2"),
        (3, 8, 2, 1, "8 is no multiple of train.micro_batch_size × processes, 2 × 3"),
        (2, 8, 4, 1, None),
        (1, 8, 8, 1, None),
        (4, 8, 4, 2, None),  # two groups of two processes
        (3, 8, 4, 2, "is 2, which must divide the 3 processes"),
    ],
)
def test_batches_are_shared_out_evenly(arguments, monkeypatch, processes, batch, micro, ring, says):
    """DeepSpeed: batch size = micro-batch × accumulation × groups of processes."""
    args, parser = arguments
    args.train.batch_size, args.train.micro_batch_size, args.ds.ring_attn_size = batch, micro, ring
    monkeypatch.setattr("sparsepo_plugin.hosts.openrlhf.flags._installed", lambda package: True)
    if says is None:
        check_flags(args, parser, processes)
        return
    with pytest.raises(SparsePOError, match=says):
        check_flags(args, parser, processes)


@pytest.mark.parametrize(
    "over",
    [
        {"model": {"beta": 1e-9, "label_smoothing": 0.49, "nll_loss_coef": 1e-7}},
        {"adam": {"lr": 1e-12, "betas": [0.0, 0.9999], "eps": 1e-30, "weight_decay": 0.0}},
        {"max_norm": 0.0, "lr_warmup_ratio": 1.0, "min_lr_ratio": 0.0},
        {"ckpt": {"save_steps": 1, "max_num": 1, "max_mem": 1}, "logger": {"logging_steps": 1}},
        {"train": {"seed": 2**32 - 1, "max_epochs": 1, "micro_batch_size": 1}},
        {"ds": {"zero_stage": 0, "grad_accum_dtype": "fp32"}},
        {"ds": {"zero_stage": 3, "zpg": 1, "lora": {"rank": 1, "alpha": 1, "dropout": 0.99}}},
        {"optim": "muon", "muon": {"lr": 1e-9, "momentum": 0.0}, "ds": {"zero_stage": 2}},
        {"lr_scheduler": "cosine_warmup_with_min_lr", "min_lr_ratio": 1.0},
        {"eval": {"dataset": "x", "split": "train", "steps": -1}},
    ],
    ids=str,
)
def test_limits_are_allowed(arguments, over):
    args, parser = arguments
    for section, values in over.items():
        _set(args, section, values)
    check_flags(args, parser)


@pytest.fixture
def arguments(config, tmp_path) -> tuple[argparse.Namespace, argparse.ArgumentParser]:
    """Arguments of the good YAML, and OpenRLHF's parser."""
    host, path = load_program(), tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(config(ckpt={"output_dir": str(tmp_path / "out"), "path": str(tmp_path / "c")})))
    return deepcopy(host.parse_args(["--config", str(path)])), host.get_parser()


def _set(args: object, key: str, value: object) -> None:
    if not isinstance(value, dict):
        setattr(args, key, value)
        return
    for name, entry in value.items():
        _set(getattr(args, key), name, entry)
