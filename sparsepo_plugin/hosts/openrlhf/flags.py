"""OpenRLHF's own flags, whatever the loss: their ranges, what they need, which have no effect, where they write."""

import errno
import importlib.util
import math
import os
from argparse import Action, ArgumentDefaultsHelpFormatter, ArgumentParser
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryFile
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch

from ...errors import SparsePOError, shown

LEAST_COEF = 1e-8  # below, OpenRLHF leaves an extra loss out
LARGEST = 2**31 - 1  # of a whole number: no count of a run comes near, and tensors take no more


class Range(NamedTuple):
    """What a number may be."""

    says: str
    holds: Callable[[float], bool]


_ABOVE_0 = Range("a number above 0", lambda value: value > 0)
_FROM_0 = Range("0 or above", lambda value: value >= 0)
_COUNT = Range("a whole number from 1", lambda value: 1 <= value <= LARGEST)
_WORKERS = Range("a whole number from 0 to 1024", lambda value: 0 <= value <= 1024)
_SIZE = Range("a whole number from 0", lambda value: 0 <= value <= LARGEST)
_STEPS = Range("a whole number from 1, or -1", lambda value: value == -1 or 1 <= value <= LARGEST)
_SHARE = Range("a number from 0 to 1", lambda value: 0 <= value <= 1)
_BELOW_1 = Range("a number from 0 to below 1", lambda value: 0 <= value < 1)
_BELOW_HALF = Range("a number from 0 to below 0.5", lambda value: 0 <= value < 0.5)
_COEF = Range(f"0, or above {LEAST_COEF}", lambda value: value == 0 or value > LEAST_COEF)
_STAGE = Range("0, 1, 2 or 3", lambda value: value in (0, 1, 2, 3))
_SEED = Range("a whole number from 0 to 4294967295", lambda value: 0 <= value < 2**32)
_RANK = Range("a whole number from 0, or -1", lambda value: -1 <= value <= LARGEST)

RANGES = {
    "adam.betas": _BELOW_1,
    "adam.eps": _ABOVE_0,
    "adam.lr": _ABOVE_0,
    "adam.weight_decay": _FROM_0,
    "ckpt.max_mem": _COUNT,
    "ckpt.max_num": _COUNT,
    "ckpt.save_steps": _STEPS,
    "data.dataloader_num_workers": _WORKERS,
    "data.max_len": _COUNT,
    "data.max_samples": _COUNT,
    "ds.lora.alpha": _COUNT,
    "ds.lora.dropout": _BELOW_1,
    "ds.lora.rank": _SIZE,
    "ds.ring_attn_head_stride": _COUNT,
    "ds.ring_attn_size": _COUNT,
    "ds.tensor_parallel_size": _COUNT,
    "ds.zero_stage": _STAGE,
    "ds.zpg": _COUNT,
    "eval.steps": _STEPS,
    "local_rank": _RANK,
    "logger.logging_steps": _COUNT,
    "lr_warmup_ratio": _SHARE,
    "max_norm": _FROM_0,
    "min_lr_ratio": _SHARE,
    "model.aux_loss_coef": _COEF,
    "model.beta": _ABOVE_0,
    "model.label_smoothing": _BELOW_HALF,
    "model.nll_loss_coef": _COEF,
    "muon.lr": _ABOVE_0,
    "muon.momentum": _BELOW_1,
    "muon.ns_steps": _COUNT,
    "train.batch_size": _COUNT,
    "train.max_epochs": _COUNT,
    "train.micro_batch_size": _COUNT,
    "train.seed": _SEED,
}

# What a flag has no effect without.
NEEDS = {
    "ckpt.disable_ds": ("ckpt.save_steps", lambda args: args.ckpt.save_steps > 0),
    "ckpt.save_hf": ("ckpt.save_steps", lambda args: args.ckpt.save_steps > 0),
    "data.tokenizer_chat_template": ("data.apply_chat_template", lambda args: args.data.apply_chat_template),
    "ds.adam_offload": ("ds.zero_stage above 0", lambda args: args.ds.zero_stage > 0),
    "ds.lora.alpha": ("ds.lora.rank", lambda args: args.ds.lora.rank > 0),
    "ds.lora.dropout": ("ds.lora.rank", lambda args: args.ds.lora.rank > 0),
    "ds.lora.target_modules": ("ds.lora.rank", lambda args: args.ds.lora.rank > 0),
    "ds.ring_attn_head_stride": ("ds.ring_attn_size above 1", lambda args: args.ds.ring_attn_size > 1),
    "ds.use_universal_ckpt": ("ckpt.load_enable", lambda args: args.ckpt.load_enable),
    "ds.zpg": ("ds.zero_stage: 3", lambda args: args.ds.zero_stage == 3),
    "eval.split": ("eval.dataset", lambda args: args.eval.dataset),
    "eval.steps": ("eval.dataset", lambda args: args.eval.dataset),
    "logger.wandb.group": ("logger.wandb.key", lambda args: args.logger.wandb.key),
    "logger.wandb.org": ("logger.wandb.key", lambda args: args.logger.wandb.key),
    "logger.wandb.project": ("logger.wandb.key", lambda args: args.logger.wandb.key),
    "min_lr_ratio": ("a scheduler with_min_lr", lambda args: args.lr_scheduler.endswith("with_min_lr")),
    "model.gradient_checkpointing_reentrant": (
        "model.gradient_checkpointing_enable",
        lambda args: args.model.gradient_checkpointing_enable,
    ),
    "muon.lr": ("optim: muon", lambda args: args.optim == "muon"),
    "muon.momentum": ("optim: muon", lambda args: args.optim == "muon"),
}


def by_section(parser: ArgumentParser) -> str:
    """The flags of a parser under the names of their sections, those without one first; `--help` is left out."""
    sections: dict[str, list[Action]] = {"": []}
    for action in parser._actions:
        if action.dest != "help":
            sections.setdefault(action.dest.rpartition(".")[0], []).append(action)
    formatter = ArgumentDefaultsHelpFormatter("", max_help_position=40, width=119)
    for section, actions in sections.items():
        formatter.start_section(section or "without a section")
        formatter.add_arguments(actions)
        formatter.end_section()
    return formatter.format_help()


def check_flags(args: SimpleNamespace, parser: ArgumentParser, processes: int | None = None) -> None:
    """Refuse what would fail or do nothing later.

    Args:
        args: OpenRLHF's arguments, of its DPO or SFT.
        parser: Theirs, for the defaults.
        processes: How many train; by default as the launcher says in WORLD_SIZE.

    Raises:
        SparsePOError: names the flag, its value and what is allowed.
    """
    for key, allowed in RANGES.items():
        for value in _values(args, key):
            finite = isinstance(value, int) or math.isfinite(value)
            if not (finite and allowed.holds(value)):
                raise SparsePOError(f"{key}: {allowed.says} is needed, not {shown(value)}")
    _refuse_first(
        {
            **_missing(args),
            **_unusable(args),
            **_indivisible(args, processes or _launched()),
            **_idle(args, parser),
        }
    )
    for key, folder in _folders(args).items():
        _check_folder(key, folder)


def _refuse_first(refusals: dict[str, Any]) -> None:
    for reason, applies in refusals.items():
        if applies:
            raise SparsePOError(reason)


def _has_cuda() -> bool:
    return torch.cuda.is_available()


def _get(args: SimpleNamespace, key: str) -> Any:
    """The value of a flag; None where this program has no such flag."""
    for name in key.split("."):
        args = getattr(args, name, None)
    return args


def _values(args: SimpleNamespace, key: str) -> Iterator[float]:
    value = _get(args, key)
    yield from value if isinstance(value, list | tuple) else () if value is None else (value,)


def _missing(args: SimpleNamespace) -> dict[str, Any]:
    """Refusals of what this machine or environment does not have."""
    attention, ds, cuda = args.ds.attn_implementation, args.ds, _has_cuda()
    return {
        "model.model_name_or_path is missing: a folder or a hub name is needed": not args.model.model_name_or_path,
        "data.dataset is missing: a file, a folder or a hub name is needed": not args.data.dataset,
        "ds.ring_attn_size: more than 1 needs the package ring_flash_attn, which is not installed": (
            ds.ring_attn_size > 1 and not _installed("ring_flash_attn")
        ),
        f"ds.attn_implementation: {shown(attention)} needs a CUDA GPU, there is none here; sdpa and eager do not": (
            ("flash" in attention or "flex" in attention) and not cuda
        ),
        f"ds.attn_implementation: {shown(attention)} is for generation alone, tokens would see those after them": (
            "paged" in attention
        ),
        "ds.experts_implementation: deepgemm needs a CUDA GPU, and there is none here": (
            ds.experts_implementation == "deepgemm" and not cuda
        ),
        "ds.deepcompile: needs a CUDA GPU, and there is none here": ds.deepcompile and not cuda,
        "ds.use_liger_kernel: needs a CUDA GPU, and there is none here": ds.use_liger_kernel and not cuda,
        "ds.use_liger_kernel: needs the package liger_kernel": ds.use_liger_kernel and not _installed("liger_kernel"),
        "ds.load_in_4bit: needs the package bitsandbytes": ds.load_in_4bit and not _installed("bitsandbytes"),
        "ds.param_dtype: fp16 is not supported by this processor; bf16 and fp32 are": (
            ds.param_dtype == "fp16" and not _accelerator().is_fp16_supported()
        ),
        "logger.wandb.key: needs the package wandb": args.logger.wandb.key and not _installed("wandb"),
        "logger.tensorboard_dir: needs the package tensorboard": (
            args.logger.tensorboard_dir and not _installed("tensorboard")
        ),
    }


def _unusable(args: SimpleNamespace) -> dict[str, Any]:
    """Refusals of values and pairs of flags that fail inside transformers or DeepSpeed."""
    from transformers import SchedulerType

    ds, accumulated = args.ds, args.ds.grad_accum_dtype
    # The first has a parameter that OpenRLHF does not pass; the other wants a loss, and DeepSpeed gives it the batch.
    unusable = ("warmup_stable_decay", "reduce_lr_on_plateau")
    schedulers = [kind.value for kind in SchedulerType if kind.value not in unusable]
    return {
        "muon.ns_steps and muon.nesterov have no effect: DeepSpeed's Muon takes 5 steps, with Nesterov momentum": (
            args.muon.ns_steps != 5 or not args.muon.nesterov
        ),
        f"lr_scheduler: expected one of {', '.join(schedulers)}, got {shown(args.lr_scheduler)}": (
            args.lr_scheduler not in schedulers
        ),
        "lr_scheduler: polynomial ends at 1e-7, which adam.lr must be above": (
            args.lr_scheduler == "polynomial" and args.adam.lr <= 1e-7
        ),
        f"ds.grad_accum_dtype: expected one of bf16, fp16, fp32, got {shown(accumulated)}": (
            accumulated not in (None, "bf16", "fp16", "fp32")
        ),
        f"ds.grad_accum_dtype: must be ds.param_dtype ({ds.param_dtype}) with ds.zero_stage: 0": (
            ds.zero_stage == 0 and accumulated not in (None, ds.param_dtype)
        ),
        "ds.load_in_4bit: needs ds.lora.rank above 0, weights of 4 bits cannot be trained": (
            ds.load_in_4bit and ds.lora.rank == 0
        ),
        "ds.load_in_4bit: needs ds.param_dtype: bf16": ds.load_in_4bit and ds.param_dtype != "bf16",
        "ds.tensor_parallel_size: more than 1 needs ds.param_dtype: bf16": (
            ds.tensor_parallel_size > 1 and ds.param_dtype != "bf16"
        ),
        "optim: muon cannot be used with ds.zero_stage: 3, DeepSpeed has it for stages 0 to 2": (
            args.optim == "muon" and ds.zero_stage == 3
        ),
    }


def _indivisible(args: SimpleNamespace, processes: int) -> dict[str, Any]:
    """Refusals of batches and groups that cannot be shared out evenly."""
    group = args.ds.ring_attn_size * args.ds.tensor_parallel_size
    each = args.train.micro_batch_size * processes
    return {
        f"ds.ring_attn_size × ds.tensor_parallel_size is {group}, which must divide the {processes} processes": (
            processes % group
        ),
        f"train.batch_size: {args.train.batch_size} is no multiple of train.micro_batch_size × processes, "
        f"{args.train.micro_batch_size} × {processes // group or 1}": args.train.batch_size * group % each,
    }


def _idle(args: SimpleNamespace, parser: ArgumentParser) -> dict[str, Any]:
    """Refusals of flags that are not as OpenRLHF has them by default, and do nothing."""
    defaults = {key: parser.get_default(key) for key in NEEDS}
    return {
        f"{key} has no effect without {needed}": (_get(args, key) not in (None, defaults[key]) and not condition(args))
        for key, (needed, condition) in NEEDS.items()
    }


def _folders(args: SimpleNamespace) -> dict[str, str]:
    """The folders that a run writes, by key."""
    folders = {"ckpt.output_dir": args.ckpt.output_dir}
    if args.logger.tensorboard_dir is not None:
        folders["logger.tensorboard_dir"] = args.logger.tensorboard_dir
        folders["logger.wandb.run_name"] = os.path.join(args.logger.tensorboard_dir, args.logger.wandb.run_name)
    if args.ckpt.save_steps > 0:
        folders["ckpt.path"] = args.ckpt.path
    return folders


def _check_folder(key: str, folder: str) -> None:
    """Refuse a folder that is none, or cannot be made or written; leaves nothing behind."""
    if not folder or folder.startswith("~"):
        raise SparsePOError(f"{key}: a folder is needed, not {shown(folder)} (~ is not expanded)")
    place = Path(folder)
    try:
        while not _exists(place):
            place = place.parent
        if not place.is_dir():
            raise SparsePOError(f"{key}: a folder is needed, {place} is none")
        longest = max(len(os.fsencode(part)) for part in Path(folder).absolute().parts)
        if longest > os.pathconf(place, "PC_NAME_MAX"):
            raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
        with TemporaryFile(dir=place):
            pass
    except SparsePOError:
        raise
    except (OSError, ValueError) as error:  # ValueError: a null byte
        reason = getattr(error, "strerror", None) or error
        raise SparsePOError(f"{key}: {shown(folder)} cannot be written: {reason}") from error


def _exists(path: Path) -> bool:
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def refuse_overwriting(args: SimpleNamespace, models: dict[str, str]) -> None:
    """Refuse to write where a model of the run lies.

    Args:
        args: OpenRLHF's arguments.
        models: Folder or hub name by key.

    Raises:
        SparsePOError: names both keys.
    """
    places = {model: os.path.realpath(name) for model, name in models.items() if os.path.isdir(name)}
    for key, folder in _folders(args).items():
        for model, place in places.items():
            if os.path.realpath(folder) == place:
                raise SparsePOError(f"{key}: {folder} is {model}, which the run would overwrite; give another folder")
            if key == "ckpt.path" and os.path.realpath(folder) == os.path.dirname(place):
                raise SparsePOError(f"{key}: {folder} holds {model}, and the run would write its own there")


def _launched() -> int:
    """Processes of the run, as its launcher says."""
    told = {name: os.environ.get(name, default) for name, default in (("WORLD_SIZE", "1"), ("RANK", "0"))}
    for name in ("LOCAL_RANK", "MASTER_PORT"):
        told[name] = os.environ.get(name, "0")
    for name, text in told.items():
        if not (text.isascii() and text.removeprefix("-").isdecimal()) or (name == "WORLD_SIZE" and int(text) < 1):
            raise SparsePOError(f"{name} in the environment: a whole number is needed, not {shown(text)}")
    count, rank = int(told["WORLD_SIZE"]), int(told["RANK"])
    if not 0 <= rank < count:
        raise SparsePOError(f"RANK in the environment: must be from 0 to below WORLD_SIZE ({count}), not {rank}")
    return count


def _installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def _accelerator() -> Any:
    from deepspeed.accelerator import get_accelerator

    return get_accelerator()
