"""Mask head ⇄ `mask_head.safetensors` and `sparsepo.json`, beside the model they belong to."""

import json
import os
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from .config import SparsePOConfig
from .errors import SparsePOError
from .masks import MaskHead, build_masks

WEIGHTS, SECTION = "mask_head.safetensors", "sparsepo.json"


def save_mask(folder: str | Path, config: SparsePOConfig, state: dict[str, Tensor], model_config: Any) -> None:
    """Write both files, each one whole or not at all.

    Args:
        folder: Where the Hugging Face model is saved.
        config: The `sparsepo:` section.
        state: State dict of the mask head, gathered.
        model_config: Config of the reference model, for its width and depth.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    text = model_config.get_text_config()
    described = {
        "loss": config.loss,
        config.loss: config.section(),
        "hidden_size": text.hidden_size,
        "num_layers": text.num_hidden_layers,
    }
    _replace(folder / WEIGHTS, lambda path: save_file({k: v.contiguous().cpu() for k, v in state.items()}, path))
    _replace(folder / SECTION, lambda path: path.write_text(json.dumps(described, indent=2) + "\n"))


def load_mask(folder: str | Path) -> tuple[MaskHead, SparsePOConfig]:
    """The mask head of a trained model and the section it was trained with.

    Args:
        folder: What a run left in `ckpt.output_dir`.

    Raises:
        SparsePOError: a file is missing.
    """
    folder = Path(folder)
    for name in (WEIGHTS, SECTION):
        if not (folder / name).is_file():
            raise SparsePOError(f"{folder / name} is missing: a run with loss: sparsepo leaves it beside the model")
    described = json.loads((folder / SECTION).read_text())
    config = SparsePOConfig.from_section(described[described["loss"]], described["loss"])
    head = build_masks(config, described["hidden_size"], described["num_layers"], seed=0)
    head.load_state_dict(load_file(folder / WEIGHTS))
    return head, config


def _replace(path: Path, write: Any) -> None:
    part = path.with_name(path.name + ".part")
    write(part)
    os.replace(part, path)
