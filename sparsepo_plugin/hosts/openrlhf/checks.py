"""What is refused before a run starts: flags without effect, and models that cannot be used."""

import importlib.util
from types import SimpleNamespace
from typing import Any

from ...config import LossConfig, objective_class, taken_from_host
from ...errors import SparsePOError
from ...masks import learns
from ..models import masks_over, read_configs, refuse_idle_dropout
from .keys import naming_flags
from .pairs import BadRows, check_pairs

LEAST_COEF = 1e-8  # below, OpenRLHF leaves an extra loss out
_DEFAULTS = {"beta": 0.1, "label_smoothing": 0.0}  # OpenRLHF's


def shares_reference(args: SimpleNamespace) -> bool:
    """Whether the reference is the policy with its adapter off: the default with LoRA unless another is named."""
    if args.ref.share is not None:
        return args.ref.share
    return args.ds.lora.rank > 0 and args.ref.model_name_or_path == args.model.model_name_or_path


def refuse_missing(args: SimpleNamespace) -> None:
    """Refuse a run without model or data.

    Raises:
        SparsePOError: names the key.
    """
    if not args.model.model_name_or_path:
        raise SparsePOError("model.model_name_or_path is missing: a folder or a hub name is needed")
    if not args.data.dataset:
        raise SparsePOError("data.dataset is missing: a file, a folder or a hub name is needed")


def refuse_flags(args: SimpleNamespace, config: LossConfig) -> None:
    """Refuse flags of OpenRLHF that a token-level loss cannot honour.

    Args:
        args: OpenRLHF's arguments.
        config: The chosen loss, for what it reads.

    Raises:
        SparsePOError: names the flag and the reason.
    """
    refuse_missing(args)
    loss, share = config.loss, config.uses_reference and shares_reference(args)
    other_reference = args.ref.model_name_or_path != args.model.model_name_or_path
    ring, taken = args.ds.ring_attn_size > 1, taken_from_host(objective_class(loss))
    refusals = {
        f"model.ipo_enable: IPO is OpenRLHF's own DPO with another loss, loss: {loss} cannot use it": (
            args.model.ipo_enable
        ),
        f"ref.model_name_or_path, ref.share and ref.offload have no effect: loss: {loss} reads no reference": (
            not config.uses_reference and (other_reference or args.ref.share is not None or args.ref.offload)
        ),
        f"{config.section}.metrics_every has no effect with model.nll_loss_coef, whose loss reads every token": (
            config.metrics_every and args.model.nll_loss_coef > LEAST_COEF
        ),
        "ds.tensor_parallel_size: must be 1, the vocabulary head is used row by row and cannot be split": (
            args.ds.tensor_parallel_size > 1
        ),
        "ds.deepcompile: must be off, it compiles the forward that reference hooks read from": args.ds.deepcompile,
        "ds.ring_attn_size: more than 1 needs the package ring_flash_attn, which is not installed": (
            ring and importlib.util.find_spec("ring_flash_attn") is None
        ),
        f"{config.section}.on_nonfinite: skip is not possible with ds.zero_stage: 1 in bf16 and ds.grad_accum_dtype: "
        "fp32, where DeepSpeed cannot leave an update out": (
            config.on_nonfinite == "skip"
            and (args.ds.zero_stage, args.ds.param_dtype, args.ds.grad_accum_dtype) == (1, "bf16", "fp32")
        ),
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


def check_run(args: SimpleNamespace, strategy: Any, config: LossConfig | None) -> BadRows:
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
    refuse_missing(args)
    return check_pairs(args, strategy, check_models(args, config))


def check_models(args: SimpleNamespace, config: LossConfig | None) -> Any:
    """Read the configs of all models, and lay the masks of a loss over the reference.

    Returns:
        The policy's config.

    Raises:
        SparsePOError: a model is missing, cannot be used, or has no router for `model.aux_loss_coef`; or a key of the
            masks does not fit the reference or has no effect.
    """
    with naming_flags():
        configs = read_configs(model_names(args, config), args.model.trust_remote_code)
    for key, model in configs.items():
        if args.model.aux_loss_coef > LEAST_COEF and not hasattr(model, "output_router_logits"):
            raise SparsePOError(f"model.aux_loss_coef has no effect: {model.model_type} ({key}) has no expert router")
    policy = configs["model.model_name_or_path"]
    if config is not None:
        _check_masks(policy, configs.get("ref.model_name_or_path", policy), args, config)
    return policy


def _check_masks(policy: Any, read: Any, args: SimpleNamespace, config: LossConfig) -> None:
    refuse_idle_dropout(policy, config)
    masks = masks_over(read, config, args.train.seed)
    if args.optim == "muon" and masks and learns(masks):
        _refuse_mask_group(config)


def model_names(args: SimpleNamespace, config: LossConfig | None) -> dict[str, str]:
    """Every model of the run, by its key."""
    names = {"model.model_name_or_path": args.model.model_name_or_path}
    if config is None or config.uses_reference:
        names["ref.model_name_or_path"] = args.ref.model_name_or_path
    if config is not None and config.oracle is not None:
        names[f"{config.section}.oracle"] = config.oracle
    return names


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
