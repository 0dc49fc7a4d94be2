"""The examples that ship with the plugin: which there are, and a copy of one."""

import difflib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from .errors import SparsePOError, shown
from .hosts import HOSTS

_ENDINGS = (".yaml", ".py")
_BESIDE = (".jinja", ".json")  # of files that an example reads
_LOSS = re.compile(r"""^\s*loss\s*[:=]\s*["']?([\w:.]+)""", re.MULTILINE)
_SUBJECT = re.compile(r'[#"\s]*([^:(,.]+)')  # what the first line of an example says before anything else


class Recipe(NamedTuple):
    """An example, as it is listed.

    Attributes:
        host: Whose it is, the folder's name.
        experiment: What it is of.
        method: Its loss; `sft` for what comes before preferences, `any` for a script that is told its loss.
        name: Its path below the folder of examples, without the ending.
    """

    host: str
    experiment: str
    method: str
    name: str


def list_recipes() -> list[Recipe]:
    """All examples, by host, experiment and method."""
    return sorted(map(_read, _files()))


def copy_recipe(name: str, folder: Path) -> list[Path]:
    """Copy an example, and what it reads from beside it; paths in it are made those of the copy.

    Args:
        name: As `list_recipes` has it.
        folder: Where to.

    Returns:
        The example, and the files that it reads.

    Raises:
        SparsePOError: there is no such example, or a file of that name is there already or cannot be written.
    """
    by_name = {_name(file): file for file in _files()}
    if name not in by_name:
        part = [each for each in by_name if each.endswith(f"/{name}")]
        close = part or difflib.get_close_matches(name, by_name, n=3, cutoff=0.5)
        hint = f"did you mean {', '.join(close)}?" if close else "sparsepo recipes lists all"
        raise SparsePOError(f"no example is called {shown(name)}; {hint}")
    example = by_name[name]
    text = example.read_text(encoding="utf-8")
    read = [file for file in sorted(example.parent.iterdir()) if file.suffix in _BESIDE and file.name in text]
    here = f"examples/{example.parent.relative_to(_examples()).as_posix()}/"
    texts = {folder / file.name: file.read_text(encoding="utf-8").replace(here, "") for file in (example, *read)}
    new = {path: text for path, text in texts.items() if not _is_copy(path, text)}
    for path in new:
        if path.exists():
            raise SparsePOError(f"{path} is there already, and is not overwritten")
    for path, content in new.items():
        try:
            path.write_text(content, encoding="utf-8")
        except OSError as error:
            raise SparsePOError(f"{path} cannot be written: {error.strerror}") from error
    return list(texts)


def _is_copy(path: Path, text: str) -> bool:
    """Whether a file that another example reads too has been copied before."""
    return path.suffix in _BESIDE and path.is_file() and path.read_text(encoding="utf-8", errors="replace") == text


def _read(file: Path) -> Recipe:
    text, name = file.read_text(encoding="utf-8"), _name(file)
    loss = _LOSS.search(text)
    method = loss[1] if loss else "sft" if file.suffix == ".yaml" else "any"
    return Recipe(name.partition("/")[0], _SUBJECT.match(text)[1].strip(), method, name)


def _name(file: Path) -> str:
    return file.relative_to(_examples()).with_suffix("").as_posix()


def _files() -> Iterator[Path]:
    for host in HOSTS:
        yield from (file for file in (_examples() / host).rglob("*") if file.suffix in _ENDINGS)


def _examples() -> Path:
    """Inside an installed wheel, or beside the package in a checkout."""
    package = Path(__file__).resolve().parent
    return next(folder for folder in (package / "_examples", package.parent / "examples") if folder.is_dir())
