"""One place that starts processes for the host tests, and leaves none behind."""

import json
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil

SCRIPT = Path(__file__).with_name("warm_host.py")


@dataclass
class Stop:
    """A signal to what a call has started.

    Args:
        when: As soon as this path exists, or one that it is a pattern of,
        after: and so many seconds later,
        signal: this one is sent
        rank: to the process of this rank alone, or to the program itself if it is `main`; None: all are killed.
    """

    when: Path
    after: float = 0.0
    signal: int = signal.SIGKILL
    rank: int | str | None = None


class Finished(subprocess.CompletedProcess):
    """Exit code (None if all were killed), stdout, stderr, and `left`: what was still running when the last ended."""

    left: list[str]


class ProcessServer:
    """Runs programs, and modules in processes forked from one that has a host imported.

    All that a call has started is gone when it returns or raises, and when this process ends, however it ends:
    warm_host.py, which is started at the first call, sees to that.

    Args:
        environment: Variables of all processes.
        host: Name of the file beside this one that imports the host.
        python: The interpreter that it is installed for.
    """

    def __init__(self, environment: dict[str, str], host: str = "warm_openrlhf", python: str = sys.executable) -> None:
        self.environment, self.host, self.python = environment, host, python
        self.process: subprocess.Popen | None = None

    def run(
        self, *command: str | Path, stop: Stop | None = None, cwd: Path | None = None, **environment: str
    ) -> Finished:
        """Run a program.

        Args:
            command: The program and its arguments.
            stop: Stop it, or a process that it has started.
            cwd: Folder to start it in.
            environment: Further variables.
        """
        words, folder = list(map(str, command)), str(cwd or Path.cwd())
        return self._ask(stop, command=words, cwd=folder, environment=environment, processes=1)

    def fork(
        self,
        module: str,
        *arguments: str,
        processes: int = 1,
        stop: Stop | None = None,
        path: Path | None = None,
        **environment: str,
    ) -> Finished:
        """Run a module as `python -m` and a launcher would, in forks of the warm process.

        Args:
            module: Its name.
            arguments: Its command line.
            processes: How many ranks; when one fails the others are ended.
            stop: As for `run`.
            path: Folder of further packages, as PYTHONPATH would name it.
            environment: Further variables.

        Returns:
            Exit code of the first rank that failed or 0, stdout and stderr of all.
        """
        packages = [] if path is None else [str(path)]
        request = {"module": module, "arguments": arguments, "packages": packages, "environment": environment}
        return self._ask(stop, processes=processes, **request)

    def running(self) -> list[psutil.Process]:
        """What runs below the server."""
        return psutil.Process(self.process.pid).children(recursive=True) if self.process else []

    def close(self) -> None:
        """End the server, and with it what it runs."""
        if self.process:
            self.process.communicate()  # closes its stdin
            self.process = None

    def _ask(self, stop: Stop | None, **request: object) -> Finished:
        self.process = self.process or self._start()
        with TemporaryDirectory() as folder:
            files = {name: Path(folder, name) for name in ("stdout", "stderr")}
            request |= {"stop": stop and {**vars(stop), "when": str(stop.when)}}
            request |= {name: str(path) for name, path in files.items()}
            try:
                self.process.stdin.write(json.dumps(request) + "\n")
                self.process.stdin.flush()
                reply = self.process.stdout.readline()
                assert reply, "the server itself has failed: its stderr says why"
            except BaseException:  # a timeout or Ctrl-C: what is waited for is not wanted any more
                self.close()
                raise
            code, left = json.loads(reply)
            finished = Finished(request, code, **{name: path.read_text() for name, path in files.items()})
            finished.left = left
            return finished

    def _start(self) -> subprocess.Popen:
        """In a session of its own, so that Ctrl-C reaches pytest alone."""
        return subprocess.Popen(
            [self.python, SCRIPT, self.host],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=self.environment,
            start_new_session=True,
        )
