"""Axolotl: its plugin, and what the command line asks of it; neither torch nor Axolotl is imported here."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from ...errors import SparsePOError


def check(file: Path, overrides: list[str]) -> str:
    """Find what can be found before training by the keys of the loss, with the models' configs.

    Axolotl's own keys and the rows are looked at by Axolotl, when it trains.

    Args:
        file: Axolotl's YAML.
        overrides: Options of `axolotl train` that win over it.

    Returns:
        The name of the loss.

    Raises:
        SparsePOError: the line names the key or the model.
    """
    from .checks import check_run  # here, because torch and transformers take seconds to import

    config = check_run(read_config(file, _options(overrides)))
    return "Axolotl's own" if config is None else config.loss


def command(file: Path, num_processes: int, overrides: list[str]) -> list[str]:
    """What to start for a run.

    Args:
        file: Axolotl's YAML.
        num_processes: 0 for as many as Axolotl's launcher takes: one a GPU, or one.
        overrides: Options of `axolotl train` that win over the file.
    """
    count = ["--num-processes", str(num_processes)] if num_processes else []
    return [str(Path(sys.executable).with_name("axolotl")), "train", str(file), *count, *overrides]


def read_config(file: Path, overrides: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration as Axolotl reads it: the YAML, with the command line's options over it.

    Args:
        file: The YAML.
        overrides: Options by key; `trl__beta` is `beta` of `trl`.

    Raises:
        SparsePOError: it cannot be read, or is no mapping.
    """
    try:
        cfg = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise SparsePOError(f"{file} cannot be read as YAML: {error}") from error
    if not isinstance(cfg, dict):
        raise SparsePOError(f"{file}: a mapping of keys is needed")
    for key, value in overrides.items():
        parent, _, child = key.partition("__")
        if child:
            cfg[parent] = {**(cfg.get(parent) or {}), child: value}
        else:
            cfg[key] = value
    return cfg


def _options(words: list[str]) -> dict[str, Any]:
    """Words of a command line by key: `--trl.beta 0.1`, `--rl-beta=0.1`, `--sample-packing`."""
    options = {}
    for word, following in zip(words, [*words[1:], "--"], strict=False):
        if word == "--":  # what follows is the launcher's
            break
        key, given, value = word.removeprefix("--").partition("=")
        if word.startswith("--"):
            text = value if given else "true" if following.startswith("--") else following
            options[key.replace("-", "_").replace(".", "__")] = yaml.safe_load(text)
    return options
