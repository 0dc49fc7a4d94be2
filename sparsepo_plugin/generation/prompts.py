"""The prompts that are completed, as they are in a file or cut from its texts."""

import re
from pathlib import Path
from typing import Any, NamedTuple

from numpy.random import default_rng

from ..analysis.lines import Line, is_messages, is_text, read_lines
from ..errors import SparsePOError, shown
from ..texts import Text

PREFIX_STREAM = 1  # of random numbers, beside that of sampling


class Prompt(NamedTuple):
    """Text or a list of messages, and where it stands, for messages."""

    text: Text
    place: str


class PrefixRange(NamedTuple):
    """The least and the most tokens of a prefix."""

    low: int
    high: int

    @classmethod
    def parse(cls, text: str) -> "PrefixRange":
        """What `5-8` or `6` means.

        Raises:
            SparsePOError: it is no such range.
        """
        found = re.fullmatch(r"(\d+)(?:-(\d+))?", text, re.ASCII)
        low, high = (int(found[1]), int(found[2] or found[1])) if found else (0, 0)
        if not 1 <= low <= high:
            raise SparsePOError(
                f"--prefix-tokens is {shown(text)}, a number of tokens or a range such as 5-8 is needed"
            )
        return cls(low, high)


def read_prompts(path: Path) -> list[Prompt]:
    """The prompts of a file of JSON lines; what else a line has is not read.

    Raises:
        SparsePOError: the file cannot be read, or a line has no prompt; names the line.
    """
    return [_prompt(line) for line in read_lines(path, "--prompts", "prompt", "prompt")]


def read_prefixes(path: Path, tokenizer: Any, tokens: PrefixRange, seed: int) -> tuple[list[Prompt], int]:
    """The beginnings of texts as prompts, each of a number of tokens that is drawn by the seed and the line's number.

    Args:
        path: JSON lines with `text` or `prompt`.
        tokenizer: Whose tokens are counted, without special ones.
        tokens: How many.
        seed: Of the draws.

    Returns:
        The prompts, and how many texts were left out because they are shorter than their prefix.

    Raises:
        SparsePOError: the file cannot be read, a line has no text, or the tokenizer does not tell where tokens end.
    """
    if not tokenizer.is_fast:
        raise SparsePOError("--prefix-tokens: the tokenizer is a slow one, which does not say where its tokens end")
    prompts = []
    lines = read_lines(path, "--prompts", "text", "text or prompt")
    for number, line in enumerate(lines):
        text, length = _text(line), int(default_rng([PREFIX_STREAM, seed, number]).integers(*tokens, endpoint=True))
        ends = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
        if len(ends) >= length:
            prompts.append(Prompt(text[: ends[length - 1][1]], line.place))
    if not prompts:
        raise SparsePOError(f"--prefix-tokens: every text of {path} is shorter than its prefix")
    return prompts, len(lines) - len(prompts)


def _prompt(line: Line) -> Prompt:
    prompt = line.values.get("prompt")
    if not (is_text(prompt) or (is_messages(prompt) and prompt)):
        hint = " (--prefix-tokens cuts prompts from text)" if "text" in line.values else ""
        raise SparsePOError(f"{line.place}: prompt must be text, or a list of messages with role and content{hint}")
    return Prompt(prompt, line.place)


def _text(line: Line) -> str:
    text = line.values.get("text", line.values.get("prompt"))
    if not is_text(text):
        raise SparsePOError(f"{line.place}: text or prompt must be text, --prefix-tokens cuts prompts from it")
    return text
