"""Axolotl: its plugin, and what the command line asks of it; neither torch nor Axolotl is imported here."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from ...errors import SparsePOError


def read_config(file: Path, overrides: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration as Axolotl reads it: the YAML, with the command line's options over it.

    Args:
        file: The YAML.
        overrides: Options by key; `trl__beta` is `beta` of `trl`.

    Raises:
        SparsePOError: it is no YAML, or no mapping.
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
