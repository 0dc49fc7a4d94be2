"""A patched copy of the installed OpenRLHF, in the user's cache, in front of the installed one on the path."""

import hashlib
import os
import shutil
import sys
import tempfile
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import patch_ng
from filelock import FileLock
from platformdirs import user_cache_path

from sparsepo_plugin.errors import SparsePOError

OPENRLHF_VERSION = "0.11.2"


def ensure_overlay() -> Path:
    """Build the patched copy unless it is there already.

    Safe with several processes starting at once and after a killed build; the installed package is only read.

    Returns:
        The directory to put on `sys.path`; it holds one package, `openrlhf`.

    Raises:
        SparsePOError: OpenRLHF is missing or of another version, or a patch does not apply to it.
    """
    installed = _installed_package()
    patches = _patches()
    cache = user_cache_path("sparsepo_plugin", ensure_exists=True).resolve()
    overlay = cache / f"openrlhf-{OPENRLHF_VERSION}-{_digest(installed, patches)}"
    if not overlay.is_dir():
        with FileLock(cache / f"{overlay.name}.lock"):
            if not overlay.is_dir():
                _build(overlay, installed, patches)
    return overlay


def activate() -> Path:
    """Put the patched OpenRLHF first on the path of this process and of those it starts.

    Returns:
        The overlay's directory.

    Raises:
        SparsePOError: as `ensure_overlay`, or if `openrlhf` was imported from elsewhere before.
    """
    overlay = ensure_overlay()
    loaded = sys.modules.get("openrlhf")
    if loaded is not None and Path(loaded.__file__).parent != overlay / "openrlhf":
        raise SparsePOError(f"openrlhf was imported from {loaded.__file__} before: import sparsepo_plugin.train first")
    if str(overlay) not in sys.path:
        sys.path.insert(0, str(overlay))
    inherited = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    if str(overlay) not in inherited:
        os.environ["PYTHONPATH"] = os.pathsep.join([str(overlay), *filter(None, inherited)])
    return overlay


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


def _digest(installed: Path, patches: Iterable[Path]) -> str:
    digest = hashlib.sha256()
    for path in [*patches, *sorted(installed.rglob("*.py"))]:
        name = path.name if path.suffix == ".patch" else path.relative_to(installed).as_posix()
        content = path.read_bytes()
        digest.update(f"{name}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()[:16]


def _build(overlay: Path, installed: Path, patches: Iterable[Path]) -> None:
    # a build that was killed leaves its folder; under the lock nobody else is using it
    for leftover in overlay.parent.glob(f"{overlay.name}.building-*"):
        shutil.rmtree(leftover)
    building = Path(tempfile.mkdtemp(dir=overlay.parent, prefix=f"{overlay.name}.building-"))
    try:
        shutil.copytree(installed, building / "openrlhf", ignore=shutil.ignore_patterns("__pycache__"))
        for patch in patches:
            _apply(patch, building)
        os.rename(building, overlay)
    finally:
        shutil.rmtree(building, ignore_errors=True)


def _apply(patch: Path, root: Path) -> None:
    """Apply `patch` below `root`, file by file so that an error can name the file, and with no fuzz."""
    changes = patch_ng.fromfile(str(patch))
    if not changes:
        raise SparsePOError(f"{patch}: not a patch")
    for item in list(changes.items):
        changes.items = [item]
        if not changes.apply(strip=0, root=str(root), fuzz=False):
            raise SparsePOError(
                f"{patch.name} does not apply to {item.target.decode()} of the installed OpenRLHF {OPENRLHF_VERSION}: "
                f"it was written for the released {OPENRLHF_VERSION}; reinstall that release"
            )
