"""A patched copy of the installed OpenRLHF, in the user's cache, in front of the installed one on the path.

Nothing in the cache is believed: before each use the copy is compared with what it has to contain, file by file, which
takes some hundredths of a second, and is made again where it differs.
"""

import hashlib
import os
import re
import shutil
import sys
import tempfile
import warnings
from collections.abc import Iterable
from pathlib import Path

from filelock import FileLock
from platformdirs import user_cache_path

from ...errors import SparsePOError, is_first
from .cache import WAY_OUT, private_cache, refuse_foreign
from .patched import PatchedPackage, patched_package, untested

_LOCK_SECONDS = 60  # a build takes less than one


def ensure_overlay() -> Path:
    """Make the patched copy unless it is there already, as it has to be.

    Safe with several processes starting at once and after a killed build; the installed package is only read.

    Returns:
        The directory to put on `sys.path`; it holds one package, `openrlhf`.

    Raises:
        SparsePOError: OpenRLHF is missing or too old, a patch does not apply to it, or the cache cannot be written, or
            others can write it.
    """
    return _ensure(patched_package())


def _ensure(package: PatchedPackage) -> Path:
    try:
        return _ensure_in(private_cache(), package.version, _without_bytecode(package.files))
    except OSError as error:
        place = error.filename or user_cache_path()  # a full disk has no file name
        reason = f"{place}: {error.strerror or error}"
        raise SparsePOError(f"the cache cannot hold the patched copy of OpenRLHF: {reason}; {WAY_OUT}") from error


def activate() -> Path:
    """Put the patched OpenRLHF first on the path of this process and of those it starts.

    Returns:
        The overlay's directory.

    Raises:
        SparsePOError: as `ensure_overlay`, or if `openrlhf` was imported from elsewhere before.
    """
    package = patched_package()
    overlay = _ensure(package)
    loaded = sys.modules.get("openrlhf")
    if loaded is not None and Path(loaded.__file__).parent != overlay / "openrlhf":
        raise SparsePOError(f"openrlhf was imported from {loaded.__file__} before: import sparsepo_plugin.train first")
    # Without bytecode each start compiles, and would tell anew what Python thinks of OpenRLHF's escape sequences.
    warnings.filterwarnings("ignore", category=SyntaxWarning, module=re.escape(str(overlay)))
    inherited = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    note = untested(package.version)
    if note and is_first() and str(overlay) not in inherited:  # else whoever started this process has told it
        print(f"sparsepo: warning: {note}", file=sys.stderr)
    sys.path[:] = _first(str(overlay), sys.path)
    os.environ["PYTHONPATH"] = os.pathsep.join(_first(str(overlay), filter(None, inherited)))
    return overlay


def _first(entry: str, path: Iterable[str]) -> list[str]:
    return [entry, *(other for other in path if other != entry)]


def _without_bytecode(files: dict[str, bytes]) -> dict[str, bytes]:
    """With a file where Python keeps bytecode: none is written then, and none read that nobody could verify."""
    folders = {path.rpartition("/")[0] for path in files}
    return {**files, **{f"{folder}/__pycache__": b"" for folder in folders}}


def _ensure_in(cache: Path, version: str, files: dict[str, bytes]) -> Path:
    overlay = cache / f"openrlhf-{version}-{_digest(files)}"
    if _difference(overlay, files) is None:
        return overlay
    with FileLock(cache / "lock", timeout=_LOCK_SECONDS):
        name = _difference(overlay, files)  # another process may have made it meanwhile
        if name is not None and overlay.exists():
            print(f"sparsepo: warning: {overlay}: {name} was changed, the copy is made again", file=sys.stderr)
        if name is not None:
            _build(overlay, files)
    return overlay


def _digest(files: dict[str, bytes]) -> str:
    digest = hashlib.sha256()
    for name, content in sorted(files.items()):
        digest.update(f"{name}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()[:16]


def _difference(overlay: Path, files: dict[str, bytes]) -> str | None:
    """The first path below `overlay` that is not what it has to be, or None."""
    try:
        refuse_foreign(overlay)
        found = {path for path in overlay.rglob("*") if path.is_symlink() or not path.is_dir()}
        for path in sorted(found | {overlay / name for name in files}):
            name = path.relative_to(overlay).as_posix()
            if name not in files or path.is_symlink() or not path.is_file() or path.read_bytes() != files[name]:
                return name
    except FileNotFoundError:  # it was never made, or another process exchanges it at this moment
        return "."
    return None


def _build(overlay: Path, files: dict[str, bytes]) -> None:
    # A build that was killed leaves its folder; under the lock nobody else is using it.
    for leftover in overlay.parent.glob("building-*"):
        shutil.rmtree(leftover)
    building = Path(tempfile.mkdtemp(dir=overlay.parent, prefix="building-"))
    try:
        for name, content in files.items():
            path = building / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        if overlay.exists():
            shutil.rmtree(overlay)
        building.rename(overlay)
    finally:
        shutil.rmtree(building, ignore_errors=True)
