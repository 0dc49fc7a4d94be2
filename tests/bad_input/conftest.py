"""Mistakes that a user can make, each met by the real command line in this one process."""

import os
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import yaml
from host_runs import merge
from typer.testing import CliRunner

from sparsepo_plugin import cli, start
from sparsepo_plugin.hosts.openrlhf import overlay, patched


@pytest.fixture
def refused(config, tmp_path, monkeypatch) -> Callable[..., str]:
    """Run a command that must be refused, in an empty folder: one line, exit code 2, nothing left behind."""

    def refused(
        says: tuple[str, ...],
        *flags: str,
        over: dict | None = None,
        text: str | bytes | None = None,
        files: dict[str, str | bytes] | None = None,
        command: str = "check",
        target: str = "run.yaml",
    ) -> str:
        """The line.

        Args:
            says: What must stand in it.
            flags: Added to the command.
            over: Merged over the good YAML; None removes a key.
            text: In place of that YAML.
            files: Further files by their path below the working folder; the YAML may name them by it.
            command: Of `sparsepo`.
            target: What it is given first.
        """
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(cli, "run", run_here)
        monkeypatch.setattr(overlay, "patched_package", lambda: patched_once(patched.distribution))
        monkeypatch.setattr(os, "environ", os.environ.copy())  # a run sets some
        content = yaml.safe_dump(merge(config(sparsepo={"metrics_every": None}), over or {})) if text is None else text
        for name, given in {"run.yaml": content, **(files or {})}.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(given if isinstance(given, bytes) else given.encode())
        before = _everything(tmp_path)
        result = CliRunner().invoke(cli.app, [command, target, *flags])
        assert isinstance(result.exception, SystemExit), repr(result.exception)
        lines = result.stderr.splitlines()
        told = [line for line in lines if line.startswith("sparsepo: error: ")]
        assert result.exit_code == 2 and len(told) == 1 and lines[-1] == told[0], result.output
        assert "Traceback" not in result.output and len(told[0]) < 1000, result.output
        for words in says:
            assert words in told[0], told[0]
        assert _everything(tmp_path) == before
        return told[0]

    return refused


@cache
def patched_once(distribution: Callable) -> patched.PatchedPackage:
    """The package that `distribution` finds, patched; a tenth of a second, which other processes take once."""
    return patched.patched_package()


def run_here(command: list[str]) -> int:
    """In place of `launch.run`, what would be started, in this process."""
    assert command[1:3] == ["-m", "sparsepo_plugin.start"]
    program, num_processes, *argv = command[3:]
    start.main(program, int(num_processes), argv)
    return 0


def _everything(folder: Path) -> dict[str, int]:
    """Every file and folder below `folder`, with its size."""
    return {str(path.relative_to(folder)): os.lstat(path).st_size for path in folder.rglob("*")}
