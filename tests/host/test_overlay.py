"""The patched copy of the real OpenRLHF: built once, atomically, and never in place of the installed one."""

import hashlib
import os
import shutil
import subprocess
import sys
from contextlib import ExitStack
from importlib.metadata import distribution
from importlib.util import cache_from_source
from pathlib import Path
from py_compile import PycInvalidationMode
from py_compile import compile as compile_bytecode

import pytest
from host_runs import RELEASES
from linux import die_with_parent

from sparsepo_plugin.errors import SparsePOError
from sparsepo_plugin.hosts.openrlhf import overlay, patched
from sparsepo_plugin.hosts.openrlhf.patched import TESTED, patched_package

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


@pytest.fixture
def newer(tmp_path, cache, monkeypatch):
    """The newest tested release under a version that is not out, in front of the installed one; its folder."""
    site = tmp_path / "site"
    shutil.copytree(RELEASES / TESTED[-1] / "openrlhf", site / "openrlhf")
    (site / "openrlhf-0.99.0.dist-info").mkdir()
    metadata = "Metadata-Version: 2.1\nName: openrlhf\nVersion: 0.99.0\n"
    (site / "openrlhf-0.99.0.dist-info" / "METADATA").write_text(metadata)
    monkeypatch.syspath_prepend(site)
    monkeypatch.setenv("PYTHONPATH", str(site), prepend=os.pathsep)
    return site / "openrlhf"


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
    monkeypatch.setattr(patched, "_installed_package", lambda: ("0.11.2", copy))
    second = overlay.ensure_overlay()
    patches = patched._patches()
    monkeypatch.setattr(patched, "_patches", lambda: patches[:1])
    assert len({first, second, overlay.ensure_overlay()}) == 3


@pytest.mark.parametrize("version", TESTED)
def test_the_release_that_is_on_the_path_is_patched(start, cache, monkeypatch, version):
    monkeypatch.setenv("PYTHONPATH", str(RELEASES / version), prepend=os.pathsep)
    out, err = start(BUILD).communicate(timeout=300)
    assert Path(out.strip()).name.startswith(f"openrlhf-{version}-") and err == ""


def test_a_newer_release_that_the_patches_fit_is_used_with_one_warning(start, cache, newer):
    """One for the process that is started, for those that it starts, and for all ranks."""
    code = """
import os, subprocess, sys
from sparsepo_plugin.hosts.openrlhf.overlay import activate
os.environ.update(RANK=sys.argv[1], LOCAL_RANK=sys.argv[1], WORLD_SIZE="2")
print(activate() == activate())
if len(sys.argv) == 2:
    subprocess.run([sys.executable, __file__, sys.argv[1], "child"])
"""
    script = newer.parent / "start.py"
    script.write_text(code)
    for rank, warnings in (("0", 1), ("1", 0)):
        out, err = start([str(script), rank]).communicate(timeout=300)
        assert out.split() == ["True", "True"]
        assert err.splitlines() == warnings * [
            "sparsepo: warning: OpenRLHF 0.99.0 is not tested; tested are 0.10.4, 0.11.0, 0.11.1, 0.11.2"
        ]
    assert [name.rpartition("-")[0] for name in folders(cache)] == ["openrlhf-0.99.0"]


def test_what_has_moved_in_a_newer_release_is_found(newer):
    pristine = {f"openrlhf/{path.relative_to(newer).as_posix()}": path for path in newer.rglob("*.py")}
    before = patched_package().files
    changed = [name for name, path in pristine.items() if before[name] != path.read_bytes()]
    assert len(changed) > 10
    lines = b"# Here are\n# three\n# more lines.\n"
    for name in changed:
        pristine[name].write_bytes(lines + pristine[name].read_bytes())
    assert patched_package().files == {**before, **{name: lines + before[name] for name in changed}}


def test_a_newer_release_that_a_patch_does_not_fit_is_named_and_nothing_stays_in_the_cache(newer, cache):
    trainer = newer / "trainer" / "dpo_trainer.py"
    trainer.write_text(trainer.read_text().replace("self.ref_model.eval()", "self.ref_model.eval()  # edited"))
    with pytest.raises(SparsePOError) as error:
        overlay.ensure_overlay()
    assert str(error.value).startswith(
        "0007-loss-registry.patch does not apply to openrlhf/trainer/dpo_trainer.py of the installed OpenRLHF 0.99.0; "
        "tested are 0.10.4, 0.11.0, 0.11.1, 0.11.2: pip uninstall openrlhf && pip install --no-deps "
    )
    assert folders(cache) == []


@pytest.mark.parametrize(
    ("text", "after"),
    [
        ("a b c d e f", "a B c d E f"),  # each at its own line
        ("- - a b c d e f", "- - a B c d E f"),
        ("a b c - d e f", "a B c - d E f"),  # the second alone has moved
        ("b c d e f", None),
        ("a b c e f", None),
        ("d e f a b c", None),  # not in this order
        ("a b c d e f a b c", "a B c d E f a b c"),  # at its own line, whatever else there is
        ("- a b c a b c d e f", None),  # moved, and there are two
    ],
)
def test_hunks_have_one_place_or_none(tmp_path, text, after):
    def lines(words):
        return "".join(f"{word}\n" for word in words.split()).encode()

    patch = tmp_path / "0001-two-hunks.patch"
    head = "--- openrlhf/file.py\n+++ openrlhf/file.py\n"
    patch.write_text(f"{head}@@ -1,3 +1,3 @@\n a\n-b\n+B\n c\n@@ -4,3 +4,3 @@\n d\n-e\n+E\n f\n")
    files = {"openrlhf/file.py": lines(text)}
    assert patched._apply(patch, files) == (None if after else "openrlhf/file.py")
    assert files == {"openrlhf/file.py": lines(after or text)}


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
    (tmp_path / "run.yaml").write_text("model: {}")
    code = f"import sys; from sparsepo_plugin.cli import app; sys.argv[1:] = ['{command}', 'run.yaml']; app()"
    process = start(code, cwd=tmp_path)
    _, err = process.communicate(timeout=300)
    told = [line for line in err.splitlines() if line and "[WARNING]" not in line]
    assert process.returncode == 2 and len(told) == 1, err
    assert told[0].startswith(f"sparsepo: error: {cache.parent} can be written by other users")
