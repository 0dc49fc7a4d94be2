"""The one exception for mistakes that a user can make and mend, and how it reaches them."""

import os
import reprlib
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


class SparsePOError(ValueError):
    """Bad input: one line that names the option, or the file and row, and what is allowed.

    The command line prints the message alone and exits with code 2; a traceback would hide it.

    Args:
        message: The line. The core speaks of models, masks and options, never of a host's flags.
        about: What a flag of the host decides, such as `reference`; the host adds the flag's name.

    Attributes:
        met_by_all: Whether every rank raises it, so that the first alone needs to tell.
    """

    met_by_all: bool = False

    def __init__(self, message: str, about: str | None = None) -> None:
        super().__init__(message)
        self.about = about


REASON = "SPARSEPO_REASON"  # names the file in which the first process of a run that fails leaves its line
_LAUNCHER_LOOKS = 3  # seconds in which a launcher has seen that a process died, and has ended the others

_REPR = reprlib.Repr()  # the length of what it writes is bounded, whatever the value
_REPR.maxstring = _REPR.maxother = _REPR.maxlong = 80
_LONGEST = 900  # of a line: a terminal's worth


def shown(value: object) -> str:
    """A value as messages show it: its repr, cut where it is long."""
    try:
        return _REPR.repr(value)
    except ValueError:  # Python writes out no integer of more than 4300 digits
        return "a huge number"


def one_line(text: object, longest: int = _LONGEST) -> str:
    """A text without line breaks and control characters, cut where it is long."""
    words = " ".join(str(text).split())
    line = "".join(character if character.isprintable() else "?" for character in words)
    return line if len(line) <= longest else f"{line[:longest]}..."


def first_line(error: BaseException) -> str:
    """Kind and first line of an error of a library."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {one_line(lines[0] if lines else '', 400)}"


def fault(error: BaseException, source: str | None = None) -> str:
    """An error in somebody else's code as one line, with the place of the fault: `KeyError: 'x' (my_masks.py:3)`.

    Args:
        error: What was raised, with its traceback.
        source: File of the code that was called; the innermost line in its folder is the fault's place.
    """
    if isinstance(error, SyntaxError):
        return f"{type(error).__name__}: {error.msg} ({error.filename}:{error.lineno})"
    message = one_line(error, 300)
    line = f"{type(error).__name__}: {message}" if message else type(error).__name__
    folder = source and Path(source).resolve().parent
    theirs = [frame for frame in traceback.extract_tb(error.__traceback__) if folder in Path(frame.filename).parents]
    return f"{line} ({theirs[-1].filename}:{theirs[-1].lineno})" if theirs else line


@contextmanager
def naming_faults(what: str, source: str | None) -> Iterator[None]:
    """Within the context an error in somebody else's code is one line: `{what}: KeyError: 'x' (my_masks.py:3)`.

    sys.exit(0) is an error too: it must not end a run as if that had succeeded.

    Args:
        what: What is done.
        source: File of the code that is called.
    """
    try:
        yield
    except (SparsePOError, KeyboardInterrupt):
        raise
    except BaseException as error:
        raise SparsePOError(f"{what}: {fault(error, source)}") from error


@contextmanager
def one_line_errors(
    echo: Callable[[str], Any] = lambda line: print(line, file=sys.stderr), all_tell: bool = False
) -> Iterator[None]:
    """Turn bad input into one line and exit code 2.

    Mistakes that every rank meets (`met_by_all`, and all before ranks know of each other) are told by the first of
    each machine; those met on the way, such as a mask that fails, by the rank that met them.

    Args:
        echo: Tells the line.
        all_tell: Have the other ranks tell too, after the first, which may not have met it: `echo` takes the first.
    """
    try:
        yield
    except ValueError as error:
        # ConfigError is that of the patched OpenRLHF, which need not be installed here.
        if not (isinstance(error, SparsePOError) or type(error).__name__ == "ConfigError"):
            raise
        first, own = is_first("LOCAL_RANK"), _distributed() and not getattr(error, "met_by_all", False)
        if not (first or own):  # a launcher ends all ranks as soon as one has left, also the first before it has told
            time.sleep(1)
        if first or own or all_tell:
            rank = "" if first else f" (rank {os.environ['RANK']})"
            echo(f"sparsepo: error: {one_line(error)}{rank}")
        sys.exit(2)


@contextmanager
def telling_its_starter() -> Iterator[None]:
    """In a process of a run: hand the reason of its end to the command that started it, else print bad input's line.

    When a process has told its reason, or died, the others, which then miss it, end without a word.
    """
    path = os.environ.get(REASON)
    if path is None:
        with one_line_errors(), _one_line_of_a_lost_rank():
            yield
        return
    try:
        with one_line_errors(lambda line: _tell(path, line), all_tell=True):
            yield
    except Exception as error:
        if int(os.environ.get("WORLD_SIZE", 1)) > 1:  # else this may be the connection to a rank that died
            time.sleep(_LAUNCHER_LOOKS)
        if not _tell(path, f"sparsepo: error: {fault(error)} (rank {os.environ.get('RANK', '0')})"):
            sys.exit(1)
        raise


@contextmanager
def _one_line_of_a_lost_rank() -> Iterator[None]:
    """Within the context the end of another rank, perhaps on another machine, is one line and exit code 1."""
    try:
        yield
    except RuntimeError as error:
        if "/gloo/transport/" not in str(error):
            raise
        line = f"another rank has ended, its output says why: {fault(error)} (rank {os.environ.get('RANK', '0')})"
        print(f"sparsepo: error: {line}", file=sys.stderr)
        sys.exit(1)


@contextmanager
def met_by_all() -> Iterator[None]:
    """Within the context every rank meets the same mistakes, so that the first alone tells them."""
    try:
        yield
    except ValueError as error:
        error.met_by_all = True
        raise


def _tell(path: str, line: str) -> bool:
    """Leave the line unless another process has left its own."""
    try:
        with open(path, "x") as file:
            file.write(line)
    except FileExistsError:
        return False
    return True


def _distributed() -> bool:
    dist = sys.modules.get("torch.distributed")  # what is not imported is not initialised
    return dist is not None and dist.is_initialized()


def is_first(rank: str = "RANK") -> bool:
    """Whether no launcher has started another process as the first one; with `LOCAL_RANK`, on this machine."""
    if "LOCAL_RANK" not in os.environ:  # RANK alone is a cluster's, and the number of a machine
        return True
    place, count = os.environ.get(rank, "0"), os.environ.get("WORLD_SIZE", "1")
    return not (place.isdecimal() and count.isdecimal() and 0 < int(place) < int(count))
