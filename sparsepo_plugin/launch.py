"""The processes of a run: started, ended with the one that started them, and the reason when one fails."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

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
    with TemporaryDirectory() as folder, _exit_by_signals():
        reason = Path(folder, "reason")
        # Launchers that a host starts by their names are those of this environment, also where it is not activated.
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
        # In a session of its own: Ctrl-C reaches this process alone, which ends the others in order.
        environment = {**os.environ, REASON: str(reason), "PATH": path}
        started = subprocess.Popen(command, env=environment, start_new_session=True)
        try:
            code = started.wait()
        finally:
            _end_group(started)
        code = code - 256 if 256 - code in set(signal.Signals) else code  # DeepSpeed's launcher: a signal modulo 256
        if code:
            line = reason.read_text() if reason.exists() else _unexplained(code)
            print(f"\n{line}", file=sys.stderr)  # a progress bar may stand in the last line
    return 128 - code if code < 0 else code


@contextmanager
def _exit_by_signals() -> Iterator[None]:
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


def _end_group(leader: subprocess.Popen) -> None:
    """Ask all processes of a group to end, and end those that do not."""
    with suppress(ProcessLookupError):
        os.killpg(leader.pid, signal.SIGTERM)
        for _ in range(_PATIENCE * 20):
            leader.poll()  # or it would stay in the group
            os.killpg(leader.pid, 0)
            time.sleep(0.05)
        os.killpg(leader.pid, signal.SIGKILL)


def _unexplained(code: int) -> str:
    """The last line when a process ended without one: by a signal, or in an end of its own."""
    if code > 0:
        return f"sparsepo: error: a process of the run ended with exit code {code} and gave no reason"
    cause = ", as the kernel does when memory runs out" if code == -signal.SIGKILL else ""
    return f"sparsepo: error: a process of the run was ended by {signal.Signals(-code).name}{cause}"
