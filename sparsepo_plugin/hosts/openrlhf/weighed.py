"""OpenRLHF's pairs with the weights that their files bring: as text while data sets are blended, then one a token."""

import json
from typing import Any, NamedTuple

import torch
from datasets import Value
from openrlhf.datasets import RewardDataset
from torch import Tensor

from ...spans import WeightColumn, read_spans, weigh_tokens
from ...texts import content_of, joined


class Prompt(NamedTuple):
    """What OpenRLHF passes on of a pair beside its ids, its prompt's length, with more.

    Attributes:
        length: Tokens of the prompt.
        chosen: Weights of the chosen response's tokens. float32 [n_w].
        rejected: Those of the rejected response's. float32 [n_l].
    """

    length: int
    chosen: Tensor
    rejected: Tensor


class WeighedDataset(RewardDataset):
    """OpenRLHF's data set, whose pairs have the weights of their response tokens.

    Args:
        column: How spans are read.
        *args: As of `RewardDataset`; the rows are those of `as_text`.
        **kwargs: The same.
    """

    def __init__(self, column: WeightColumn, *args: Any, **kwargs: Any) -> None:
        self.column = column
        super().__init__(*args, **kwargs)

    def process_data(self, data: dict[str, Any]) -> dict[str, Any]:
        """A row as OpenRLHF keeps it; `extra`, the prompt's length, becomes the fields of `Prompt`."""
        row = super().process_data(data)
        length, kept = row["extra"], row["prompt"] is not None
        responses = {self.chosen_key: row["chosen"], self.rejected_key: row["reject"]}
        # Of a pair that OpenRLHF leaves out some number, so that the column has one type everywhere.
        start = max(length, 1)  # nothing predicts a sequence's first token
        weights = [self._weights(data, row["prompt"], *each)[start:] if kept else [0.0] for each in responses.items()]
        return {**row, "extra": dict(zip(Prompt._fields, (length, *weights), strict=True))}

    def _weights(self, data: dict[str, Any], prompt: str, key: str, response: str) -> list[float]:
        written, spans = content_of(data[key]), json.loads(data[key + self.column.suffix] or "null")
        text = joined(self.tokenizer, prompt, response)
        read = read_spans(spans, written, self.column.signed)
        return weigh_tokens(self.tokenizer, text, len(prompt), written, read, self.column)[1]

    def __getitem__(self, idx: int) -> tuple:
        *sequences, extra = super().__getitem__(idx)
        length, *weights = (extra[name] for name in Prompt._fields)
        return (*sequences, Prompt(length, *map(torch.tensor, weights)))


def as_text(rows: Any, columns: list[str]) -> Any:
    """Rows whose columns of spans are JSON, those that are missing too: data sets of any kind can be blended then."""
    for column in columns:
        spans = rows[column] if column in rows.column_names else [None] * len(rows)
        text = [None if value is None else json.dumps(value) for value in spans]
        rows = rows.remove_columns([column] if column in rows.column_names else [])
        rows = rows.add_column(column, text, feature=Value("string"))
    return rows


def unpack(batch: tuple) -> tuple[tuple, list[Tensor]]:
    """A batch as OpenRLHF's own data set gives it, and the weights of its sequences, chosen first."""
    *sequences, prompts = batch
    weights = [prompt.chosen for prompt in prompts] + [prompt.rejected for prompt in prompts]
    return (*sequences, [prompt.length for prompt in prompts]), weights
