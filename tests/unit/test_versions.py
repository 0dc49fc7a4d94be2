"""pyproject.toml, the files of pins and the host say the same of versions; docs/install.md is made from them."""

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
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


@pytest.mark.parametrize("file", sorted((ROOT / "constraints").glob("*.txt")), ids=lambda path: path.stem)
def test_files_with_hashes_have_the_versions_that_the_tests_run_with(file):
    """Of what both name; PyTorch's build is the file's own, and no package is named twice."""
    lines = [line for line in file.read_text().splitlines() if not line.startswith("#")]
    found = [re.fullmatch(r"(\S+)==(\S+) --hash=sha256:[0-9a-f]{64}", line).groups() for line in lines]
    versions = {canonicalize_name(name): version for name, version in found}
    assert len(versions) == len(lines) and versions.keys() >= {canonicalize_name(name) for name in OLDEST} - {
        "openrlhf"
    }
    tested = {canonicalize_name(name): version for name, version in NEWEST.items()}
    differ = {name for name in versions.keys() & tested.keys() if versions[name] != tested[name]}
    assert differ <= {"torch"} and Version(versions["torch"]).public == Version(tested["torch"]).public
