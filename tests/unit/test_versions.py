"""README.md, pyproject.toml, the files of pins and the host say the same of versions."""

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from sparsepo_plugin.hosts.openrlhf.patched import TESTED

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
ROWS = {"OpenRLHF": "openrlhf", "transformers": "transformers", "DeepSpeed": "deepspeed", "TRL (extra `trl`)": "trl"}


def pins(file):
    lines = (ROOT / file).read_text().splitlines()
    return dict(line.split("==") for line in lines if line and not line.startswith("#"))


OLDEST, NEWEST = pins("constraints-oldest.txt"), pins("constraints-cpu.txt")


def test_the_releases_of_openrlhf_that_are_tested():
    assert (OLDEST["openrlhf"], NEWEST["openrlhf"]) == (TESTED[0], TESTED[-1])
    assert list(TESTED) == sorted(TESTED, key=Version)


@pytest.mark.parametrize("row", ROWS)
def test_the_table_of_the_readme(row):
    found = re.search(rf"^\| {re.escape(row)} \| (\S+) \| (\S+) \|$", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert found.groups() == (OLDEST[ROWS[row]], NEWEST[ROWS[row]])


def test_ranges_begin_with_the_oldest_pins_and_hold_the_newest():
    extras = PROJECT["optional-dependencies"]
    needed = [Requirement(line) for line in (*PROJECT["dependencies"], *extras["openrlhf"], *extras["trl"])]
    ranges = {(needs.name, str(needs.specifier)): needs.specifier for needs in needed if needs.name in OLDEST}
    assert {name for name, _ in ranges} == set(OLDEST) - {"openrlhf"}
    for (name, _), allowed in ranges.items():
        (lowest,) = [Version(each.version) for each in allowed if each.operator == ">="]
        assert lowest == Version(OLDEST[name]) and allowed.contains(NEWEST[name]), name
