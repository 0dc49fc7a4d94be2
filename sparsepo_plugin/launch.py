"""The processes of a run: started, ended with the one that started them, and the reason when one fails."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO

from .errors import REASON

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_PATIENCE = 10  # seconds between asking processes to end and ending them


def run(command: list[str]) -> int:
    """Run what starts the processes of a run, or is the only one.

    SIGINT, SIGTERM and SIGHUP to this process end them all, and so does the end of any other by a fault. The last line
    printed is the reason of the first that failed.

    Args:
        command: Its processes train inside `errors.telling_its_starter`.

    Returns:
        Exit code: 0, that of the run, or 128 + the number of the signal.
    """
    with TemporaryDirectory() as folder, exit_by_signals():
        code, line = attend(command, Path(folder, "reason"))
        if code:
            print(f"\n{line}", file=sys.stderr)  # a progress bar may stand in the last line
    return code


def start(command: list[str], reason: Path, output: IO[bytes] | None = None) -> subprocess.Popen:
    """Start the leader of a run's processes, in a group of their own.

    Args:
        command: As for `run`.
        reason: A file that is not there, in which the first process that fails leaves its line.
        output: What they print, stdout and stderr; by default that goes where this process's goes.
    """
    # Launchers that a host starts by their names are those of this environment, also where it is not activated.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    environment = {**os.environ, REASON: str(reason), "PATH": path}
    # In a session of its own: Ctrl-C reaches this process alone, which ends the others in order.
    return subprocess.Popen(command, env=environment, start_new_session=True, stdout=output, stderr=output)


def attend(command: list[str], reason: Path, output: IO[bytes] | None = None) -> tuple[int, str]:
    """`start` a leader, wait for it, end what it leaves, and tell its `outcome`."""
    started = start(command, reason, output)
    try:
        started.wait()
    finally:
        end_groups([started])
    return outcome(started, reason)


def outcome(ended: subprocess.Popen, reason: Path) -> tuple[int, str]:
    """Exit code of a leader that has ended, as `run` returns it, and why: a line, or nothing with 0."""
    code = ended.returncode
    code = code - 256 if 256 - code in set(signal.Signals) else code  # DeepSpeed's launcher: a signal modulo 256
    if code == 0:
        return 0, ""
    line = reason.read_text() if reason.exists() else _unexplained(code)
    return 128 - code if code < 0 else code, line


@contextmanager
def exit_by_signals() -> Iterator[None]:
    """Within the context the first signal that would end this process raises SystemExit; others are then ignored."""
    # nohup and shells' background jobs ignore some: leave it so
    before = {number: old for number in _SIGNALS if (old := signal.getsignal(number)) is not signal.SIG_IGN}

    def leave(number: int, _: object) -> None:
        for each in before:
            signal.signal(each, signal.SIG_IGN)
        sys.exit(128 + number)

    for number in before:
        signal.signal(number, leave)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def end_groups(leaders: list[subprocess.Popen]) -> None:
    """Ask all processes of these groups to end, and end those that do not."""
    for leader in leaders:
        _signal(leader, signal.SIGTERM)
    deadline = time.monotonic() + _PATIENCE
    while any(_signal(leader, 0) for leader in leaders):
        if time.monotonic() > deadline:
            for leader in leaders:
                _signal(leader, signal.SIGKILL)
            return
        time.sleep(0.05)


def _signal(leader: subprocess.Popen, number: int) -> bool:
    """Send a signal to a group, or none with 0; False if no process is left in it."""
    leader.poll()  # or it would stay in the group
    try:
        os.killpg(leader.pid, number)
    except ProcessLookupError:
        return False
    return True


def _unexplained(code: int) -> str:
    """The last line when a process ended without one: by a signal, or in an end of its own."""
    if code > 0:
        return f"sparsepo: error: a process of the run ended with exit code {code} and gave no reason"
    cause = ", as the kernel does when memory runs out" if code == -signal.SIGKILL else ""
    return f"sparsepo: error: a process of the run was ended by {signal.Signals(-code).name}{cause}"
