"""What is refused before a run starts: flags that a loss cannot honour, and models that cannot be used."""

from types import SimpleNamespace
from typing import Any

import torch

from ...config import LossConfig, objective_class, taken_from_host
from ...errors import SparsePOError, first_line
from ..models import (
    check_generation,
    check_head,
    check_vocabularies,
    empty_model,
    join,
    read_models,
    refuse_idle_dropout,
)
from .flags import LEAST_COEF, refuse_overwriting
from .keys import naming_flags
from .pairs import BadRows, check_pairs

_DEFAULTS = {"beta": 0.1, "label_smoothing": 0.0}  # OpenRLHF's


def shares_reference(args: SimpleNamespace) -> bool:
    """Whether the reference is the policy with its adapter off: the default with LoRA unless another is named."""
    if args.ref.share is not None:
        return args.ref.share
    return args.ds.lora.rank > 0 and args.ref.model_name_or_path == args.model.model_name_or_path


def refuse_flags(args: SimpleNamespace, config: LossConfig) -> None:
    """Refuse flags of OpenRLHF that a token-level loss cannot honour.

    Args:
        args: OpenRLHF's arguments.
        config: The chosen loss, for what it reads.

    Raises:
        SparsePOError: names the flag and the reason.
    """
    loss, share = config.loss, config.uses_reference and shares_reference(args)
    other_reference = args.ref.model_name_or_path != args.model.model_name_or_path
    taken = taken_from_host(objective_class(loss))
    refusals = {
        f"model.ipo_enable: IPO is OpenRLHF's own DPO with another loss, loss: {loss} cannot use it": (
            args.model.ipo_enable
        ),
        f"ref.model_name_or_path, ref.share and ref.offload have no effect: loss: {loss} reads no reference": (
            not config.uses_reference and (other_reference or args.ref.share is not None or args.ref.offload)
        ),
        f"{config.section}.metrics_every has no effect with model.nll_loss_coef, whose loss reads every token": (
            "metrics_every" in config.model_fields_set and args.model.nll_loss_coef > LEAST_COEF
        ),
        "ds.tensor_parallel_size: must be 1, the vocabulary head is used row by row and cannot be split": (
            args.ds.tensor_parallel_size > 1
        ),
        "ds.deepcompile: must be off, it compiles the forward that reference hooks read from": args.ds.deepcompile,
        f"{config.section}.on_nonfinite: skip is not possible with ds.zero_stage: 1 in bf16 and ds.grad_accum_dtype: "
        "fp32, where DeepSpeed cannot leave an update out": (
            config.on_nonfinite == "skip"
            and (args.ds.zero_stage, args.ds.param_dtype, args.ds.grad_accum_dtype) == (1, "bf16", "fp32")
        ),
        f"{config.section}.share_prefix: true is not possible with ds.ring_attn_size, which shares sequences over "
        "processes": config.share_prefix is True and args.ds.ring_attn_size > 1,
        f"{config.section}.share_prefix: true is not possible with ds.lora.dropout, drawn once for both "
        "sequences": config.share_prefix is True and args.ds.lora.rank > 0 and args.ds.lora.dropout > 0,
        "ref.share: true needs LoRA (ds.lora.rank above 0), whose adapter can be switched off": (
            share and args.ds.lora.rank < 1
        ),
        "ref.share: true and ref.model_name_or_path name two references: give one": share and other_reference,
        "ref.offload has no effect: with ref.share no reference model is loaded": share and args.ref.offload,
    }
    for flag, default in _DEFAULTS.items():
        given = getattr(args.model, flag) != default
        refusals[f"model.{flag} has no effect with loss: {loss}, which does not take it from there"] = (
            given and flag not in taken
        )
    for reason, applies in refusals.items():
        if applies:
            raise SparsePOError(reason)


def check_run(args: SimpleNamespace, strategy: Any, config: LossConfig | None = None) -> BadRows:
    """Find what can be found before training.

    Args:
        args: OpenRLHF's arguments.
        strategy: OpenRLHF's strategy.
        config: The loss; None is OpenRLHF's own DPO.

    Returns:
        The rows that `data.on_bad_row: drop` leaves out.

    Raises:
        SparsePOError: a model, a key of the masks, or a row of the data; the line names it.
    """
    return check_pairs(args, strategy, check_models(args, config), config)


def check_models(args: SimpleNamespace, config: LossConfig | None = None) -> Any:
    """Look at all models of a run, and put them together as training will, without memory for their weights.

    Args:
        args: OpenRLHF's arguments.
        config: The chosen loss; None is OpenRLHF's own DPO or SFT.

    Returns:
        The policy's Hugging Face config.

    Raises:
        SparsePOError: a model is missing, cannot be used, or has no router for `model.aux_loss_coef`; or a key of the
            masks does not fit the reference or has no effect.
    """
    names = model_names(args, config)
    refuse_overwriting(args, names)
    # What is drawn here must not change the start of an adapter, which comes after it from the same seed.
    with torch.random.fork_rng(devices=[]), naming_flags():
        models = read_models(names, args.model.trust_remote_code)
        check_vocabularies(models)
        for key, model in models.items():
            if config is not None:
                check_head(key, model)
            _check_model(key, model.config, args, config)
        policy = models["model.model_name_or_path"]
        check_generation("model.model_name_or_path", args.model.model_name_or_path, policy)
        policy = _with_adapter(policy, args)
        if config is not None:
            _check_loss(policy, models.get("ref.model_name_or_path"), args, config)
    return policy.config


def model_names(args: SimpleNamespace, config: LossConfig | None = None) -> dict[str, str]:
    """Every model of the run, by its key."""
    names = {"model.model_name_or_path": args.model.model_name_or_path}
    if hasattr(args, "ref") and (config is None or config.uses_reference):
        names["ref.model_name_or_path"] = args.ref.model_name_or_path
    if config is not None and config.oracle is not None:
        names[f"{config.section}.oracle"] = config.oracle
    return names


def _check_model(key: str, config: Any, args: SimpleNamespace, loss: LossConfig | None) -> None:
    """Refuse flags that a model cannot be loaded with; whether it mixes packed samples, a loss of ours finds out."""
    from openrlhf.models.actor import PACKED_BY_POSITION_IDS

    kind, attention = config.model_type, args.ds.attn_implementation
    if args.model.aux_loss_coef > LEAST_COEF and not hasattr(config, "output_router_logits"):
        raise SparsePOError(f"model.aux_loss_coef has no effect: {kind} ({key}) has no expert router")
    if loss is not None:
        PACKED_BY_POSITION_IDS.add(kind)
    if args.ds.packing_samples and attention in ("sdpa", "eager") and kind not in PACKED_BY_POSITION_IDS:
        raise SparsePOError(
            f"ds.packing_samples: with {attention} attention a {kind} model ({key}) would mix samples; "
            "use flash_attention_2, or turn packing off"
        )
    try:
        model = empty_model(config, args.model.trust_remote_code, attn_implementation=attention)
    except (ImportError, ValueError) as error:
        raise SparsePOError(f"ds.attn_implementation: {attention} with {kind} ({key}): {first_line(error)}") from error
    if args.ds.experts_implementation and not model._can_set_experts_implementation():
        raise SparsePOError(f"ds.experts_implementation has no effect: {kind} ({key}) has no experts to compute")


def _with_adapter(policy: Any, args: SimpleNamespace) -> Any:
    """The policy, with its LoRA adapter if it gets one, as OpenRLHF's Actor makes it."""
    from peft import LoraConfig, TaskType, get_peft_model

    lora = args.ds.lora
    if lora.rank == 0:
        return policy
    if lora.rank > (width := policy.config.get_text_config().hidden_size):
        raise SparsePOError(f"ds.lora.rank: {lora.rank} is above the model's hidden size, {width}")
    settings = {"r": lora.rank, "lora_alpha": lora.alpha, "lora_dropout": lora.dropout}
    try:
        return get_peft_model(
            policy,
            LoraConfig(task_type=TaskType.CAUSAL_LM, target_modules=lora.target_modules, **settings),
            low_cpu_mem_usage=True,
        )
    except ValueError as error:
        raise SparsePOError(f"ds.lora.target_modules: {first_line(error)}") from error


def _check_loss(policy: Any, reference: Any | None, args: SimpleNamespace, config: LossConfig) -> None:
    """Put policy, reference and masks together."""
    check_head("ds.lora.target_modules", policy)
    refuse_idle_dropout(policy.config, config)
    joined = join(policy, None if shares_reference(args) else reference, config, args.train.seed)
    if args.optim == "muon" and joined.mask_group():
        _refuse_mask_group(config)


def _refuse_mask_group(config: LossConfig) -> None:
    """Under Muon DeepSpeed forms the parameter groups itself, so the masks cannot have one of their own."""
    if config.mask_lr != "policy":
        raise SparsePOError(
            f"optim: muon needs {config.section}.mask_lr: policy, DeepSpeed forms its parameter groups itself"
        )
    if "mask_weight_decay" in config.model_fields_set:
        raise SparsePOError(
            f"{config.section}.mask_weight_decay has no effect with optim: muon, which decays all alike"
        )
