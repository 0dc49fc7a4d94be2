"""The folders of a sweep: what each point is, and where its run lies."""

import json
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import SparsePOError

POINT, RUN, CONFIG, LOG = "point.json", "run", "config.yaml", "log.txt"


class FoundPoint(NamedTuple):
    """A point of a sweep, as its folder describes it.

    Attributes:
        folder: Of the point; its run is in `run/` there.
        settings: What is set in it, by key of the YAML; `variant` is one of a file of variants.
        seed: Its seed.
        finished: Whether its run has ended well.
    """

    folder: Path
    settings: dict[str, Any]
    seed: int
    finished: bool

    @property
    def run(self) -> Path:
        """What the run left."""
        return self.folder / RUN


def read_points(sweep: Path) -> list[FoundPoint]:
    """Every point of a sweep, by name; those that have not begun have no folder.

    Raises:
        SparsePOError: there is none, or what describes one cannot be read.
    """
    files = sorted(sweep.glob(f"*/{POINT}"))
    if not files:
        raise SparsePOError(f"{sweep} is no sweep: no folder in it has {POINT}")
    return [read_point(file.parent) for file in files]


def read_point(folder: Path) -> FoundPoint:
    """One point.

    Raises:
        SparsePOError: what describes it cannot be read.
    """
    try:
        content = json.loads((folder / POINT).read_text(encoding="utf-8"))
        return FoundPoint(folder, dict(content["settings"]), int(content["seed"]), bool(content["finished"]))
    except OSError as error:
        raise SparsePOError(f"{folder / POINT} cannot be read: {error.strerror}") from error
    except (ValueError, TypeError, KeyError) as error:
        raise SparsePOError(f"{folder / POINT} is not what `sparsepo sweep` writes") from error
