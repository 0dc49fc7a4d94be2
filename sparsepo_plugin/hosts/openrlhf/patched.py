"""The installed OpenRLHF with the patches applied, in memory: what the overlay has to contain."""

from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import patch_ng

from ...errors import SparsePOError

OPENRLHF_VERSION = "0.11.2"
TESTED = ("0.10.4", "0.11.0", "0.11.1", "0.11.2")


def patched_package() -> dict[str, bytes]:
    """Content by path, `openrlhf/…`; nothing is written.

    Raises:
        SparsePOError: OpenRLHF is missing or of another version, or a patch does not apply to it.
    """
    installed = _installed_package()
    paths = [path for path in installed.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    files = {f"openrlhf/{path.relative_to(installed).as_posix()}": path.read_bytes() for path in sorted(paths)}
    for patch in _patches():
        _apply(patch, files)
    return files


def _installed_package() -> Path:
    install = f"pip install --no-deps openrlhf=={OPENRLHF_VERSION}"
    try:
        found = distribution("openrlhf")
    except PackageNotFoundError:
        raise SparsePOError(f"OpenRLHF {OPENRLHF_VERSION} is not installed: {install}") from None
    if found.version != OPENRLHF_VERSION:
        raise SparsePOError(f"OpenRLHF {found.version} is installed, {OPENRLHF_VERSION} is needed: {install}")
    return Path(found.locate_file("openrlhf"))


def _patches() -> list[Path]:
    """The patches in their order: shipped inside an installed wheel, or beside the package in a checkout."""
    package = Path(__file__).resolve().parents[2]
    for folder in (package / "_patches", package.parent / "patches"):
        if found := sorted(folder.glob(f"openrlhf/{OPENRLHF_VERSION}/*.patch")):
            return found
    raise SparsePOError(f"the patches for OpenRLHF {OPENRLHF_VERSION} are missing from {package}: reinstall")


def _apply(patch: Path, files: dict[str, bytes]) -> None:
    changes = patch_ng.fromfile(str(patch))
    if not changes:
        raise SparsePOError(f"{patch}: not a patch")
    for change in changes.items:
        name = change.target.decode()
        lines = files.get(name, b"").splitlines(keepends=True)
        if (change.source == b"/dev/null") == (name in files) or not _change(lines, change.hunks):
            raise SparsePOError(
                f"{patch.name} does not apply to {name} of the installed OpenRLHF {OPENRLHF_VERSION}: "
                f"it was written for the released {OPENRLHF_VERSION}; reinstall that release"
            )
        files[name] = b"".join(lines)


def _change(lines: list[bytes], hunks: list[Any]) -> bool:
    """Apply `hunks` to `lines`, each at its own line number, with no fuzz; False where one does not fit."""
    for hunk in reversed(hunks):
        start = hunk.startsrc - (hunk.linessrc > 0)  # a hunk that only adds counts from the line before it
        old, new = ([line[1:] for line in hunk.text if line[:1] in (b" ", sign)] for sign in (b"-", b"+"))
        if lines[start : start + len(old)] != old:
            return False
        lines[start : start + len(old)] = new
    return True
