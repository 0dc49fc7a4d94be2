"""What the converters share: a row that knows its place, and a pair."""

from collections import Counter
from dataclasses import dataclass
from typing import Any, NamedTuple

from ..errors import SparsePOError, fault

_KINDS = {
    str: "text",
    list: "a list",
    dict: "a mapping",
    bool: "true or false",
    int: "a whole number",
    float: "a number",
}

# Pieces of text that follow a prompt without a space.
_CLOSING = tuple(".,;:!?)]}'’")


class Pair(NamedTuple):
    """A prompt with the better and the worse of two responses, as they are joined: prompt + response is the text."""

    prompt: str
    chosen: str
    rejected: str


class WeightedPair(NamedTuple):
    """A pair with weights of its responses' characters, as mask `column` reads them.

    Prompt and responses are texts, or lists of messages.
    """

    prompt: Any
    chosen: Any
    rejected: Any
    chosen_weights: list[dict[str, Any]]
    rejected_weights: list[dict[str, Any]]


@dataclass(frozen=True)
class Row:
    """One raw row and where it stands, for messages."""

    values: dict[str, Any]
    place: str

    def take(self, path: str, kind: type) -> Any:
        """The value under a dotted path, such as `info.title`.

        Args:
            path: Keys from the outermost inwards.
            kind: str, list, dict, bool, int or float; a whole number is a float too, true and false are no numbers.

        Raises:
            SparsePOError: a key is missing, or the value is of another kind, NaN, or text that cannot be written.
        """
        value: Any = self.values
        for key in path.split("."):
            if not isinstance(value, dict) or value.get(key) is None:
                raise self.error(f"{path} is missing, {_KINDS[kind]} is needed")
            value = value[key]
        allowed = (int, float) if kind is float else kind
        if not isinstance(value, allowed) or (isinstance(value, bool) and kind is not bool):
            raise self.error(f"{path} is {value!r:.60}, {_KINDS[kind]} is needed")
        if value != value:
            raise self.error(f"{path} is not a number")
        if kind is str and not _is_unicode(value):
            raise self.error(f"{path} is not Unicode text, it has half of a surrogate pair")
        return value

    def has(self, path: str) -> bool:
        """Whether there is a value under a dotted path; null is none."""
        value: Any = self.values
        for key in path.split("."):
            value = value.get(key) if isinstance(value, dict) else None
        return value is not None

    def items(self, path: str, name: str) -> "list[Row]":
        """The mappings in the list under `path`, each as a row of its own.

        Raises:
            SparsePOError: there is no such list, or an item is no mapping.
        """
        items = self.take(path, list)
        for number, item in enumerate(items, start=1):
            if not isinstance(item, dict):
                raise self.error(f"{name} {number} of {path} is {item!r:.60}, a mapping is needed")
        return [Row(item, f"{self.place}: {name} {number} of {path}") for number, item in enumerate(items, start=1)]

    def error(self, message: str) -> SparsePOError:
        """An error that begins with the row's place."""
        return SparsePOError(f"{self.place}: {message}")


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def load_tokenizer(name: str) -> Any:
    """The tokenizer that `--tokenizer` names.

    Raises:
        SparsePOError: it cannot be loaded.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    except Exception as error:  # whatever its files make the library raise
        raise SparsePOError(f"--tokenizer {name} cannot be loaded: {fault(error)}") from error


def usable(pair: Pair, dropped: Counter[str]) -> bool:
    """Whether a trainer can use the pair; if not, the reason is counted."""
    if not (pair.chosen.strip() and pair.rejected.strip()):
        dropped["a response is empty"] += 1
    elif pair.chosen == pair.rejected:
        dropped["both responses are the same"] += 1
    else:
        return True
    return False


def spaced(prompt: str, response: str) -> str:
    """The response as it follows a prompt in running text: one space between, unless there is one or none is due."""
    joined = prompt[-1:].isspace() or response[:1].isspace() or response.startswith(_CLOSING)
    return response if joined else f" {response}"
