"""The patched copy of OpenRLHF: built once, atomically, and never in place of the installed one."""

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from types import SimpleNamespace

import pytest
from linux import die_with_parent

from sparsepo_plugin.errors import SparsePOError
from sparsepo_plugin.hosts.openrlhf import overlay

INSTALLED = Path(distribution("openrlhf").locate_file("openrlhf"))
BUILD = "from sparsepo_plugin.hosts.openrlhf.overlay import ensure_overlay; print(ensure_overlay())"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache, for this process and those it starts."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PYTHONPATH", str(Path(overlay.__file__).parents[3]))
    return tmp_path / "cache" / "sparsepo_plugin"


@pytest.fixture
def start(cache):
    """Start a process that runs the code, and that is ended with the test."""
    with ExitStack() as ends:

        def start(code):
            pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
            process = subprocess.Popen([sys.executable, "-c", code], text=True, preexec_fn=die_with_parent, **pipes)
            ends.enter_context(process)
            ends.callback(process.kill)
            return process

        yield start


def folders(cache):
    return sorted(path.name for path in cache.iterdir() if path.is_dir()) if cache.exists() else []


def hashes(folder):
    return {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.rglob("*.py"))}


def test_four_processes_at_once_build_one_overlay_and_leave_the_installed_package_alone(cache, start):
    before = hashes(INSTALLED)
    outputs = [process.communicate(timeout=60) for process in [start(BUILD) for _ in range(4)]]
    paths = {Path(out.strip()) for out, _ in outputs}
    assert len(paths) == 1, outputs
    (built,) = paths
    assert folders(cache) == [built.name]
    assert (built / "openrlhf" / "models" / "loss_registry.py").is_file()
    assert not list(built.rglob("*.orig"))
    assert hashes(INSTALLED) == before


def test_overlay_is_built_once_and_again_when_the_installed_package_or_a_patch_changes(cache, tmp_path, monkeypatch):
    first = overlay.ensure_overlay()
    with monkeypatch.context() as patch:
        patch.setattr(overlay, "_build", lambda *_: pytest.fail("built twice"))
        assert overlay.ensure_overlay() == first

    copy = tmp_path / "openrlhf"
    shutil.copytree(INSTALLED, copy)
    (copy / "cli" / "serve_rm.py").write_text("")
    monkeypatch.setattr(overlay, "_installed_package", lambda: copy)
    second = overlay.ensure_overlay()
    patches = overlay._patches()
    monkeypatch.setattr(overlay, "_patches", lambda: patches[:1])
    assert len({first, second, overlay.ensure_overlay()}) == 3


def test_killed_build_leaves_nothing_behind(cache, start):
    stuck = start(f"import time, patch_ng; patch_ng.PatchSet.apply = lambda *a, **k: time.sleep(60)\n{BUILD}")
    while not any(".building-" in name for name in folders(cache)):
        assert stuck.poll() is None, stuck.communicate()
        time.sleep(0.05)
    os.kill(stuck.pid, signal.SIGKILL)
    stuck.communicate(timeout=60)

    built = overlay.ensure_overlay()
    assert folders(cache) == [built.name]


def test_other_version_names_both(cache, monkeypatch):
    monkeypatch.setattr(overlay, "distribution", lambda name: SimpleNamespace(version="0.9.3"))
    with pytest.raises(SparsePOError, match=r"0\.9\.3 is installed, 0\.11\.2 is needed"):
        overlay.ensure_overlay()
    assert folders(cache) == []


def test_missing_openrlhf_says_how_to_install_it(cache, monkeypatch):
    def missing(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr(overlay, "distribution", missing)
    with pytest.raises(SparsePOError, match=r"pip install --no-deps openrlhf==0\.11\.2"):
        overlay.ensure_overlay()


def test_hunk_that_does_not_apply_is_named_and_nothing_stays_in_the_cache(cache, tmp_path, monkeypatch):
    copy = tmp_path / "openrlhf"
    shutil.copytree(INSTALLED, copy)
    trainer = copy / "trainer" / "dpo_trainer.py"
    trainer.write_text(trainer.read_text().replace("self.ref_model.eval()", "self.ref_model.eval()  # edited"))
    monkeypatch.setattr(overlay, "_installed_package", lambda: copy)
    with pytest.raises(SparsePOError, match=r"0007-\S+\.patch .*openrlhf/trainer/dpo_trainer\.py .*0\.11\.2"):
        overlay.ensure_overlay()
    assert folders(cache) == []


def test_activate_puts_the_overlay_first_here_and_in_children(cache, start):
    check = "import openrlhf; print(openrlhf.__file__)"
    code = f"""
import subprocess, sys
from sparsepo_plugin.hosts.openrlhf.overlay import activate
print(activate() == activate())
{check}
print(subprocess.run([sys.executable, "-c", {check!r}], capture_output=True, text=True).stdout)
"""
    out, err = start(code).communicate(timeout=60)
    once, here, child = out.split()
    assert once == "True", err
    assert here == child == str(overlay.ensure_overlay() / "openrlhf" / "__init__.py")


def test_activate_refuses_an_openrlhf_that_was_imported_before(start):
    process = start("import openrlhf; from sparsepo_plugin.hosts.openrlhf.overlay import activate; activate()")
    _, err = process.communicate(timeout=60)
    assert f"SparsePOError: openrlhf was imported from {INSTALLED / '__init__.py'} before" in err
