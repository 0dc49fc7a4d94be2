"""A folder for each framework; here, whose a YAML is."""

from collections.abc import Mapping
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import NamedTuple

import yaml

from ..errors import SparsePOError

_MAX_BYTES = 1_000_000  # of a YAML file


class Host(NamedTuple):
    """A framework.

    Attributes:
        name: As people write it.
        package: What is installed.
        marks: Keys at the top of its YAML that no other host's has.
        install: How to install it.
        docs: Where its keys are explained, if not by its own parser.
        start: How its runs are started, if not by this package's command line.
        seed: Key of a run's seed.
        output: Key of the folder that a run leaves its model in.
        folders: Keys of other folders that it writes where a YAML names them, and what they are called in a sweep.
        betas: Keys of β.
    """

    name: str
    package: str
    marks: frozenset[str]
    install: str
    docs: str | None = None
    start: str | None = None
    seed: str = "seed"
    output: str = "output_dir"
    folders: Mapping[str, str] = MappingProxyType({})
    betas: frozenset[str] = frozenset()

    @property
    def version(self) -> str | None:
        """The installed one's."""
        try:
            return version(self.package)
        except PackageNotFoundError:
            return None


HOSTS = {
    "openrlhf": Host(
        "OpenRLHF",
        "openrlhf",
        frozenset({"adam", "ckpt", "data", "ds", "eval", "logger", "model", "muon", "ref", "train"}),
        "pip install --no-deps openrlhf",
        seed="train.seed",
        output="ckpt.output_dir",
        folders={"ckpt.path": "run/checkpoints", "logger.tensorboard_dir": "tensorboard"},
        betas=frozenset({"model.beta"}),
    ),
    "axolotl": Host(
        "Axolotl",
        "axolotl",
        frozenset({"base_model", "datasets", "plugins", "rl"}),
        "pip install axolotl==0.19.0",
        docs="https://docs.axolotl.ai/docs/config-reference.html",
        betas=frozenset({"rl_beta", "trl.beta"}),
    ),
    "trl": Host(
        "TRL",
        "trl",
        frozenset({"dataset_name", "model_name_or_path"}),
        "pip install trl",
        start="from Python, with sparsepo_plugin.hosts.trl.SparsePOTrainer",
    ),
}


def host_of(keys: set[str]) -> str:
    """Whose YAML it is that has these keys at its top.

    Returns:
        A key of `HOSTS`, and the name of a module of this package.

    Raises:
        SparsePOError: they are nobody's, or those of two hosts.
    """
    marks = {name: sorted(keys & host.marks) for name, host in HOSTS.items() if keys & host.marks}
    if len(marks) == 1:
        return next(iter(marks))
    if marks:
        found = " and ".join(f"{HOSTS[name].name} ({', '.join(marks[name])})" for name in marks)
        raise SparsePOError(f"keys of {found} in one file: leave those of one host")
    known = "; ".join(f"{host.name}'s has {', '.join(sorted(host.marks))}" for host in HOSTS.values())
    raise SparsePOError(f"whose YAML it is cannot be told by the keys at its top: {known}")


def load_host(file: Path) -> ModuleType:
    """The module of the host whose YAML a file is, with its `check` and `command`.

    Raises:
        SparsePOError: the file cannot be read, is nobody's, or its host is not installed.
    """
    keys = _top_keys(file)
    try:
        name = host_of(keys)
    except SparsePOError as error:
        raise SparsePOError(f"{file}: {error}") from error
    host = HOSTS[name]
    if host.start:
        raise SparsePOError(f"{file}: has keys of {host.name}, which is used {host.start}")
    if host.version is None:
        raise SparsePOError(f"{file}: has keys of {host.name}, which is not installed: {host.install}")
    return import_module(f".{name}", __name__)


def _top_keys(file: Path) -> set[str]:
    """The keys at the top of a YAML, up to their first dot; nothing else of it is made, whatever it holds."""
    depth, nodes = 0, []
    for event in _events(file):
        if depth == 1 and isinstance(event, yaml.NodeEvent):
            nodes.append(getattr(event, "value", ""))  # key, value, key, value, …
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
    return {key.partition(".")[0] for key in nodes[::2]}


def _events(file: Path) -> list[yaml.Event]:
    try:
        with file.open("rb") as stream:
            text = stream.read(_MAX_BYTES + 1)
        if len(text) > _MAX_BYTES:
            raise SparsePOError(f"{file}: more than {_MAX_BYTES} bytes")
        return list(yaml.parse(text, yaml.SafeLoader))
    except OSError as error:
        raise SparsePOError(f"{file}: {error.strerror}") from error
    except yaml.MarkedYAMLError as error:
        problem = ": ".join(filter(None, (error.context, error.problem)))
        raise SparsePOError(f"{file}, line {error.problem_mark.line + 1}: {problem}") from error
    except yaml.YAMLError as error:
        raise SparsePOError(f"{file}: not YAML: {error}") from error
