"""No configuration that names one of our losses trains plain DPO, also where the plugin is not listed or misspelled.

Axolotl drops keys that it does not know, and goes on when a plugin cannot be imported. So something of ours has to run
in its processes in any case. When torch is imported it loads the entry points of the group `torch.backends`, meant for
drivers of devices, and Axolotl imports torch before most of its own modules: `watch` is one. A .pth file would run at
each start of any Python, a plugin of pydantic at each model of anything. This one costs the import of a few small
modules, and does nothing where Axolotl is not imported. TORCH_DEVICE_BACKEND_AUTOLOAD=0 turns it off; a configuration
that lists the plugin is then still checked, by the plugin.
"""

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any


def watch() -> None:
    """Have two functions of Axolotl checked once their modules are imported; see the entry point in pyproject.toml."""
    sys.meta_path.insert(0, _Watch())


class _Watch(MetaPathFinder):
    """Finds nothing itself; puts a check before a function of what others find."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name not in _CHECKS:
            return None
        found = (finder.find_spec(name, path, target) for finder in sys.meta_path if finder is not self)
        spec = next(filter(None, found), None)
        if spec is not None:
            run, (function, check) = spec.loader.exec_module, _CHECKS[name]

            def run_and_check(module: ModuleType) -> None:
                run(module)
                setattr(module, function, _checked(getattr(module, function), check))

            spec.loader.exec_module = run_and_check
        return spec


def _checked(function: Callable, check: Callable) -> Callable:
    @wraps(function)
    def checked(*args: Any, **values: Any) -> Any:
        from ...errors import telling_its_starter

        with telling_its_starter():
            check(*args, **values)
        return function(*args, **values)

    return checked


def _before_launch(file: str, launcher: str | None, cloud: str | None, overrides: Mapping[str, Any], *_: Any) -> None:
    """In `axolotl train`, before a launcher is started: what it starts could only end it with a traceback.

    Args:
        file: The YAML; a folder or an address is looked at by the process that reads it.
        launcher: Accelerate, torchrun or none.
        cloud: Settings of a machine elsewhere.
        overrides: Options of the command line.
    """
    from . import read_config
    from .checks import check_run

    sys.path.insert(0, os.getcwd())  # where modules of `loss_plugins` are looked for, as under `python -m`
    if not cloud and Path(file).is_file() and check_run(read_config(Path(file), overrides)):
        load_plugin()


def _before_validation(cfg: Any, *_: Any, **__: Any) -> None:
    """In a process that trains, when all plugins had their turn and before unknown keys are dropped."""
    from ...errors import SparsePOError
    from .checks import PLUGIN, TRAINER, check_config, key_of_ours

    plain = cfg.to_dict()
    if key_of_ours(plain) and plain.get("trainer_cls") != TRAINER:
        check_config(plain)
        load_plugin()
        raise SparsePOError(f"plugins: {PLUGIN} is listed and was not asked to register")


def load_plugin() -> None:
    """Import the plugin, for the reason if that fails: Axolotl only logs it.

    Raises:
        SparsePOError: it fails.
    """
    from ...errors import naming_faults
    from .checks import PLUGIN

    with naming_faults(f"plugins: {PLUGIN} cannot be imported", __file__):
        from .plugin import SparsePOPlugin  # noqa: F401


_CHECKS = {
    "axolotl.cli.utils.train": ("launch_training", _before_launch),
    "axolotl.utils.config": ("validate_config", _before_validation),
}
