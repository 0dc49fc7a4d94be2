"""The patched copy in the cache: nobody else can write it, and what lies there is not believed.

A package of three files stands for OpenRLHF, whose own copy tests/host/test_overlay.py makes. What needs two users
runs where the tests run as root.
"""

import os
import resource
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import warnings
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest

from sparsepo_plugin.errors import SparsePOError
from sparsepo_plugin.hosts.openrlhf import overlay
from sparsepo_plugin.hosts.openrlhf.patched import PatchedPackage

FILES = {
    "openrlhf/__init__.py": b"",
    "openrlhf/cli/__init__.py": b"name = 'cli'\n" * 500,
    "openrlhf/cli/train_dpo.py": b"from . import name\n",
}
ALICE, BOB = 12345, 12346
AS_ROOT = pytest.mark.skipif(os.getuid() != 0, reason="needs root, to be two users")
EVIL = b"raise SystemExit('planted')\n"


@pytest.fixture
def base(tmp_path, monkeypatch):
    """What XDG_CACHE_HOME names."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(overlay, "patched_package", lambda: PatchedPackage("0.11.2", dict(FILES)))
    return tmp_path / "cache"


@pytest.fixture
def shared(base, monkeypatch):
    """A cache that every user reaches, and that has no folder of any."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        os.chmod(folder, 0o755)
        cache = Path(folder, "cache")
        cache.mkdir()
        cache.chmod(0o1777)
        monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
        yield cache


def become(user):
    os.setgroups([])
    os.setgid(user)
    os.setuid(user)


def attempt():
    try:
        return str(overlay.ensure_overlay())
    except SparsePOError as error:
        return f"refused: {error}"


def attempt_as(user):
    """The copy's folder, or why there is none, of another user."""
    with ProcessPoolExecutor(1, get_context("fork"), initializer=become, initargs=(user,)) as process:
        return process.submit(attempt).result(timeout=60)


def own(base):
    return base / f"sparsepo_plugin-{os.getuid()}"


def content(folder):
    """All plain files below, but those that keep bytecode away."""
    files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if not path.is_dir()}
    assert not any(path.is_symlink() for path in files.values())
    return {name: path.read_bytes() for name, path in files.items() if path.name != "__pycache__"}


def left(base):
    """What lies in the plugin's folder beside its lock."""
    return sorted(path.name for path in own(base).iterdir() if path.name != "lock")


@pytest.fixture
def loose_umask():
    before = os.umask(0)
    yield
    os.umask(before)


def test_nobody_else_can_write_what_is_made(base, loose_umask):
    copy = overlay.ensure_overlay()
    assert content(copy) == FILES
    assert copy.parent == own(base)
    for folder in (base, copy.parent, copy):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700, folder


def link(own):
    (own.parent / "elsewhere").mkdir()
    own.symlink_to(own.parent / "elsewhere")


def opened(mode):
    def make(own):
        own.mkdir()
        own.chmod(mode)

    return make


def opened_base(mode):
    def make(own):
        own.parent.chmod(mode)

    return make


@pytest.mark.parametrize(
    ("plant", "says"),
    [
        (link, "is a link or a file"),
        (lambda own: own.write_text(""), "is a link or a file"),
        (opened(0o777), "can be written by other users"),
        (opened(0o775), "can be written by other users"),
        (opened_base(0o777), "can be written by other users"),
        (lambda own: (own.parent.rmdir(), own.parent.write_text("")), "File exists"),
    ],
    ids=["link", "file", "open to all", "open to a group", "base open to all", "base is a file"],
)
def test_a_folder_that_is_not_the_users_alone_is_refused(base, plant, says):
    base.mkdir()
    plant(own(base))
    before = sorted(base.parent.rglob("*"))
    with pytest.raises(SparsePOError) as refusal:
        overlay.ensure_overlay()
    (line,) = str(refusal.value).splitlines()
    assert str(base) in line and says in line and "XDG_CACHE_HOME" in line
    assert sorted(base.parent.rglob("*")) == before


@AS_ROOT
@pytest.mark.parametrize("depth", [0, 1], ids=["the folder", "the copy in it"])
def test_a_folder_of_another_user_is_refused(base, depth):
    folder = [own(base), overlay.ensure_overlay()][depth]
    os.chown(folder, ALICE, ALICE)
    with pytest.raises(SparsePOError, match=rf"{folder} belongs to another user \(uid {ALICE}\).*XDG_CACHE_HOME"):
        overlay.ensure_overlay()


@AS_ROOT
def test_a_group_with_others_in_it_may_not_write_above(base):
    base.mkdir()
    base.chmod(0o775)
    assert overlay.ensure_overlay().is_dir()  # the user's own group
    os.chown(base, -1, ALICE)
    with pytest.raises(SparsePOError, match=f"{base} can be written by other users"):
        overlay.ensure_overlay()


@AS_ROOT
def test_users_of_one_cache_have_their_own(shared):
    copies = {user: Path(attempt_as(user)) for user in (ALICE, BOB)}
    assert {copy.parent for copy in copies.values()} == {shared / f"sparsepo_plugin-{user}" for user in copies}
    for user, copy in copies.items():
        assert copy.stat().st_uid == user and content(copy) == FILES


@AS_ROOT
def test_what_one_user_plants_for_another_is_refused(shared):
    planted = shared / f"sparsepo_plugin-{BOB}"
    copy = planted / Path(attempt_as(ALICE)).name
    shutil.copytree(shared / f"sparsepo_plugin-{ALICE}", planted)
    (copy / "openrlhf" / "__init__.py").write_bytes(EVIL)
    for path in (planted, *planted.rglob("*")):
        os.chown(path, ALICE, ALICE)
        path.chmod(0o777)
    assert attempt_as(BOB).startswith(f"refused: {planted} belongs to another user (uid {ALICE})")


@AS_ROOT
def test_a_cache_that_cannot_be_written(shared):
    """A copy that is there is used; one that is not cannot be made, nor one that was changed."""
    copy = Path(attempt_as(ALICE))
    shared.chmod(0o755)
    assert attempt_as(ALICE) == str(copy)
    line = attempt_as(BOB)
    assert f"{shared}/sparsepo_plugin-{BOB}: Permission denied" in line and "XDG_CACHE_HOME" in line
    (copy / "openrlhf" / "__init__.py").write_bytes(EVIL)
    copy.parent.chmod(0o500)
    assert f"{copy.parent}" in attempt_as(ALICE) and "Permission denied" in attempt_as(ALICE)


@AS_ROOT
def test_a_user_without_a_home(base, monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.delenv("HOME")
    assert attempt_as(54321).startswith(
        "refused: no home folder is known, and so no cache: name a folder in XDG_CACHE"
    )


def change(copy):
    (copy / "openrlhf/cli/train_dpo.py").write_bytes(EVIL)


def change_but_not_in_size(copy):
    path = copy / "openrlhf/cli/train_dpo.py"
    status = path.stat()
    path.write_bytes(path.read_bytes().replace(b"name", b"evil"))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def remove(copy):
    (copy / "openrlhf/cli/train_dpo.py").unlink()


def add_module(copy):
    (copy / "torch.py").write_bytes(EVIL)


def add_bytecode(copy):
    (copy / "openrlhf/cli/__pycache__").unlink()
    (copy / "openrlhf/cli/__pycache__").mkdir()
    (copy / f"openrlhf/cli/__pycache__/train_dpo.{sys.implementation.cache_tag}.pyc").write_bytes(EVIL)


def link_file(copy):
    shutil.move(copy / "openrlhf/cli/train_dpo.py", copy.parent / "train_dpo.py")
    (copy / "openrlhf/cli/train_dpo.py").symlink_to(copy.parent / "train_dpo.py")


def link_folder(copy):
    shutil.move(copy / "openrlhf/cli", copy.parent / "cli")
    (copy / "openrlhf/cli").symlink_to(copy.parent / "cli")


def folder_in_place_of_a_file(copy):
    (copy / "openrlhf/cli/train_dpo.py").unlink()
    (copy / "openrlhf/cli/train_dpo.py").mkdir()


@pytest.mark.parametrize(
    ("tamper", "named"),
    [
        (change, "openrlhf/cli/train_dpo.py"),
        (change_but_not_in_size, "openrlhf/cli/train_dpo.py"),
        (remove, "openrlhf/cli/train_dpo.py"),
        (add_module, "torch.py"),
        (add_bytecode, "openrlhf/cli/__pycache__"),
        (link_file, "openrlhf/cli/train_dpo.py"),
        (link_folder, "openrlhf/cli"),
        (folder_in_place_of_a_file, "openrlhf/cli/train_dpo.py"),
    ],
)
def test_a_copy_that_was_changed_is_made_again(base, tamper, named, capsys):
    copy = overlay.ensure_overlay()
    tamper(copy)
    assert overlay.ensure_overlay() == copy
    assert content(copy) == FILES
    (line,) = capsys.readouterr().err.splitlines()
    assert line == f"sparsepo: warning: {copy}: {named} was changed, the copy is made again"
    assert copy.name in left(base) and not any(name.startswith("building-") for name in left(base))
    assert overlay.ensure_overlay() == copy
    assert capsys.readouterr().err == ""


def test_a_planted_copy_of_the_right_name_is_not_believed(base):
    copy = overlay.ensure_overlay()
    shutil.rmtree(base)
    change_all = dict.fromkeys(FILES, EVIL)
    for name, planted in change_all.items():
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        (copy / name).write_bytes(planted)
    base.chmod(0o700), own(base).chmod(0o700), copy.chmod(0o700)
    assert content(overlay.ensure_overlay()) == FILES


def test_python_leaves_no_bytecode_and_reads_none(base):
    copy = overlay.ensure_overlay()
    code = "import openrlhf.cli.train_dpo as module; print(module.name, module.__spec__.cached)"
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(copy)}, capture_output=True, text=True
        )
        assert done.stdout.startswith("cli "), done.stderr
        assert content(copy) == FILES


def test_what_python_says_of_the_hosts_source_is_not_told_at_each_start(base, monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setenv("PYTHONPATH", "")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        copy = overlay.activate()
        for folder in (copy / "openrlhf", base):
            compile("1 is 1", str(folder / "module.py"), "exec")
    assert [warning.filename for warning in caught] == [str(base / "module.py")]


def few_bytes(limit):
    """As on a disk that is full after some bytes."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))


@pytest.mark.parametrize("limit", [0, 1000])
def test_a_disk_that_is_full(base, limit):
    with ProcessPoolExecutor(1, get_context("fork"), initializer=few_bytes, initargs=(limit,)) as process:
        line = process.submit(attempt).result(timeout=60)
    assert line.startswith(f"refused: the cache cannot hold the patched copy of OpenRLHF: {base}"), line
    assert "File too large" in line and "XDG_CACHE_HOME" in line and len(line.splitlines()) == 1
    assert left(base) == []
    copy = overlay.ensure_overlay()
    assert content(copy) == FILES and left(base) == [copy.name]


WRITES = {"open", "os.mkdir", "os.rename", "os.rmdir", "os.remove"}  # audit events


def killed_at(moment):
    """Make the copy, and be killed at that many calls that change the file system."""
    calls = 0

    def audit(event, _):
        nonlocal calls
        if event in WRITES:
            calls += 1
            if calls == moment:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(audit)
    overlay.ensure_overlay()


@pytest.mark.slow
def test_a_build_that_is_killed_at_any_moment_is_made_good_by_the_next(base):
    """Of a first build, and of one in place of a changed copy."""
    copy = overlay.ensure_overlay()
    kills = 0
    for prepare in (lambda: shutil.rmtree(copy), lambda: change(copy)):
        for moment in range(1, 1000):
            prepare()
            process = get_context("fork").Process(target=killed_at, args=(moment,))
            process.start()
            process.join()
            assert overlay.ensure_overlay() == copy
            assert content(copy) == FILES
            assert left(base) == [copy.name]
            if process.exitcode == 0:
                break
            assert process.exitcode == -signal.SIGKILL
            kills += 1
    assert kills > 25
