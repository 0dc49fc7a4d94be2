"""What can be said of a run's models before any of them is loaded."""

from pathlib import Path
from typing import Any

import torch

from ..config import LossConfig
from ..errors import SparsePOError
from ..masks import Masks, build_masks, refuse_idle_keys


def read_configs(names: dict[str, str], trust_remote_code: bool) -> dict[str, Any]:
    """The Hugging Face configs of models, by the keys that name them.

    Args:
        names: Folder or hub name by the key of the host's YAML.
        trust_remote_code: Whether models may bring code of their own.

    Raises:
        SparsePOError: a model is missing, an adapter, or not a text decoder; the line names the key.
    """
    configs = {}
    for key, name in names.items():
        if (Path(name) / "adapter_config.json").is_file():
            raise SparsePOError(f"{key}: {name} is a LoRA adapter; merge it into its model first")
        configs[key] = _read_config(key, name, trust_remote_code)
        if hasattr(configs[key], "vision_config"):
            kind = configs[key].model_type
            raise SparsePOError(f"{key}: {kind} is a vision model; token-level losses take text decoders")
    return configs


def masks_over(model_config: Any, config: LossConfig, seed: int) -> Masks | None:
    """The masks of a loss laid over a model without memory for them.

    Args:
        model_config: Hugging Face config of the model that the masks read.
        config: The loss.
        seed: The host's.

    Raises:
        SparsePOError: a key of the masks does not fit that model or has no effect.
    """
    text = model_config.get_text_config()
    with torch.device("meta"):
        masks = build_masks(config, text.hidden_size, text.num_hidden_layers, seed)
    refuse_idle_keys(config, masks)
    return masks


def refuse_idle_dropout(model_config: Any, config: LossConfig) -> None:
    """Refuse `disable_dropout: false` for a policy that has no dropout.

    Raises:
        SparsePOError: names the key.
    """
    settings = model_config.get_text_config().to_dict().items()
    # Heads that no language model has may have a rate too: that of Pythia's classifier is 0.1.
    rates = [value for key, value in settings if "drop" in key and not key.startswith(("classifier", "summary"))]
    if not config.disable_dropout and not any(isinstance(rate, float) and rate > 0 for rate in rates):
        kind = model_config.model_type
        raise SparsePOError(f"{config.section}.disable_dropout: false has no effect: {kind} has no dropout here")


def first_line(error: BaseException) -> str:
    """Kind and first line of an error of a library."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}"


def _read_config(key: str, name: str, trust_remote_code: bool) -> Any:
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(name, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        if "trust_remote_code" in str(error):
            raise SparsePOError(
                f"{key}: {name} brings code of its own, which runs only where the run says so", about="remote code"
            ) from error
        raise SparsePOError(f"{key}: {name} cannot be loaded: {first_line(error)}") from error
