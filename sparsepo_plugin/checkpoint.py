"""What a run leaves beside its model: `mask_head.safetensors`, and `sparsepo.json` that describes the run."""

import json
import os
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, Field, ValidationError
from safetensors.torch import load_file, save_file
from torch import Tensor

from .config import LossConfig
from .decoder import loading
from .errors import SparsePOError
from .masks import Masks, build_masks
from .options import STRICT
from .registry import import_plugins
from .texts import Joining

WEIGHTS, DESCRIPTION = "mask_head.safetensors", "sparsepo.json"


class RunDescription(BaseModel):
    """All that is needed to ask a finished run; later defaults do not change what an old file means."""

    model_config = STRICT

    format: Literal[1] = Field(1, description="of this file")
    versions: dict[str, str] = Field(description="of the plugin, its host, and what they stand on")
    host: str = Field(description="the framework that trained")
    loss: LossConfig
    loss_plugins: list[str] = Field([], description="modules that the run imported for its loss and masks")
    base_model: str = Field(description="what the policy started from, folder or hub name")
    reference: str | None = Field(description="the reference model, or none where no reference is read")
    shared_reference: bool = Field(description="whether that is the policy with its adapter off")
    dtype: str = Field(description="of the models, as torch calls it")
    hidden_size: int = Field(description="of the model that the masks read")
    num_layers: int = Field(description="of the model that the masks read")
    joining: Joining = Field(description="how prompt and response are joined")

    @property
    def code(self) -> list[str]:
        """Modules that this description names, and that would be imported to build the loss and its masks."""
        named = [self.loss.loss, *(mask.mask for mask in self.loss.masks.values())]
        return [*self.loss_plugins, *(name for name in named if ":" in name)]


def versions_of(*packages: str) -> dict[str, str]:
    """Versions of this plugin, of torch and transformers, and of further packages, those that are installed."""
    found = {}
    for package in ("sparsepo-plugin", "torch", "transformers", *packages):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def save_masks(folder: str | Path, description: RunDescription, state: dict[str, Tensor]) -> None:
    """Write the description, and the masks if there are any; each file whole or not at all.

    Args:
        folder: Where the Hugging Face model is saved.
        description: Of the run.
        state: State dict of the masks, gathered; empty for a loss without any.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if description.loss.masks:
        tensors = {name: value.contiguous().cpu() for name, value in state.items()}
        write_whole(folder / WEIGHTS, lambda path: save_file(tensors, path))
    text = json.dumps(description.model_dump(mode="json"), indent=2) + "\n"
    write_whole(folder / DESCRIPTION, lambda path: path.write_text(text))


def load_description(folder: str | Path) -> RunDescription:
    """The description of a finished run; nothing that it names is imported.

    Raises:
        SparsePOError: it is missing, or no description that this version can read.
    """
    path = _existing(Path(folder) / DESCRIPTION)
    try:
        return RunDescription.model_validate_json(path.read_bytes())
    except ValidationError as error:
        problem = error.errors()[0]
        key = ".".join(map(str, problem["loc"])) or "content"
        raise SparsePOError(f"{path}: {key}: {problem['msg']}; this version reads format 1") from None


def load_masks(folder: str | Path, allow_code: bool = False) -> tuple[Masks | None, RunDescription]:
    """The masks of a finished run, in evaluation mode, and its description.

    Args:
        folder: What the run left in its output folder.
        allow_code: Import the modules that the description names; whoever wrote the file chose them.

    Raises:
        SparsePOError: a file is missing or cannot be read, or names code that is not allowed.
    """
    folder, described = Path(folder), load_description(folder)
    if described.code and not allow_code:
        raise SparsePOError(
            f"{folder / DESCRIPTION} names code of its own ({', '.join(described.code)}), which is imported only with "
            "allow_code=True, on the command line --allow-code"
        )
    import_plugins(described.loss_plugins)
    masks = build_masks(described.loss, described.hidden_size, described.num_layers, seed=0)
    if masks is not None:
        _load_state(masks, folder, assign=True)  # in the dtype that they were trained in
        masks.eval()
    return masks, described


def restore_masks(masks: Masks, folder: str | Path) -> None:
    """Give masks that an optimizer holds the values that a checkpoint has.

    Args:
        masks: Of the run.
        folder: The checkpoint.

    Raises:
        SparsePOError: the file is missing, cannot be read, or does not fit.
    """
    _load_state(masks, Path(folder), assign=False)


def _load_state(masks: Masks, folder: Path, assign: bool) -> None:
    path = _existing(folder / WEIGHTS)
    with loading("the masks", path):
        state = load_file(path)
    try:
        masks.load_state_dict(state, assign=assign)
    except RuntimeError as error:
        raise SparsePOError(
            f"{path} does not fit the masks of {DESCRIPTION}: {' '.join(str(error).split())}"
        ) from error


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise SparsePOError(f"{path} is missing: a run with one of our losses leaves it beside the model")
    return path


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Have `write` make a file of another name, which then takes the place of `path`: it is whole or not there."""
    part = path.with_name(path.name + ".part")
    try:
        write(part)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
