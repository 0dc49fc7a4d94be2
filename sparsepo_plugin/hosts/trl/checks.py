"""What is refused before a run starts: arguments that a loss cannot honour, and models that cannot be used."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import MISSING, fields
from typing import Any

from accelerate.utils import DistributedType
from torch import nn
from transformers.integrations import deepspeed as hf_deepspeed
from trl import DPOConfig

from ...config import LossConfig, objective_class, taken_from_host
from ...errors import SparsePOError
from ...rehearsal import rehearse
from ..models import check_head, read_models, refuse_idle_dropout, refuse_kind
from .keys import naming_flags

# Of TRL's own losses. Each is the name of an argument.
_OF_OTHER_LOSSES = (
    "loss_type",
    "loss_weights",
    "ld_alpha",
    "f_divergence_type",
    "f_alpha_divergence_coef",
    "use_weighting",
    "discopop_tau",
)
_DEFAULTS = {
    each.name: each.default if each.default_factory is MISSING else each.default_factory()
    for each in fields(DPOConfig)
}


def refuse_arguments(args: Any, config: LossConfig) -> None:
    """Refuse arguments of TRL that a token-level loss cannot honour.

    Args:
        args: Of the trainer.
        config: The chosen loss, for what it reads.

    Raises:
        SparsePOError: names the argument and the reason.
    """
    loss, taken = config.loss, taken_from_host(objective_class(config.loss))
    refusals = {
        "precompute_ref_log_probs: must be off, it keeps one number for each response, and token-level losses read "
        "every token": args.precompute_ref_log_probs,
        "padding_free: must be off, TRL falls back to padding": args.padding_free,
        "use_liger_kernel: must be off, its fused loss and forward keep no numbers of tokens": args.use_liger_kernel,
        "sync_ref_model: must be off, the masks read one reference that stays as it is": args.sync_ref_model,
        "torch_compile: must be off, it compiles the forward that reference hooks read from": args.torch_compile,
        "parallelism_config: must not share sequences or the vocabulary head over processes": (
            _shares_sequences(args.parallelism_config)
        ),
        f"disable_dropout: has no effect here, {config.section}.disable_dropout in loss_options says it": (
            not args.disable_dropout
        ),
    }
    refusals |= {
        f"{key} has no effect: it belongs to TRL's own losses, and loss: {loss} replaces them": (
            getattr(args, key) not in (_DEFAULTS[key], "sigmoid")
        )
        for key in _OF_OTHER_LOSSES
    }
    refusals |= {
        f"{key} has no effect with loss: {loss}, which does not take it from there": (
            getattr(args, key) != _DEFAULTS[key] and key not in taken
        )
        for key in ("beta", "label_smoothing")
    }
    refusals |= _of_deepspeed(args, config) | _of_launchers(args)
    for reason, applies in refusals.items():
        if applies:
            raise SparsePOError(reason)


def _of_launchers(args: Any) -> dict[str, Any]:
    """Refusals of processes that would not train together, which accelerate starts on CPUs without a word."""
    started, kind = os.environ.get("WORLD_SIZE", "1"), args.distributed_state.distributed_type
    return {
        f"{started} processes were started, and each would train alone: on CPUs set ACCELERATE_USE_CPU=true": (
            started != "1" and kind == DistributedType.NO
        ),
        "deepspeed: is not turned on where ACCELERATE_USE_CPU is set, or use_cpu": (
            args.deepspeed and kind != DistributedType.DEEPSPEED
        ),
    }


def _shares_sequences(parallelism: Any) -> bool:
    return any(getattr(parallelism, f"{kind}_size", 1) > 1 for kind in ("cp", "sp", "tp"))


def _of_deepspeed(args: Any, config: LossConfig) -> dict[str, Any]:
    """Refusals of what DeepSpeed's own file sets."""
    plugin = args.deepspeed_plugin
    if plugin is None:
        return {}
    given = plugin.hf_ds_config.config
    own_rate = bool(config.masks) and config.mask_lr != "policy"
    gathers = given.get("zero_optimization", {}).get("stage3_gather_16bit_weights_on_model_save", False)
    return {
        f"deepspeed: {key} in its file forms one group of all parameters, and {config.section}.mask_lr needs another "
        f"one; leave {key} to the trainer": own_rate and key in given
        for key in ("optimizer", "scheduler")
    } | {
        "deepspeed: ZeRO-3 needs zero_optimization.stage3_gather_16bit_weights_on_model_save: true, or the masks "
        "cannot be saved": plugin.zero_stage == 3 and config.masks and not gathers
    }


def check_models(args: Any, config: LossConfig, model: Any, ref_model: Any, peft_config: Any) -> None:
    """Look at the models of a run before one is loaded, as far as they have a name; masks and loss run once.

    Args:
        args: Of the trainer.
        config: The loss.
        model: The policy, or its name.
        ref_model: The reference, if the caller has one.
        peft_config: Of an adapter that the trainer will make.

    Raises:
        SparsePOError: a model cannot be used, or a key of the masks does not fit it; the line says which.
    """
    if ref_model is not None and not config.uses_reference:
        raise SparsePOError(f"ref_model has no effect: loss: {config.loss} reads no reference")
    named = {"model": model, f"{config.section}.oracle": config.oracle}
    named = {key: name for key, name in named.items() if isinstance(name, str)}
    with naming_flags(), _without_zero_3():
        models = read_models(named, args.trust_remote_code, quantised=peft_config is not None)
        for key, loaded in {"model": model, "ref_model": ref_model}.items():
            if isinstance(loaded, nn.Module):
                models[key] = loaded
                refuse_kind(key, loaded.config, quantised=True)
        for key, each in models.items():
            check_head(key, each)
        refuse_idle_dropout(models["model"].config, config)
        read = models.get("ref_model", models["model"]).config.get_text_config()
        rehearse(config, read.hidden_size, read.num_hidden_layers, args.seed)
    for adapter in (peft_config, *getattr(model, "peft_config", {}).values()):
        if getattr(adapter, "is_prompt_learning", False):
            raise SparsePOError(
                f"peft_config: {type(adapter).__name__} puts tokens before the prompt; take one such as LoRA"
            )


@contextmanager
def _without_zero_3() -> Iterator[None]:
    """Within the context transformers shards no model that it makes, as it cannot on the meta device."""
    held = hf_deepspeed._hf_deepspeed_config_weak_ref and hf_deepspeed._hf_deepspeed_config_weak_ref()
    hf_deepspeed.unset_hf_deepspeed_config()
    try:
        yield
    finally:
        if held is not None:
            hf_deepspeed.set_hf_deepspeed_config(held)
