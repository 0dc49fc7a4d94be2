"""The points of a sweep: what is set in each, what it is called, and the YAML that it runs."""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import yaml

from ..config import section_name
from ..errors import SparsePOError, one_line, shown
from ..hosts import HOSTS, Host, host_of

VARIANT = "variant"  # what the settings call a choice from a file of variants
_LARGEST_SEED = 2**32 - 1
_LONGEST_NAME = 150  # of a folder
_NAME = re.compile(r"[^\w.+=-]+")

Settings = dict[str, Any]


@dataclass(frozen=True)
class Point:
    """One run of a sweep.

    Attributes:
        settings: What is set in it, by key of the YAML; `variant` is one of the file of variants.
        seed: Its seed.
        config: Its YAML, without the folders that it writes.
        host: Whose YAML it is.
    """

    settings: Settings
    seed: int
    config: dict[str, Any]
    host: Host

    @property
    def name(self) -> str:
        """Of its folder: `dpo_model.beta=0.1_seed=0`."""
        parts = [_text(value) if key in (VARIANT, "loss") else f"{key}={_text(value)}" for key, value in self._all]
        return _NAME.sub("-", "_".join(parts))

    @property
    def _all(self) -> Iterable[tuple[str, Any]]:
        return {**self.settings, "seed": self.seed}.items()

    def placed(self, folder: Path, output: Path) -> dict[str, Any]:
        """The YAML, with all that a run writes below `folder`, and its model in `output`."""
        config = deepcopy(self.config)
        put(config, self.host.output, str(output))
        for key, name in self.host.folders.items():
            if find(config, key) is not None:
                put(config, key, str(folder / name))
        return config


def read_grid(file: Path, sets: list[str], seeds: str, variants: Path | None = None) -> list[Point]:
    """The points of a sweep in the order in which they are run: all of the first seed, then all of the second.

    Args:
        file: A host's YAML. It may have a section for each loss of the sweep; a point keeps that of its own.
        sets: `key=value,value`, each value as YAML has it; null removes the key, a mapping is merged over what is
            there.
        seeds: Whole numbers, with commas.
        variants: A YAML of names, each with a part of a YAML that is merged over the file.

    Raises:
        SparsePOError: a file cannot be read, or what is set is not as above, is set twice, or has no name of its own.
    """
    base = read_mapping(file)
    host = HOSTS[host_of({str(key).partition(".")[0] for key in base})]
    named = {None: {}} if variants is None else _read_variants(variants)
    grid = _read_sets(sets, named, host)
    chosen = [
        ({} if variant is None else {VARIANT: variant}) | dict(zip(grid, values, strict=True))
        for variant in named
        for values in product(*grid.values())
    ]
    drawn = [(settings, _config(base, named.get(settings.get(VARIANT), {}), settings)) for settings in chosen]
    sections = {section_name(loss) for config in [base, *(config for _, config in drawn)] if (loss := _loss(config))}
    points: dict[str, Point] = {}
    for seed, (settings, config) in product(read_seeds(seeds), drawn):
        point = _point(settings, config, sections, seed, host)
        points.setdefault(json.dumps([point.settings, seed], default=str), point)
    grid = list(points.values())
    _check_names(grid)
    return grid


def read_mapping(file: Path) -> dict[str, Any]:
    """A YAML file that holds a mapping, no key of which is given twice.

    Raises:
        SparsePOError: it is none, or cannot be read.
    """
    try:
        content = _load(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise SparsePOError(f"{file}: {error.strerror}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise SparsePOError(f"{file}: not YAML: {one_line(error)}") from error
    if not isinstance(content, dict):
        raise SparsePOError(f"{file}: a mapping of keys is needed, not {shown(content)}")
    return content


def read_seeds(text: str) -> list[int]:
    """Seeds from `0,1,2`.

    Raises:
        SparsePOError: one is no whole number of 32 bits, or is given twice.
    """
    words = text.split(",")
    if not all(word.isdecimal() and int(word) <= _LARGEST_SEED for word in words):
        raise SparsePOError(f"--seeds {text}: whole numbers from 0 to {_LARGEST_SEED} with commas are needed")
    seeds = list(map(int, words))
    if len(set(seeds)) < len(seeds):
        raise SparsePOError(f"--seeds {text}: one is given twice")
    return seeds


def find(config: Any, key: str) -> Any:
    """What a YAML has under a dotted key, nested or not; None if it has nothing."""
    if not isinstance(config, Mapping) or key in config:
        return config.get(key) if isinstance(config, Mapping) else None
    head = _head(config, key)
    return None if head is None else find(config[head], key.removeprefix(f"{head}."))


def put(config: dict[str, Any], key: str, value: Any) -> None:
    """Set a dotted key of a YAML where it stands; None removes it, a mapping is merged over what is there.

    Raises:
        SparsePOError: a part of the key is no mapping.
    """
    if key in config or "." not in key:
        if value is None:
            config.pop(key, None)
        else:
            there = config.get(key)
            config[key] = _merged(there, value) if isinstance(there, dict) and isinstance(value, dict) else value
        return
    head = _head(config, key) or key.partition(".")[0]
    if config.get(head) is None:
        config[head] = {}
    if not isinstance(config[head], dict):
        raise SparsePOError(f"{key}: {head} is {shown(config[head])}, no mapping")
    put(config[head], key.removeprefix(f"{head}."), value)


def flatten(config: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of a YAML by dotted key."""
    for key, value in config.items():
        if isinstance(value, dict) and value:
            yield from flatten(value, f"{above}{key}.")
        else:
            yield f"{above}{key}", value


class _UniqueKeys(yaml.SafeLoader):
    """PyYAML takes the last of several values of a key, and says nothing."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and (key.value in seen or seen.add(key.value)):
                raise yaml.constructor.ConstructorError(None, None, f"{key.value} is given twice", key.start_mark)
        return super().construct_mapping(node, deep)


def _load(text: str) -> Any:
    return yaml.load(text, _UniqueKeys)  # noqa: S506  a SafeLoader


def _head(config: Mapping[str, Any], key: str) -> str | None:
    """The longest beginning of a dotted key that is a key itself."""
    parts = key.split(".")
    beginnings = (".".join(parts[:length]) for length in range(len(parts) - 1, 0, -1))
    return next((beginning for beginning in beginnings if beginning in config), None)


def _merged(base: dict[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = deepcopy(base)
    for key, value in over.items():
        put(merged, str(key), deepcopy(value))
    return merged


def _read_variants(file: Path) -> dict[str, dict[str, Any]]:
    variants = {str(name): part for name, part in read_mapping(file).items()}
    for name, part in variants.items():
        if not isinstance(part, dict):
            raise SparsePOError(f"{file}: {name}: a mapping of keys is needed, not {shown(part)}")
    if not variants:
        raise SparsePOError(f"{file}: has no variant")
    return variants


def _read_sets(sets: list[str], variants: Mapping[str | None, Mapping], host: Host) -> dict[str, list[Any]]:
    """Values by key."""
    grid: dict[str, list[Any]] = {}
    reserved = dict.fromkeys((host.output, *host.folders), "each point has its own") | {host.seed: "--seeds sets it"}
    for each in sets:
        key, equals, text = each.partition("=")
        if not (key and equals and text.strip()):
            raise SparsePOError(f"--set {each}: key=value,value is needed")
        if key in reserved:
            raise SparsePOError(f"--set {key}: {reserved[key]}")
        if key in grid:
            raise SparsePOError(f"--set {key} is given twice")
        for name, part in variants.items():
            if find(part, key) is not None:
                raise SparsePOError(f"--set {key}: variant {name} sets it too")
        grid[key] = _values(each, text)
    return grid


def _values(given: str, text: str) -> list[Any]:
    try:
        values = _load(f"[{text}]")
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise SparsePOError(f"--set {given}: not YAML: {one_line(error)}") from error
    if len({_text(value) for value in values}) < len(values):
        raise SparsePOError(f"--set {given}: a value is given twice")
    return values


def _config(base: dict[str, Any], variant: Mapping[str, Any], settings: Settings) -> dict[str, Any]:
    config = _merged(base, variant)
    for key, value in settings.items():
        if key != VARIANT:
            put(config, key, value)
    return config


def _point(settings: Settings, config: dict[str, Any], sections: set[str], seed: int, host: Host) -> Point:
    """A point without what is of the losses of other points."""
    loss = _loss(config)
    others = sections - ({section_name(loss)} if loss else set())
    settings = {key: value for key, value in settings.items() if key.partition(".")[0] not in others}
    config = {key: deepcopy(value) for key, value in config.items() if key not in others}
    put(config, host.seed, seed)
    return Point(settings, seed, config, host)


def _loss(config: Mapping[str, Any]) -> str | None:
    """The loss that it names; what is no name is the host's to refuse."""
    loss = config.get("loss")
    return loss if isinstance(loss, str) else None


def _check_names(points: list[Point]) -> None:
    """Refuse points that cannot have folders of their own."""
    seen: set[str] = set()
    for point in points:
        if len(point.name) > _LONGEST_NAME:
            raise SparsePOError(
                f"{one_line(point.name, 80)} is too long a name: give the values names with --variants"
            )
        if point.name in seen or seen.add(point.name):
            raise SparsePOError(f"two points would be called {point.name}: give the values names with --variants")


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    flow = yaml.safe_dump(value, default_flow_style=True, width=1000).removesuffix("\n...\n")
    return re.sub(r"[{}\[\]]", "", flow).strip().replace(": ", "=")
