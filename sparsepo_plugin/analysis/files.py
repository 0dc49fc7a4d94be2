"""Where a command writes, and whose results they are."""

import csv
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from ..checkpoint import write_whole
from ..errors import SparsePOError


def check_output(path: Path) -> None:
    """Refuse, before anything is computed, a file that could not be written.

    Raises:
        SparsePOError: a folder is there, or no folder to write into can be.
    """
    there = next(parent for parent in path.absolute().parents if parent.exists())
    if path.is_dir():
        raise SparsePOError(f"-o {path} is a folder, a file is needed")
    if not there.is_dir():
        raise SparsePOError(f"-o {path}: {there} is a file, a folder is needed there")
    if not os.access(there, os.W_OK):
        raise SparsePOError(f"-o {path}: {there} cannot be written to")


def write_output(path: Path, write: Callable[[Path], object]) -> None:
    """Have `write` make a file, whole or not at all, in a folder that is made if need be.

    Raises:
        SparsePOError: it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, write)
    except OSError as error:
        raise SparsePOError(f"-o {path} cannot be written: {error.strerror}") from error


def write_lines(path: Path, lines: Iterable[str]) -> None:
    """Write text line by line, as it comes.

    Raises:
        SparsePOError: it cannot be written.
    """

    def write(part: Path) -> None:
        with part.open("w", encoding="utf-8") as file:
            file.writelines(f"{line}\n" for line in lines)

    write_output(path, write)


def write_csv(path: Path, columns: tuple[str, ...], rows: Iterable[dict[str, Any]]) -> None:
    """Write rows under their columns; what a row does not have is empty.

    Raises:
        SparsePOError: it cannot be written.
    """

    def write(part: Path) -> None:
        with part.open("w", newline="", encoding="utf-8") as file:
            table = csv.DictWriter(file, columns)
            table.writeheader()
            table.writerows(rows)

    write_output(path, write)


def names_of(folders: list[Path]) -> list[str]:
    """What runs are called: the ends of their paths, as long as it takes to tell them apart.

    Raises:
        SparsePOError: a run is given twice.
    """
    paths = [folder.resolve().parts for folder in folders]
    for length in range(1, max(map(len, paths)) + 1):
        names = ["/".join(parts[-length:]) for parts in paths]
        if len(set(names)) == len(names):
            return names
    raise SparsePOError(f"{', '.join(map(str, folders))}: a run is given twice")
