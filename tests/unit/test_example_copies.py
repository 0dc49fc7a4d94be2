"""`sparsepo recipes` and `sparsepo copy`: the examples, from a checkout and from a wheel."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from typer.testing import CliRunner

from sparsepo_plugin.cli import app
from sparsepo_plugin.recipes import list_recipes

ROOT = Path(__file__).parents[2]


@pytest.fixture
def here(tmp_path, monkeypatch):
    """The command, typed in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return lambda *arguments: CliRunner().invoke(app, list(arguments))


def test_every_example_is_listed(here):
    header, *rows = here("recipes").stdout.splitlines()
    assert header.split() == ["host", "experiment", "method", "name"]
    names = [row.split()[-1] for row in rows]
    files = [file for host in ("openrlhf", "axolotl", "trl") for file in (ROOT / "examples" / host).rglob("*.*")]
    expected = [file for file in files if file.suffix in (".yaml", ".py")]
    assert sorted(names) == sorted(file.relative_to(ROOT / "examples").with_suffix("").as_posix() for file in expected)
    assert rows == sorted(rows)


def test_what_a_row_says():
    rows = {row.name: row[:3] for row in list_recipes()}
    assert rows["openrlhf/paper/imdb_tdpo_v2"] == ("openrlhf", "Sentiment control", "tdpo")
    assert rows["openrlhf/paper/hh_sft"] == ("openrlhf", "Helpfulness and harmlessness", "sft")
    assert rows["axolotl/qlora"] == ("axolotl", "QLoRA", "sparsepo")
    assert rows["trl/sparsepo"] == ("trl", "SparsePO with TRL", "any")


def test_a_copy_brings_what_it_reads_and_names_what_is_there(here, tmp_path):
    assert here("copy", "openrlhf/paper/hh_dpo").stdout.splitlines() == ["hh_dpo.yaml", "chat.jinja"]
    assert (tmp_path / "chat.jinja").read_bytes() == (ROOT / "examples/openrlhf/paper/chat.jinja").read_bytes()
    text = (tmp_path / "hh_dpo.yaml").read_text()
    assert "--chat-template chat.jinja" in text and "sparsepo train hh_dpo.yaml" in text and "examples/" not in text
    assert here("copy", "openrlhf/paper/hh_simpo").exit_code == 0, "the template is there, and the same"


@pytest.mark.parametrize("there", ["hh_dpo.yaml", "chat.jinja"])
def test_nothing_is_overwritten(there, here, tmp_path):
    (tmp_path / there).write_text("mine")
    done = here("copy", "openrlhf/paper/hh_dpo")
    assert (done.exit_code, done.stderr) == (2, f"sparsepo: error: {there} is there already, and is not overwritten\n")
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [(there, "mine")]


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("hh_dpo", "no example is called 'hh_dpo'; did you mean openrlhf/paper/hh_dpo?"),
        ("openrlhf/lorra", "did you mean openrlhf/lora"),
        ("../../etc/passwd", "sparsepo recipes lists all"),
        ("", "no example is called ''; sparsepo recipes lists all"),
        ("x" * 2000, "sparsepo recipes lists all"),
    ],
)
def test_an_unknown_name_is_one_line(name, says, here, tmp_path):
    done = here("copy", name)
    assert done.exit_code == 2 and says in done.stderr and len(done.stderr) < 1000
    assert list(tmp_path.iterdir()) == []


def test_a_wheel_has_them(tmp_path):
    """Unpacked, it lists what the checkout lists, and has the pages; built of a copy, as building leaves files."""
    for folder in ("sparsepo_plugin", "patches", "examples"):
        shutil.copytree(ROOT / folder, tmp_path / "source" / folder)
    for file in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / file, tmp_path / "source")
    build = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--quiet", "./source"]
    subprocess.run(build, cwd=tmp_path, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(tmp_path / "unpacked")
    code = "from sparsepo_plugin.recipes import list_recipes; print([tuple(row) for row in list_recipes()])"
    listed = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path / "unpacked", check=True, capture_output=True, text=True
    )
    assert listed.stdout.strip() == str([tuple(row) for row in list_recipes()])
    pages = "sparsepo_plugin/analysis/page"
    assert {file.name for file in (tmp_path / "unpacked" / pages).iterdir()} == {
        file.name for file in (ROOT / pages).iterdir()
    }
