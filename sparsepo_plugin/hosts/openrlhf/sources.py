"""The data sets that a run names, as OpenRLHF reads them, and where each of their rows stands."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from ...errors import SparsePOError, first_line
from .files import FaultOf, faults

_ENDINGS = (".json", ".jsonl", ".csv", ".parquet", ".arrow")


@dataclass(frozen=True)
class Part:
    """What a run trains or evaluates on: the keys of the YAML, and what they say."""

    key: str
    names: str
    split_key: str
    split: str
    probabilities: str | None
    max_count: int

    @property
    def sources(self) -> "list[Source]":
        """Its data sets, in their order."""
        return [Source(self, name.strip()) for name in self.names.split(",")]

    def blend(self, strategy: Any, seed: int, select_rows: Callable[[str, str, Any], Any]) -> Any:
        """The rows as OpenRLHF blends them; `select_rows` is given a name, a split and rows, and returns rows."""
        from openrlhf.datasets.utils import blending_datasets

        options = {"max_count": self.max_count, "dataset_split": self.split, "select_rows": select_rows}
        data = blending_datasets(self.names, self.probabilities, strategy, seed, **options)
        return data.select(range(min(self.max_count, len(data))))


def parts(args: SimpleNamespace) -> list[Part]:
    """The training data, and the evaluation data if there are any."""
    data, held_out = args.data, args.eval
    training = (data.dataset, "data.dataset_split", data.dataset_split, data.dataset_probs, data.max_samples)
    evaluation = (held_out.dataset, "eval.split", held_out.split, None, 10**8)  # the most that OpenRLHF reads of a set
    return [Part(key, *part) for key, part in (("data.dataset", training), ("eval.dataset", evaluation)) if part[0]]


def refuse_keys(args: SimpleNamespace) -> None:
    """Refuse keys of the data that cannot be honoured, whatever the data are.

    Raises:
        SparsePOError: names the key.
    """
    data = args.data
    refusals = {
        "data.max_len: must be at least 4: a token of the prompt, one of the response, its end, and one to spare": (
            data.max_len < 4
        ),
        "data.chosen_key and data.rejected_key: the name of a column is needed, not ''": (
            not (data.chosen_key and data.rejected_key)
        ),
        "data.chosen_key and data.rejected_key name the same column": data.chosen_key == data.rejected_key,
        "data.prompt_key names the column of a response": data.prompt_key in (data.chosen_key, data.rejected_key),
        "data.input_template has no effect with data.apply_chat_template, which has a template of its own": (
            data.input_template and data.apply_chat_template
        ),
        "data.input_template has no effect without data.prompt_key": data.input_template and not data.prompt_key,
        "data.tokenizer_chat_template has no effect without data.apply_chat_template": (
            data.tokenizer_chat_template and not data.apply_chat_template
        ),
    }
    for reason, applies in refusals.items():
        if applies:
            raise SparsePOError(reason)
    _refuse_probabilities(data)
    try:
        (data.input_template or "").format("")
    except (ValueError, LookupError, AttributeError) as error:
        raise SparsePOError(
            f"data.input_template: {data.input_template!r} needs one {{}} for the prompt, other braces are doubled: "
            f"{first_line(error)}"
        ) from error


def _refuse_probabilities(data: SimpleNamespace) -> None:
    given, names = data.dataset_probs, data.dataset.split(",")
    if given is None:
        return
    try:
        numbers = [float(number) for number in given.split(",")]
    except ValueError:
        numbers = []
    above = all(number > 0 for number in numbers)
    if len(numbers) != len(names) or not above or not math.isclose(sum(numbers), 1, abs_tol=1e-8):
        raise SparsePOError(
            f"data.dataset_probs: {given!r} for {len(names)} data sets; one number above 0 for each is needed, "
            "1 in all, with commas between"
        )


@dataclass(frozen=True)
class Source:
    """A file, a folder or a hub name, with the split that is read of it."""

    part: Part
    name: str

    @property
    def identity(self) -> tuple[str, str]:
        """By which OpenRLHF asks for its rows again."""
        return self.name, self.part.split

    @cached_property
    def files(self) -> list[Path]:
        """Its files in the order of their rows; none where it lies on the hub or was saved by the datasets library.

        Raises:
            SparsePOError: a file or folder does not exist, or cannot be read by its name.
        """
        from datasets import load_dataset_builder

        self._refuse_name()
        name, _, folder = self.name.partition("@")
        path = Path(name)
        if path.is_file():
            return [path]
        if not path.is_dir() or any((path / saved).exists() for saved in ("state.json", "dataset_dict.json")):
            return []
        with self._reading():
            found = load_dataset_builder(name, data_dir=folder or None).config.data_files
        return [Path(file) for file in (found or {}).get(self.part.split, [])]

    def _refuse_name(self) -> None:
        name, key = self.name.partition("@")[0], self.part.key
        path, endings = Path(name), ", ".join(_ENDINGS)
        if not name:
            raise SparsePOError(f"{key}: {self.part.names!r} has an empty name; names are separated by commas")
        if path.is_file() and not name.endswith(_ENDINGS):
            raise SparsePOError(f"{key}: {name} has the wrong ending; files end in {endings}")
        if name.endswith(_ENDINGS) and path.exists() and not path.is_file():
            kind = "a folder" if path.is_dir() else "no file"
            raise SparsePOError(f"{key}: {name} is {kind}; what ends in {path.suffix} must be a file")
        if path.is_file() and "@" in self.name:
            raise SparsePOError(f"{key}: {self.name}: @ names a folder inside a data set, {name} is a file")
        if path.is_file() and set(name) & set("*?[]"):
            raise SparsePOError(f"{key}: {name} has a wildcard (* ? [ ]) in its name, and so would not be found")
        if not path.exists() and (name.endswith(_ENDINGS) or name.startswith(("/", ".", "~"))):
            raise SparsePOError(f"{key}: {name} does not exist; a file ({endings}), a folder or a hub name is needed")

    def faults(self, fault_of: FaultOf = lambda row: None) -> Iterator[tuple[str, str | None]]:
        """Every row of its text files: where it stands, and why it cannot be read, or None.

        Args:
            fault_of: What else is wrong with a row of a JSON file.

        Raises:
            SparsePOError: a file cannot be opened or has no rows.
        """
        for file in self.files:
            row = 0
            try:
                for row, fault in enumerate(faults(file, fault_of), start=1):
                    yield f"{file}, row {row}", fault
            except (OSError, ValueError) as error:
                reason = error.strerror if isinstance(error, OSError) else error
                raise SparsePOError(f"{self.part.key}: {file} cannot be read: {reason}") from error
            if not row and file.suffix in (".json", ".jsonl", ".csv"):
                raise SparsePOError(f"{self.part.key}: {file} has no rows")

    def read(self, strategy: Any) -> Any:
        """Its rows, not yet blended with those of others.

        Raises:
            SparsePOError: it cannot be read, or has no such split.
        """
        from openrlhf.datasets.utils import blending_datasets

        with self._reading():
            return blending_datasets(
                self.name, strategy=strategy, max_count=self.part.max_count, dataset_split=self.part.split
            )

    def place(self, index: int) -> str:
        """Where a row stands, counted from 1 in its own file."""
        from datasets import load_dataset

        if len(self.files) < 2:
            return f"{self.files[0] if self.files else f'{self.name} ({self.part.split})'}, row {index + 1}"
        for file in self.files:
            kind = file.suffix.lstrip(".").replace("jsonl", "json")
            rows = len(load_dataset(kind, data_files=str(file), split="train"))
            if index < rows:
                break
            index -= rows
        return f"{file}, row {index + 1}"

    @contextmanager
    def _reading(self) -> Iterator[None]:
        """Whatever goes wrong in reading somebody's data is told with the names of key and data set."""
        from openrlhf.utils.config import ConfigError

        try:
            yield
        except ConfigError as error:
            raise SparsePOError(f"{self.part.split_key}: {error}") from error
        except Exception as error:
            cause: BaseException = error
            while cause.__cause__ is not None:
                cause = cause.__cause__
            raise SparsePOError(f"{self.part.key}: {self.name} cannot be read: {first_line(cause)}") from error
