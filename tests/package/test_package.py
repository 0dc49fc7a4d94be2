"""Wheel and sdist: what is in them, and that the wheel works where README.md's own commands have put it."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest
import yaml
from host_runs import merge, places

pytest.importorskip("build")

ROOT = Path(__file__).parents[2]
DOWNLOADS = bool(os.environ.get("SPARSEPO_DIST"))  # `make package`: everything is fetched as a user does
LEFT_OUT = shutil.ignore_patterns(
    ".git", ".venv*", "runs", "build", "dist", "*.egg-info", "__pycache__", ".*_cache", ".hypothesis"
)


def run(*command, cwd, **environment):
    """Outside of the clone; nothing of it is on the path."""
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, env=kept | environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def dist(tmp_path_factory):
    """Folder with both, made by `python -m build` from a copy, as building leaves files."""
    if DOWNLOADS:
        return (ROOT / os.environ["SPARSEPO_DIST"]).resolve()
    folder = tmp_path_factory.mktemp("package")
    shutil.copytree(ROOT, folder / "source", ignore=LEFT_OUT)
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder / "dist", folder / "source", cwd=folder)
    return folder / "dist"


def files_of(folder, *endings):
    return {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and (not endings or path.suffix in endings)
    }


def test_the_wheel_has_what_runs_need(dist):
    (wheel,) = dist.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {name for name in names if name.startswith("sparsepo_plugin/_patches")} >= {
        name.replace("patches/", "sparsepo_plugin/_patches/", 1) for name in files_of("patches", ".patch")
    }
    for host in ("openrlhf", "axolotl", "trl"):
        recipes = {f"sparsepo_plugin/_{name}" for name in files_of(f"examples/{host}", ".yaml", ".jinja", ".json")}
        assert recipes <= names
    assert files_of("sparsepo_plugin") <= names | {"sparsepo_plugin/py.typed"} and "sparsepo_plugin/py.typed" in names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert not any(name.startswith(("tests/", "docs/")) for name in names)


def test_the_sdist_has_tests_and_documents_too(dist):
    (sdist,) = dist.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    for folder in ("tests", "docs", "patches", "examples", "benchmarks", "constraints", "sparsepo_plugin"):
        assert files_of(folder) <= names, folder
    assert {"LICENSE", "Makefile", "CHANGELOG.md", "constraints-cpu.txt"} <= names


def readme_commands(wheel):
    """README.md's block, with the wheel and this clone's constraints in place of what an index and the forge have."""
    text = (ROOT / "README.md").read_text()
    block = text.split("<!-- install -->")[1].split("<!-- /install -->")[0].split("```bash\n")[1].split("```")[0]
    assert "sparsepo-plugin\n" in block
    block = block.replace("sparsepo-plugin\n", f"{wheel}\n")
    return re.sub(r"https://raw\S+/constraints/cuda13", str(ROOT / "constraints/cpu"), block)


@pytest.fixture(scope="module")
def installed(dist, tmp_path_factory):
    """An environment that those commands made, and what runs in it.

    Without downloads what a run needs is that of the tests' own environment: pip finds it there already, compares it
    with the pins, and installs the wheel; OpenRLHF's command, which always downloads, is left out.
    """
    folder = tmp_path_factory.mktemp("installed")
    (wheel,) = dist.glob("*.whl")
    run(sys.executable, "-m", "venv", *([] if DOWNLOADS else ["--without-pip"]), folder / "venv", cwd=folder)
    python = folder / "venv/bin/python"
    search = f"{python.parent}{os.pathsep}{os.environ['PATH']}"
    commands = readme_commands(wheel)
    if not DOWNLOADS:
        site = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder).strip())
        outside = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
        (site / "tests.pth").write_text("\n".join([sysconfig.get_path("purelib"), *outside]))
        (python.parent / "pip").write_text(f'#!/bin/sh\nexec {python} -m pip "$@"\n')
        (python.parent / "pip").chmod(0o755)
        commands = commands.partition("pip install --no-deps --python-version")[0]
    run("bash", "-euo", "pipefail", "-c", commands, cwd=folder, PATH=search)
    where = run(python, "-c", "import sparsepo_plugin; print(sparsepo_plugin.__file__)", cwd=folder).strip()
    assert Path(where).is_relative_to(folder / "venv")

    def inside(*command, cwd):
        return run(*command, cwd=cwd, PATH=search, OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1", DS_BUILD_OPS="0")

    return inside


def test_it_checks_trains_answers_and_draws(installed, config, tiny, tmp_path):
    settings = config(sparsepo={"metrics_every": None}, train={"batch_size": 8})
    (tmp_path / "my.yaml").write_text(yaml.safe_dump(merge(places(tmp_path), settings)))
    assert "ok, loss: sparsepo" in installed("sparsepo", "check", "my.yaml", cwd=tmp_path)
    done = installed("sparsepo", "train", "my.yaml", cwd=tmp_path)
    assert "step 10:" in done
    code = (
        "from sparsepo_plugin import load_run\n"
        f"table = load_run({str(tmp_path / 'out')!r}).tokens(prompt='w1 ', chosen='w2 w3', rejected='w4')\n"
        "print(len(table.text), table.mask_reward.isfinite().all().item())\n"
    )
    assert installed("python", "-c", code, cwd=tmp_path).split()[-1] == "True"
    installed("sparsepo", "heatmap", "out", "--pairs", tiny / "held_out.jsonl", "-o", "page.html", cwd=tmp_path)
    assert "<script" in (tmp_path / "page.html").read_text()
    assert "openrlhf/lora" in installed("sparsepo", "recipes", cwd=tmp_path)
