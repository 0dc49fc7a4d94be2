"""The patched copy of the real OpenRLHF: built once, atomically, and never in place of the installed one."""

import hashlib
import os
import shutil
import subprocess
import sys
from contextlib import ExitStack
from importlib.metadata import PackageNotFoundError, distribution
from importlib.util import cache_from_source
from pathlib import Path
from py_compile import PycInvalidationMode
from py_compile import compile as compile_bytecode
from types import SimpleNamespace

import pytest
from linux import die_with_parent

from sparsepo_plugin.errors import SparsePOError
from sparsepo_plugin.hosts.openrlhf import overlay, patched

INSTALLED = Path(distribution("openrlhf").locate_file("openrlhf"))
BUILD = "from sparsepo_plugin.hosts.openrlhf.overlay import ensure_overlay; print(ensure_overlay())"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache, for this process and those it starts."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PYTHONPATH", str(Path(overlay.__file__).parents[3]))
    return tmp_path / "cache" / f"sparsepo_plugin-{os.getuid()}"


@pytest.fixture
def start(cache):
    """Start a process that runs the code, or Python's arguments, and that is ended with the test."""
    with ExitStack() as ends:

        def start(code, cwd=None):
            pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
            command = [sys.executable, *(["-c", code] if isinstance(code, str) else code)]
            process = subprocess.Popen(command, text=True, preexec_fn=die_with_parent, cwd=cwd, **pipes)
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
    outputs = [process.communicate(timeout=300) for process in [start(BUILD) for _ in range(4)]]
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
    monkeypatch.setattr(patched, "_installed_package", lambda: copy)
    second = overlay.ensure_overlay()
    patches = patched._patches()
    monkeypatch.setattr(patched, "_patches", lambda: patches[:1])
    assert len({first, second, overlay.ensure_overlay()}) == 3


def test_other_version_names_both(cache, monkeypatch):
    monkeypatch.setattr(patched, "distribution", lambda name: SimpleNamespace(version="0.9.3"))
    with pytest.raises(SparsePOError, match=r"0\.9\.3 is installed, 0\.11\.2 is needed"):
        overlay.ensure_overlay()
    assert folders(cache) == []


def test_missing_openrlhf_says_how_to_install_it(cache, monkeypatch):
    def missing(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr(patched, "distribution", missing)
    with pytest.raises(SparsePOError, match=r"pip install --no-deps openrlhf==0\.11\.2"):
        overlay.ensure_overlay()


def test_hunk_that_does_not_apply_is_named_and_nothing_stays_in_the_cache(cache, tmp_path, monkeypatch):
    copy = tmp_path / "openrlhf"
    shutil.copytree(INSTALLED, copy)
    trainer = copy / "trainer" / "dpo_trainer.py"
    trainer.write_text(trainer.read_text().replace("self.ref_model.eval()", "self.ref_model.eval()  # edited"))
    monkeypatch.setattr(patched, "_installed_package", lambda: copy)
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
    out, err = start(code).communicate(timeout=300)
    once, here, child = out.split()
    assert once == "True", err
    assert here == child == str(overlay.ensure_overlay() / "openrlhf" / "__init__.py")


def test_activate_refuses_an_openrlhf_that_was_imported_before(start):
    process = start("import openrlhf; from sparsepo_plugin.hosts.openrlhf.overlay import activate; activate()")
    _, err = process.communicate(timeout=300)
    assert f"SparsePOError: openrlhf was imported from {INSTALLED / '__init__.py'} before" in err


def test_a_copy_that_was_changed_does_not_run(cache, start):
    """Neither what is planted in its source, nor as bytecode that Python would not compare with the source."""
    built = overlay.ensure_overlay() / "openrlhf"
    planted = built / "__init__.py"
    planted.write_text("print('planted')")
    bytecode = Path(cache_from_source(str(planted)))
    bytecode.parent.unlink()
    bytecode.parent.mkdir()
    compile_bytecode(str(planted), str(bytecode), invalidation_mode=PycInvalidationMode.UNCHECKED_HASH)
    code = "from sparsepo_plugin.hosts.openrlhf.program import load_program; print(load_program().__file__)"
    out, err = start(code).communicate(timeout=300)
    assert "planted" not in out and str(built / "cli" / "train_dpo.py") in out, err
    assert f"sparsepo: warning: {built.parent}: openrlhf/__init__.py was changed" in err


def test_an_openrlhf_in_the_current_folder_does_not_come_first(start, tmp_path):
    """As in a clone of its repository: neither in a process that is started there nor in its child."""
    (tmp_path / "openrlhf").mkdir()
    (tmp_path / "openrlhf" / "__init__.py").write_text("print('the clone')")
    (tmp_path / "start.py").write_text(
        "import subprocess, sys\n"
        "from sparsepo_plugin.hosts.openrlhf.overlay import activate\n"
        "activate()\n"
        "import openrlhf\n"
        "print(openrlhf.__file__)\n"
        "if len(sys.argv) == 1: subprocess.run([sys.executable, '-m', 'start', 'again'])\n"
    )
    out, err = start(["-u", "-m", "start"], cwd=tmp_path).communicate(timeout=300)
    assert out.split() == [str(overlay.ensure_overlay() / "openrlhf" / "__init__.py")] * 2, err


@pytest.mark.parametrize("command", ["train", "check", "sft"])
def test_a_cache_that_cannot_be_used_is_one_line(command, start, cache, tmp_path):
    cache.parent.mkdir()
    cache.parent.chmod(0o777)
    (tmp_path / "run.yaml").write_text("{}")
    code = f"import sys; from sparsepo_plugin.cli import app; sys.argv[1:] = ['{command}', 'run.yaml']; app()"
    process = start(code, cwd=tmp_path)
    _, err = process.communicate(timeout=300)
    told = [line for line in err.splitlines() if "[WARNING]" not in line]
    assert process.returncode == 2 and len(told) == 1, err
    assert told[0].startswith(f"sparsepo: error: {cache.parent} can be written by other users")
