"""pyproject.toml, the files of pins and the host say the same of versions; docs/install.md is made from them."""

import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.version import Version

from sparsepo_plugin.hosts.openrlhf.patched import TESTED

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def pins(file):
    lines = (ROOT / file).read_text().splitlines()
    return dict(line.split("==") for line in lines if line and not line.startswith("#"))


OLDEST, NEWEST = pins("constraints-oldest.txt"), pins("constraints-cpu.txt")


def test_the_releases_of_openrlhf_that_are_tested():
    assert (OLDEST["openrlhf"], NEWEST["openrlhf"]) == (TESTED[0], TESTED[-1])
    assert list(TESTED) == sorted(TESTED, key=Version)


def test_ranges_begin_with_the_oldest_pins_and_hold_the_newest():
    extras = PROJECT["optional-dependencies"]
    needed = [Requirement(line) for line in (*PROJECT["dependencies"], *extras["openrlhf"], *extras["trl"])]
    ranges = {(needs.name, str(needs.specifier)): needs.specifier for needs in needed if needs.name in OLDEST}
    assert {name for name, _ in ranges} == set(OLDEST) - {"openrlhf"}
    for (name, _), allowed in ranges.items():
        (lowest,) = [Version(each.version) for each in allowed if each.operator == ">="]
        assert lowest == Version(OLDEST[name]) and allowed.contains(NEWEST[name]), name
