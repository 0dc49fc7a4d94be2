"""The runs of a sweep: checked, started a few at a time, and taken up again where they were left."""

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import psutil
import typer
import yaml
from filelock import FileLock, Timeout

from ..analysis.files import check_output
from ..analysis.points import CONFIG, LOG, POINT, RUN, read_point
from ..checkpoint import write_whole
from ..errors import REASON, SparsePOError, shown
from ..hosts import load_host
from ..launch import attend, end_groups, exit_by_signals, outcome, start
from .grid import Point, flatten, read_grid, read_mapping

_LOCK = ".sweep.lock"
_REASON = "reason"  # beside the log: marks the processes of a point, and takes the line of the first that fails
_PATIENCE = 10  # seconds between asking processes to end and ending them
_LOOKS = 0.2  # seconds between two looks at what runs


def sweep(
    file: Path,
    sets: list[str],
    seeds: str,
    output: Path,
    variants: Path | None = None,
    jobs: int = 1,
    num_processes: int = 0,
) -> int:
    """Run a grid; of the same command again what is finished is left as it is.

    Args:
        file: A host's YAML.
        sets: `key=value,value`; see `grid.read_grid`.
        seeds: Whole numbers, with commas.
        output: The folder of the sweep, with a folder for each point.
        variants: A YAML of named parts of a YAML.
        jobs: Runs at a time.
        num_processes: Of each run; 0 for one a GPU, or one without any.

    Returns:
        Exit code: 0, or 1 if a run failed, or 128 + the number of the signal that ended the sweep.

    Raises:
        SparsePOError: the grid or a point of it is wrong, a finished point was another one, or the folder cannot be
            written or is at work.
    """
    host = load_host(file)
    points = read_grid(file, sets, seeds, variants)
    output = output.absolute()
    check_output(output / POINT)
    waiting = [point for point in points if not _is_finished(point, output)]
    with exit_by_signals():
        if waiting:
            _check(waiting, output)
        with _locked(output):
            typer.echo(f"{output}: {len(points)} points, {len(points) - len(waiting)} of them finished before")
            _end_leftovers([output / point.name for point in waiting])
            failed = _run_all(waiting, output, jobs, lambda config: host.command(config, num_processes, []))
    for name, line in failed.items():
        typer.echo(f"failed: {output / name / LOG}: {line}", err=True)
    return 1 if failed else 0


def _is_finished(point: Point, output: Path) -> bool:
    folder = output / point.name
    if not ((folder / POINT).exists() and read_point(folder).finished):
        return False
    old, new = (dict(flatten(each)) for each in (read_mapping(folder / CONFIG), point.placed(folder, folder / RUN)))
    for key in {**old, **new}:
        if old.get(key) != new.get(key):
            raise SparsePOError(
                f"{folder} is finished, with {key}: {shown(old.get(key))} and not {shown(new.get(key))}: take another "
                "folder with -o, or remove that one"
            )
    return True


def _check(points: list[Point], output: Path) -> None:
    """Look at each point, whatever its seed, as `sparsepo check` does, in another process; nothing is written.

    Raises:
        SparsePOError: the line of the first that is wrong.
    """
    unlike = {json.dumps(point.settings, default=str): point for point in points}.values()
    with TemporaryDirectory() as folder:
        files = [Path(folder, f"{point.name}.yaml") for point in unlike]
        for file, point in zip(files, unlike, strict=True):
            _write_yaml(file, point.placed(output / point.name, output / point.name / RUN))
        command = [sys.executable, "-m", "sparsepo_plugin.sweep.check", *map(str, files)]
        with Path(folder, LOG).open("wb") as log:
            code, line = attend(command, Path(folder, _REASON), log)
    if code:
        raise SparsePOError(line.removeprefix("sparsepo: error: "))


@contextmanager
def _locked(output: Path) -> Iterator[None]:
    """Have the folder of a sweep to oneself."""
    try:
        output.mkdir(parents=True, exist_ok=True)
        with FileLock(output / _LOCK, timeout=0):
            yield
    except Timeout as error:
        raise SparsePOError(f"-o {output}: another sweep is at work there") from error


def _run_all(points: list[Point], output: Path, jobs: int, command: Callable[[Path], list[str]]) -> dict[str, str]:
    """Run points, a few at a time.

    Returns:
        Of those that failed, the reason by name.
    """
    waiting, running, failed = list(points), {}, {}
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                point = waiting.pop(0)
                running[_begin(point, output / point.name, command)] = point
            time.sleep(_LOOKS)
            for process in [process for process in running if process.poll() is not None]:
                point = running.pop(process)
                line = _end(point, output / point.name, process)
                if line:
                    failed[point.name] = line
                typer.echo(f"{point.name}: {line or 'done'}, {len(waiting) + len(running)} to go")
    finally:
        end_groups(list(running))
    return failed


def _begin(point: Point, folder: Path, command: Callable[[Path], list[str]]) -> subprocess.Popen:
    """Start a point, or go on with it if it was begun with the same YAML and its host can."""
    config = point.placed(folder, folder / RUN)
    try:
        if (folder / CONFIG).exists() and read_mapping(folder / CONFIG) != config:
            shutil.rmtree(folder)
        folder.mkdir(exist_ok=True)
        _write_yaml(folder / CONFIG, config)
        _describe(point, folder, finished=False)
        (folder / _REASON).unlink(missing_ok=True)
        with (folder / LOG).open("ab") as log:
            return start(command(folder / CONFIG), folder / _REASON, log)
    except OSError as error:
        raise SparsePOError(f"-o {folder} cannot be written: {error.strerror}") from error


def _end(point: Point, folder: Path, process: subprocess.Popen) -> str:
    """Note how a point has ended; its reason if it failed."""
    end_groups([process])
    code, line = outcome(process, folder / _REASON)
    (folder / _REASON).unlink(missing_ok=True)
    if code == 0:
        _describe(point, folder, finished=True)
    return line


def _describe(point: Point, folder: Path, finished: bool) -> None:
    content = {"settings": point.settings, "seed": point.seed, "finished": finished}
    write_whole(folder / POINT, lambda part: part.write_text(json.dumps(content, default=str) + "\n"))


def _write_yaml(file: Path, content: dict[str, Any]) -> None:
    text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
    write_whole(file, lambda part: part.write_text(text, encoding="utf-8"))


def _end_leftovers(folders: list[Path]) -> None:
    """End the processes of points whose sweep was killed, which have outlived it in groups of their own."""
    reasons = {str(folder / _REASON) for folder in folders}
    left = [process for process in psutil.process_iter() if _reason_of(process) in reasons]
    for ask in (psutil.Process.terminate, psutil.Process.kill):
        for process in left:
            with suppress(psutil.NoSuchProcess):
                ask(process)
        _, left = psutil.wait_procs(left, timeout=_PATIENCE)


def _reason_of(process: psutil.Process) -> str | None:
    try:
        return process.environ().get(REASON)
    except (psutil.Error, OSError):  # another user's, or gone
        return None
