"""Pairs whose files bring weights, and the losses that a run must have on them, written out in float64."""

import json
import random
import re
from pathlib import Path

import torch
from host_runs import ONES, write_pairs
from torch import Tensor

from sparsepo_plugin.analysis.columns import to_column

WEIGHTS = (0.0, 0.25, 0.5, 1.75)

# Options of weighted_dpo with weights of TIS-DPO.
TIS = {"mask": "column", "end": 0.0}

# What turns the section of the `config` fixture into DPO whose log-ratios the file weighs.
COLUMN = {**ONES, "mask": None, "reward": {"mask": "column"}, "kl": {"mask": "uniform", "value": 0.0}}


def write_weighed(path: Path, count: int, seed: int, end: str = "", weights: tuple[float, ...] = WEIGHTS) -> Path:
    """Pairs of random words with spans that begin and end anywhere; every fifth row brings none.

    Args:
        path: A file of JSON lines.
        count: Rows.
        seed: Of words and spans.
        end: After each response, not in any span.
        weights: Of which each span has one.
    """
    rng = random.Random(seed)
    rows = [json.loads(line) for line in write_pairs(path, count, seed, end=end).read_text().splitlines()]
    for number, row in enumerate(rows):
        if number % 5 != 4:
            row |= {
                f"{key}_weights": _spans(row[key], len(row[key]) - len(end), rng, weights)
                for key in ("chosen", "rejected")
            }
        elif number % 2:
            row["rejected_weights"] = None
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_scored(path: Path, tiny: Path, count: int, seed: int) -> Path:
    """Pairs of random words whose weights are TIS-DPO's, from the models `other` and `model` of the fixture."""
    pairs = write_pairs(path.with_suffix(".plain.jsonl"), count, seed)
    to_column(tiny / "other", pairs, path, "tis", reference=str(tiny / "model"))
    return path


def _spans(text: str, length: int, rng: random.Random, weights: tuple[float, ...]) -> list[dict]:
    """Spans over some of the first characters; every other one repeats its text."""
    cuts = sorted(rng.sample(range(length + 1), min(length + 1, 2 * rng.randint(1, 3))))
    spans = [
        {"start": start, "end": stop, "weight": rng.choice(weights)}
        for start, stop in zip(cuts[::2], cuts[1::2], strict=False)
    ]
    return [{**span, "text": text[span["start"] : span["end"]]} if n % 2 else span for n, span in enumerate(spans)]


def word_weights(text: str, spans: list[dict] | None, default: float = 1.0, end: float = 1.0) -> list[float]:
    """The weight of each word, the mean over its characters, and that of the end."""
    characters = [default] * len(text)
    for span in spans or []:
        for place in range(span["start"], span["end"]):
            characters[place] = span["weight"]
    words = [characters[word.start() : word.end()] for word in re.finditer(r"\S+", text)]
    return [sum(word) / len(word) for word in words] + [end]


def plain_loss(policy, reference, tokenizer, rows: list[dict], beta: float, **column: float) -> float:
    """−log σ of β times the difference of two weighed sums of log-ratios, mean over the rows, by whole logits."""
    losses = [
        torch.nn.functional.softplus(
            -beta
            * (
                _reward(policy, reference, tokenizer, row, "chosen", column)
                - _reward(policy, reference, tokenizer, row, "rejected", column)
            )
        )
        for row in rows
    ]
    return torch.stack(losses).mean().item()


@torch.no_grad()
def _reward(policy, reference, tokenizer, row: dict, key: str, column: dict) -> Tensor:
    words = f"{row['prompt']}{row[key].removesuffix('</s>')} </s>".split()
    ids = torch.tensor([tokenizer.convert_tokens_to_ids(words)])
    weights = torch.tensor(
        word_weights(row[key].removesuffix(" </s>"), row.get(f"{key}_weights"), **column), dtype=torch.float64
    )
    ratio = _logps(policy, ids) - _logps(reference, ids)
    return (weights * ratio[-len(weights) :]).sum()


def _logps(model, ids: Tensor) -> Tensor:
    logits = model(input_ids=ids).logits[0, :-1].double().log_softmax(-1)
    return logits.gather(-1, ids[0, 1:, None]).squeeze(-1)
