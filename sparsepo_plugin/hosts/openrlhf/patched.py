"""The installed OpenRLHF with the patches applied, in memory: what the overlay has to contain."""

import sysconfig
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import patch_ng
from packaging.version import Version

from ...errors import SparsePOError

TESTED = ("0.10.4", "0.11.0", "0.11.1", "0.11.2")

_TESTED = f"tested are {', '.join(TESTED)}"

# From the wheel for one Python on one platform, which holds nothing but Python: others have none.
_INSTALL = (
    "pip install --no-deps --python-version 3.12 --platform manylinux1_x86_64 "
    f"--target {sysconfig.get_path('purelib')} openrlhf=={TESTED[-1]}"
)
_CHANGE = f"{_TESTED}: pip uninstall openrlhf && {_INSTALL}"


@dataclass(frozen=True)
class PatchedPackage:
    """A release of OpenRLHF with the patches applied.

    Attributes:
        version: Of the installed release.
        files: Content by path, `openrlhf/…`.
    """

    version: str
    files: dict[str, bytes]


def patched_package() -> PatchedPackage:
    """Read and patch the installed OpenRLHF; nothing is written.

    Raises:
        SparsePOError: OpenRLHF is missing or older than the tested releases, or a patch does not apply to it.
    """
    version, installed = _installed_package()
    paths = [path for path in installed.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    files = {f"openrlhf/{path.relative_to(installed).as_posix()}": path.read_bytes() for path in sorted(paths)}
    for patch in _patches():
        if misfit := _apply(patch, files):
            raise SparsePOError(
                f"{patch.name} does not apply to {misfit} of the installed OpenRLHF {version}; {_CHANGE}"
            )
    return PatchedPackage(version, files)


def untested(version: str) -> str | None:
    """What to say of a release that the patches apply to and that nobody has tested; None for one of `TESTED`."""
    return None if version in TESTED else f"OpenRLHF {version} is not tested; {_TESTED}"


def _installed_package() -> tuple[str, Path]:
    try:
        found = distribution("openrlhf")
    except PackageNotFoundError:
        raise SparsePOError(f"OpenRLHF is not installed; {_TESTED}: {_INSTALL}") from None
    if Version(found.version) < Version(TESTED[0]):
        raise SparsePOError(f"OpenRLHF {found.version} is installed, which is too old; {_CHANGE}")
    return found.version, Path(found.locate_file("openrlhf"))


def _patches() -> list[Path]:
    """The patches in their order: shipped inside an installed wheel, or beside the package in a checkout."""
    package = Path(__file__).resolve().parents[2]
    for folder in (package / "_patches", package.parent / "patches"):
        if found := sorted(folder.glob("openrlhf/*.patch")):
            return found
    raise SparsePOError(f"the patches for OpenRLHF are missing from {package}: reinstall")


def _apply(patch: Path, files: dict[str, bytes]) -> str | None:
    """Change `files` as the patch says, or return the name of the first that it does not fit."""
    changes = patch_ng.fromfile(str(patch))
    if not changes:
        raise SparsePOError(f"{patch}: not a patch")
    for change in changes.items:
        name = change.target.decode()
        lines = files.get(name, b"").splitlines(keepends=True)
        if (change.source == b"/dev/null") == (name in files) or not _change(lines, change.hunks):
            return name
        files[name] = b"".join(lines)
    return None


def _change(lines: list[bytes], hunks: list[Any]) -> bool:
    """Apply `hunks` to `lines` with no fuzz, wherever in the file they have moved; False where one has no place."""
    moved = end = 0  # of the hunk before: by how many lines, and where it ends
    for hunk in hunks:
        old, new = ([line[1:] for line in hunk.text if line[:1] in (b" ", sign)] for sign in (b"-", b"+"))
        line = hunk.starttgt - 1
        start = _place(lines, old, line + moved, end)
        if start is None:
            return False
        lines[start : start + len(old)] = new
        moved, end = start - line, start + len(new)
    return True


def _place(lines: list[bytes], old: list[bytes], expected: int, end: int) -> int | None:
    """Where `old` stands: where it is expected, or else in the one place behind `end` that there is."""
    if expected >= end and lines[expected : expected + len(old)] == old:
        return expected
    found = [start for start in range(end, len(lines) - len(old) + 1) if lines[start : start + len(old)] == old]
    return found[0] if len(found) == 1 else None
