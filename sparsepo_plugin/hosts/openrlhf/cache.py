"""A folder in the user's cache that nobody else can write: what lies there is put on the path and run."""

import os
import stat
from pathlib import Path

from platformdirs import user_cache_path

from ...errors import SparsePOError

WAY_OUT = "name a folder in XDG_CACHE_HOME where only you can write"


def private_cache() -> Path:
    """The plugin's folder in the user's cache, made if need be; each user has one, also where several share a cache.

    Raises:
        SparsePOError: others can write it or a folder that it lies in, it belongs to somebody else, or no home folder
            is known.
        OSError: it cannot be made.
    """
    base = _user_cache()
    for folder in (*reversed(base.parents), base):
        folder.mkdir(mode=0o700, exist_ok=True)
        _refuse_shared(folder)
    own = base / f"sparsepo_plugin-{os.getuid()}"
    if not os.path.lexists(own):
        own.mkdir(mode=0o700, exist_ok=True)
    refuse_foreign(own)
    return own


def refuse_foreign(folder: Path) -> None:
    """Refuse what is not a folder of this user's that nobody else can write.

    Raises:
        SparsePOError: it is a link, belongs to somebody else, or others can write it.
    """
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode):
        problem = "is a link or a file, not a folder"
    elif status.st_uid != os.getuid():
        problem = f"belongs to another user (uid {status.st_uid})"
    elif status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        problem = "can be written by other users"
    else:
        return
    raise SparsePOError(f"{folder} {problem}, and code is run from there: remove it, or {WAY_OUT}")


def _user_cache() -> Path:
    try:
        base = user_cache_path()
    except RuntimeError:  # from newer versions of platformdirs; older ones leave the ~
        base = Path("~")
    if not base.is_absolute():
        raise SparsePOError(f"no home folder is known, and so no cache: {WAY_OUT}")
    return base.resolve()


def _refuse_shared(folder: Path) -> None:
    """Refuse a folder in which other users can exchange what is this user's.

    In a sticky one, such as /tmp, they cannot. The user's own group may write: it often has no other member.
    """
    status = folder.stat()
    others = status.st_mode & stat.S_IWOTH or (status.st_mode & stat.S_IWGRP and status.st_gid != os.getgid())
    if others and not status.st_mode & stat.S_ISVTX:
        raise SparsePOError(f"{folder} can be written by other users, and code is run from below it: {WAY_OUT}")
