"""What is refused before a run starts: flags without effect, unusable models, rows that cannot be trained on."""

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from ...config import SparsePOConfig
from ...errors import SparsePOError
from ...masks import build_masks
from ...step import PreferenceStep

_DEFAULT_BETA = 0.1  # OpenRLHF's
_LEAST_COEF = 1e-8  # below, OpenRLHF leaves an extra loss out
_FILE_ENDINGS = (".json", ".jsonl", ".csv", ".parquet", ".arrow", ".py")


def shares_reference(args: SimpleNamespace) -> bool:
    """Whether the reference is the policy with its adapter off: the default with LoRA unless another is named."""
    if args.ref.share is not None:
        return args.ref.share
    return args.ds.lora.rank > 0 and args.ref.model_name_or_path == args.model.model_name_or_path


def refuse_flags(args: SimpleNamespace, step: PreferenceStep) -> None:
    """Refuse flags of OpenRLHF that a token-level loss cannot honour.

    Args:
        args: OpenRLHF's arguments.
        step: The step of the chosen loss, for what it reads.

    Raises:
        SparsePOError: names the flag and the reason.
    """
    loss, reads_reference = step.config.loss, step.reads_reference
    share = reads_reference and shares_reference(args)
    other_reference = args.ref.model_name_or_path != args.model.model_name_or_path
    ring = args.ds.ring_attn_size > 1
    refusals = {
        "model.model_name_or_path is missing: a folder or a hub name is needed": not args.model.model_name_or_path,
        "data.dataset is missing: a file, a folder or a hub name is needed": not args.data.dataset,
        f"model.ipo_enable: IPO is OpenRLHF's own DPO with another loss, loss: {loss} cannot use it": (
            args.model.ipo_enable
        ),
        f"model.beta has no effect with loss: {loss}, whose scale is in its own section": (
            "beta" not in step.objective.supplied and args.model.beta != _DEFAULT_BETA
        ),
        f"ref.model_name_or_path, ref.share and ref.offload have no effect: loss: {loss} reads no reference": (
            not reads_reference and (other_reference or args.ref.share is not None or args.ref.offload)
        ),
        f"{loss}.metrics_every has no effect with model.nll_loss_coef, whose loss reads every token": (
            step.config.metrics_every and args.model.nll_loss_coef > _LEAST_COEF
        ),
        "ds.tensor_parallel_size: must be 1, the vocabulary head is used row by row and cannot be split": (
            args.ds.tensor_parallel_size > 1
        ),
        "ds.deepcompile: must be off, it compiles the forward that reference hooks read from": args.ds.deepcompile,
        "ds.ring_attn_size: more than 1 needs the package ring_flash_attn, which is not installed": (
            ring and importlib.util.find_spec("ring_flash_attn") is None
        ),
        "ref.share: true needs LoRA (ds.lora.rank above 0), whose adapter can be switched off": (
            share and args.ds.lora.rank < 1
        ),
        "ref.share: true and ref.model_name_or_path name two references: give one": share and other_reference,
        "ref.offload has no effect: with ref.share no reference model is loaded": share and args.ref.offload,
    }
    for reason, applies in refusals.items():
        if applies:
            raise SparsePOError(reason)


def check_models(args: SimpleNamespace, config: SparsePOConfig, reads_reference: bool) -> None:
    """Read the configs of all models, and lay the masks over the reference without memory for them.

    Args:
        args: OpenRLHF's arguments.
        config: The loss's section.
        reads_reference: Whether there is a reference at all.

    Raises:
        SparsePOError: a model is missing, is a vision model, or has no router for `model.aux_loss_coef`; or a key of
            the masks does not fit the reference or has no effect.
    """
    names = {"model.model_name_or_path": args.model.model_name_or_path}
    if "oracle" in config.options:
        names[f"{config.loss}.oracle"] = config.options["oracle"]
    if "oracle" in {*config.reward, *config.kl}:
        raise SparsePOError(f"{config.loss}.oracle: one oracle serves both masks, name it outside reward and kl")
    if reads_reference:
        names["ref.model_name_or_path"] = args.ref.model_name_or_path
    for flag, name in names.items():
        if (Path(name) / "adapter_config.json").is_file():
            raise SparsePOError(
                f"{flag}: {name} is a LoRA adapter; merge it into its model (openrlhf.cli.lora_combiner)"
            )
        model = _model_config(flag, name, args.model.trust_remote_code)
        if hasattr(model, "vision_config"):
            raise SparsePOError(
                f"{flag}: {model.model_type} is a vision model; loss: {config.loss} takes text decoders"
            )
        if args.model.aux_loss_coef > _LEAST_COEF and not hasattr(model, "output_router_logits"):
            raise SparsePOError(f"model.aux_loss_coef has no effect: {model.model_type} has no expert router")
    with torch.device("meta"):
        masks = build_masks(config, model.hidden_size, model.num_hidden_layers, args.train.seed)
    if args.optim == "muon" and masks and any(True for _ in masks.parameters()):
        _refuse_mask_group(config)


def _refuse_mask_group(config: SparsePOConfig) -> None:
    """Under Muon DeepSpeed forms the parameter groups itself, so the masks cannot have one of their own."""
    if config.mask_lr != "policy":
        raise SparsePOError("optim: muon needs sparsepo.mask_lr: policy, DeepSpeed forms its parameter groups itself")
    if "mask_weight_decay" in config.model_fields_set:
        raise SparsePOError("sparsepo.mask_weight_decay has no effect with optim: muon, which decays all alike")


def check_pairs(args: SimpleNamespace, strategy: Any) -> None:
    """Read the training and evaluation pairs as OpenRLHF will, and look at every row.

    Each rank looks at its share of the rows.

    Raises:
        SparsePOError: a file or column is missing, there are fewer pairs than a batch, or a row cannot be trained on;
            names the file and the row, counted from 1.
    """
    from openrlhf.datasets.utils import blending_datasets
    from openrlhf.utils import get_tokenizer

    remote_code = args.model.trust_remote_code
    tokenizer = get_tokenizer(
        args.model.model_name_or_path,
        None,
        "right",
        strategy,
        use_fast=not args.data.disable_fast_tokenizer,
        trust_remote_code=remote_code,
    )
    for flag, names, split in (
        ("data.dataset", args.data.dataset, args.data.dataset_split),
        ("eval.dataset", args.eval.dataset, args.eval.split),
    ):
        if not names:
            continue
        _check_files(flag, names)
        probabilities = args.data.dataset_probs if flag == "data.dataset" else None
        try:
            data = blending_datasets(names, probabilities, strategy, args.train.seed, dataset_split=split)
        except (OSError, ValueError) as error:
            raise SparsePOError(f"{flag}: {names} cannot be read: {_first_line(error)}") from error
        if hasattr(data, "keys"):
            raise SparsePOError(f"{flag}: {names} has the splits {', '.join(data)}; none is called {split!r}")
        if flag == "data.dataset":
            data = data.select(range(min(args.data.max_samples, len(data))))
        _check_rows(names, data, args, tokenizer, strategy)
        if flag == "data.dataset" and len(data) < args.train.batch_size:
            raise SparsePOError(f"{flag}: {names} has {len(data)} pairs, train.batch_size is {args.train.batch_size}")


def _check_files(flag: str, names: str) -> None:
    for name in names.split(","):
        path = name.split("@")[0].strip()
        if path.endswith(_FILE_ENDINGS) and not Path(path).is_file():
            raise SparsePOError(f"{flag}: {path} does not exist; a file, a folder or a hub name is needed")


def _check_rows(names: str, data: Any, args: SimpleNamespace, tokenizer: Any, strategy: Any) -> None:
    keys = {"data.prompt_key": args.data.prompt_key, "data.chosen_key": args.data.chosen_key}
    for flag, key in {**keys, "data.rejected_key": args.data.rejected_key}.items():
        if key and key not in data.column_names:
            raise SparsePOError(f"{flag}: {names} has no column {key!r}; columns are {', '.join(data.column_names)}")
    if args.data.apply_chat_template:
        tokenizer.chat_template = args.data.tokenizer_chat_template or tokenizer.chat_template
        if not tokenizer.chat_template:
            raise SparsePOError("data.apply_chat_template: the tokenizer has none; give data.tokenizer_chat_template")
    for row, prompt, responses in _texts(names, data, args, tokenizer, strategy):
        if _length(tokenizer, prompt) >= args.data.max_len - 2:
            continue  # OpenRLHF drops such pairs itself
        for key, response in responses.items():
            if not response.strip():
                raise SparsePOError(f"{names}, row {row}: {key} is empty; a response needs at least one word")
            # The text and the end-of-sequence token exactly as OpenRLHF's RewardDataset joins them.
            text = (prompt + response).rstrip("\n")
            ended = text if text.endswith(tokenizer.eos_token) else f"{text} {tokenizer.eos_token}"
            length = _length(tokenizer, ended)
            if length > args.data.max_len:
                raise SparsePOError(
                    f"{names}, row {row}: prompt and {key} have {length} tokens, data.max_len is {args.data.max_len}; "
                    "raise it or drop the row"
                )


def _texts(
    names: str, data: Any, args: SimpleNamespace, tokenizer: Any, strategy: Any
) -> Iterator[tuple[int, str, dict[str, str]]]:
    """Row number, prompt and responses of this rank's share of the rows, as OpenRLHF's RewardDataset makes them."""
    from openrlhf.datasets.reward_dataset import preprocess_data

    template = tokenizer.apply_chat_template if args.data.apply_chat_template else None
    keys = (args.data.prompt_key, args.data.chosen_key, args.data.rejected_key)
    for row in range(strategy.get_rank(), len(data), getattr(strategy, "world_size", 1)):
        try:
            texts = preprocess_data(data[row], args.data.input_template, *keys, template, is_dpo=True)[:3]
        except Exception as error:
            raise SparsePOError(f"{names}, row {row + 1}: {_first_line(error)}") from error
        for key, text in zip(("prompt", *keys[1:]), texts, strict=True):
            if not isinstance(text, str):
                raise SparsePOError(
                    f"{names}, row {row + 1}: {key} is {type(text).__name__}, text is needed "
                    "(data.apply_chat_template turns messages into text)"
                )
        yield row + 1, texts[0], dict(zip(keys[1:], texts[1:], strict=True))


def _length(tokenizer: Any, text: str) -> int:
    return len(tokenizer(text, add_special_tokens=False)["input_ids"])


def _model_config(flag: str, name: str, trust_remote_code: bool) -> Any:
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(name, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        if "trust_remote_code" in str(error):
            raise SparsePOError(
                f"{flag}: {name} brings code of its own; model.trust_remote_code: true runs it"
            ) from error
        raise SparsePOError(f"{flag}: {name} cannot be loaded: {_first_line(error)}") from error


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"
