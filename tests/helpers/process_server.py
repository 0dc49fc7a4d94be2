"""One place that starts processes for the host tests, and leaves none behind."""

import json
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil

SCRIPT = Path(__file__).with_name("warm_host.py")


class ProcessServer:
    """Runs programs, and modules in processes forked from one that has the patched host imported.

    All that a call has started is gone when it returns or raises, and when this process ends, however it ends:
    warm_host.py, which is started at the first call, sees to that.

    Args:
        environment: Variables of all processes.
    """

    def __init__(self, environment: dict[str, str]) -> None:
        self.environment = environment
        self.process: subprocess.Popen | None = None

    def run(
        self, *command: str | Path, kill_when: Path | None = None, cwd: Path | None = None, **environment: str
    ) -> subprocess.CompletedProcess:
        """Run a program.

        Args:
            command: The program and its arguments.
            kill_when: Kill it, and all that it has started, as soon as this path exists.
            cwd: Folder to start it in.
            environment: Further variables.

        Returns:
            Exit code (None if it was killed), stdout and stderr.
        """
        words, folder = list(map(str, command)), str(cwd or Path.cwd())
        return self._ask(kill_when, command=words, cwd=folder, environment=environment, processes=1)

    def fork(
        self,
        module: str,
        *arguments: str,
        processes: int = 1,
        kill_when: Path | None = None,
        path: Path | None = None,
    ) -> subprocess.CompletedProcess:
        """Run a module as `python -m` and a launcher would, in forks of the warm process.

        Args:
            module: Its name.
            arguments: Its command line.
            processes: How many ranks; when one fails the others are ended.
            kill_when: As for `run`.
            path: Folder of further packages, as PYTHONPATH would name it.

        Returns:
            Exit code of the first rank that failed or 0 (None if all were killed), stdout and stderr of all.
        """
        packages = [] if path is None else [str(path)]
        return self._ask(kill_when, module=module, arguments=arguments, processes=processes, packages=packages)

    def running(self) -> list[psutil.Process]:
        """What runs below the server."""
        return psutil.Process(self.process.pid).children(recursive=True) if self.process else []

    def close(self) -> None:
        """End the server, and with it what it runs."""
        if self.process:
            self.process.communicate()  # closes its stdin
            self.process = None

    def _ask(self, kill_when: Path | None, **request: object) -> subprocess.CompletedProcess:
        self.process = self.process or self._start()
        with TemporaryDirectory() as folder:
            files = {name: Path(folder, name) for name in ("stdout", "stderr")}
            request |= {"kill_when": kill_when and str(kill_when), **{name: str(path) for name, path in files.items()}}
            try:
                self.process.stdin.write(json.dumps(request) + "\n")
                self.process.stdin.flush()
                reply = self.process.stdout.readline()
                assert reply, "the server itself has failed: its stderr says why"
            except BaseException:  # a timeout or Ctrl-C: what is waited for is not wanted any more
                self.close()
                raise
            return subprocess.CompletedProcess(
                request, json.loads(reply), **{name: path.read_text() for name, path in files.items()}
            )

    def _start(self) -> subprocess.Popen:
        """In a session of its own, so that Ctrl-C reaches pytest alone."""
        return subprocess.Popen(
            [sys.executable, SCRIPT],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=self.environment,
            start_new_session=True,
        )
