"""Weights that rows bring, on TRL's road: from columns of spans, over one number a token, to a tensor of the batch."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from accelerate import PartialState
from datasets import Dataset
from torch import Tensor
from trl.data_utils import is_conversational

from ...errors import SparsePOError
from ...spans import WeightColumn, read_spans, refuse_slow, weigh_tokens
from ...texts import Text, content_of
from ...tokens import ResponseTokens

_RESPONSES = ("chosen", "rejected")
COLUMNS = tuple(f"{name}_token_weights" for name in _RESPONSES)  # of a prepared data set
_BATCH = "token_weights"


@dataclass(frozen=True)
class Weigher:
    """Gives the tokens of TRL's data sets the weights that rows bring.

    Args:
        column: How spans are read.
        section: That of the loss, for messages.
        template: A format string that is around each response since it was read from a file, with {} for it.
    """

    column: WeightColumn
    section: str
    template: str | None = None

    def check(self, rows: Any, name: str) -> None:
        """Look at the spans of every row of a data set, before TRL prepares it.

        Raises:
            SparsePOError: spans of a row are none, or no row of the training data has some; or it cannot be said what
                they would be of.
        """
        if not isinstance(rows, Dataset):
            raise SparsePOError(f"{name}_dataset: mask 'column' needs a data set whose rows can be counted, no stream")
        if "prompt" not in rows.column_names and not is_conversational(rows[0]):
            raise SparsePOError(f"{name}_dataset: mask 'column' needs a column prompt, TRL cuts responses without one")
        keys = [key + self.column.suffix for key in _RESPONSES]
        there = [key for key in keys if key in rows.column_names]
        weighed = 0
        for number, row in enumerate(rows.select_columns([*_RESPONSES, *there]) if there else (), start=1):
            weighed += any(row[key] is not None for key in there)
            for response, key in zip(_RESPONSES, keys, strict=True):
                try:
                    read_spans(row.get(key), self._written(row[response]), self.column.signed)
                except SparsePOError as error:
                    raise SparsePOError(f"{name}_dataset, row {number}: {key}: {error}") from error
        if name == "train" and not weighed:
            raise SparsePOError(
                f"{self.section}: mask 'column' has no effect, no row of the training data has {' or '.join(keys)}"
            )

    def weigh(self, rows: Dataset, tokenizer: Any, processes: int | None) -> Dataset:
        """The rows of a data set that TRL has prepared, with the weights of the tokens of both responses."""
        refuse_slow(tokenizer)
        with PartialState().main_process_first():
            return rows.map(self._weigh_row, fn_kwargs={"tokenizer": tokenizer}, num_proc=processes, desc="Weights")

    def _weigh_row(self, row: dict[str, Any], tokenizer: Any) -> dict[str, list[float]]:
        return {new: self._weigh_response(row, key, tokenizer) for key, new in zip(_RESPONSES, COLUMNS, strict=True)}

    def _weigh_response(self, row: dict[str, Any], key: str, tokenizer: Any) -> list[float]:
        written = self._written(row[key], tokenizer.eos_token)
        spans = read_spans(row.get(key + self.column.suffix), written, self.column.signed)
        chat = is_conversational(row)
        text, base = _conversation(row, key, tokenizer) if chat else self._text(row, key)
        ids, weights = weigh_tokens(tokenizer, text, base, written, spans, self.column, special_tokens=not chat)
        start = len(ids) - len(row[f"{key}_ids"])
        if ids[start:] != row[f"{key}_ids"]:
            raise SparsePOError(f"mask 'column': the tokens of {key} are not what the tokenizer makes of its text")
        return weights[start:]

    def _text(self, row: dict[str, Any], key: str) -> tuple[str, int]:
        """The text of a sequence, and where in it the file's response begins, or its white space."""
        return row["prompt"] + row[key], len(row["prompt"] + self._around[0])

    @property
    def _around(self) -> tuple[str, str]:
        before, _, after = (self.template or "{}").format("\0").partition("\0")
        return before, after

    def _written(self, response: Text, end: str | None = None) -> str:
        """A response as it stands in the file; `end` may have been put behind it."""
        if not isinstance(response, str):
            return content_of(response)
        before, after = self._around
        if end and not response.endswith(after):
            response = response.removesuffix(end)
        return response.removeprefix(before).removesuffix(after)


def _conversation(row: dict[str, Any], key: str, tokenizer: Any) -> tuple[str, int]:
    """The text that TRL makes of a conversation, and where in it the prompt ends."""
    tools = row.get("tools")
    tools = json.loads(tools) if isinstance(tools, str) else tools
    options = {"tools": tools, **(row.get("chat_template_kwargs") or {}), "tokenize": False}
    prompt = tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True, **options)
    text = tokenizer.apply_chat_template(row["prompt"] + row[key], **options)
    alike = (index for index, pair in enumerate(zip(prompt, text, strict=False)) if pair[0] != pair[1])
    return text, next(alike, min(len(prompt), len(text)))


@dataclass
class WeighingCollator:
    """TRL's collator, whose batches have the weights of their tokens beside them.

    Attributes:
        collate: TRL's own.
        keeps_end: Whether a sequence that is too long loses its first tokens.
    """

    collate: Callable[[list[dict[str, Any]]], dict[str, Tensor]]
    keeps_end: bool

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        """A batch, and in it the weights of its response tokens as bits. int32 [2P, T]."""
        batch = self.collate([{key: value for key, value in row.items() if key not in COLUMNS} for row in rows])
        mask = batch["completion_mask"].bool()
        given = [row[column] for column in COLUMNS for row in rows]
        left = zip(given, mask.sum(-1).tolist(), strict=True)
        kept = [own[len(own) - count :] if self.keeps_end else own[:count] for own, count in left]
        weights = torch.zeros(mask.shape)
        weights[mask] = torch.tensor([weight for own in kept for weight in own])
        # Floats of a batch are brought to the model's dtype under DeepSpeed.
        return {**batch, _BATCH: weights.view(torch.int32)}


def weighed(tokens: ResponseTokens, inputs: Mapping[str, Tensor]) -> ResponseTokens:
    """The tokens of a batch with the weights that it has of them, if it has."""
    if _BATCH not in inputs:
        return tokens
    return replace(tokens, weights=inputs[_BATCH].view(torch.float32).flatten()[tokens.rows + 1])
