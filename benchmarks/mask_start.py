"""How learned masks start and what becomes of them: accuracy, zeros and loss over steps, by `init`.

A small GPT-2 learns the language of the pairs, and is reference and policy of every run. Runs differ in the start of
the mask and in the seed; pairs, steps and learning rates are the same.
"""

import csv
import gzip
import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Annotated

import torch
import typer
from tokenizers import ByteLevelBPETokenizer
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import GPT2Config, GPT2LMHeadModel

from sparsepo_plugin import LossConfig, MaskedPolicy, PreferenceStep, ResponseTokens, Runner, StepOutput

STARTS = {"positive": {}, "linear": {"init": "linear"}, "normal": {"init": "normal", "layer_norm": "affine"}}
L1 = (0.0, 0.0002, 0.001)
SEEDS = (0, 1, 2)
STEPS, BATCH, EVERY, HELD_OUT = 100, 16, 10, 200
BETA, POLICY_LR = 0.1, 2e-4
LANGUAGE_STEPS, LANGUAGE_LR = 500, 3e-3
VOCABULARY, MAX_TOKENS = 2000, 48
COLUMNS = ["init", "l1", "seed", "step", "loss", "accuracy", "zeros", "mask_mean", "token_kl"]

Pair = tuple[list[int], list[int], list[int]]


def main(
    pairs: Annotated[Path, typer.Option(help="JSON lines (.gz too) with prompt, chosen and rejected")],
    held_out: Annotated[Path, typer.Option(help="the same, from other prompts")],
    results: Annotated[Path, typer.Option(help="folder of the CSV file")] = Path(__file__).parent / "results",
) -> None:
    """Train with every start, L1 weight and seed, and write the curves."""
    texts = [read(path) for path in (pairs, held_out)]
    tokenizer = train_tokenizer(texts[0])
    training, evaluation = ([encode(tokenizer, row) for row in rows] for rows in texts)
    reference = train_reference(training)
    rows = []
    for l1 in L1:
        for name, options in STARTS.items():
            for seed in SEEDS:
                found = list(train(reference, training, evaluation[:HELD_OUT], {**options, "l1_reward": l1}, seed))
                rows += [{"init": name, "l1": l1, "seed": seed} | row for row in found]
                typer.echo(f"{name}, L1 {l1}, seed {seed}: {rows[-1]}")
    write(rows, results / "mask_start.csv")


def read(path: Path) -> list[dict[str, str]]:
    """Rows of a file of JSON lines."""
    with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def train_tokenizer(rows: list[dict[str, str]]) -> ByteLevelBPETokenizer:
    """A byte-level BPE of the pairs' own text."""
    tokenizer = ByteLevelBPETokenizer()
    texts = (f"{row['prompt']} {row['chosen']} {row['rejected']}" for row in rows)
    tokenizer.train_from_iterator(texts, VOCABULARY, special_tokens=["<eos>"], show_progress=False)
    return tokenizer


def encode(tokenizer: ByteLevelBPETokenizer, row: dict[str, str]) -> Pair:
    """Token ids of prompt, chosen and rejected; responses end with <eos>, id 0, or where they are cut."""
    prompt = tokenizer.encode(row["prompt"]).ids
    responses = [[*tokenizer.encode(f" {row[key]}").ids, 0][:MAX_TOKENS] for key in ("chosen", "rejected")]
    return prompt, *responses


def train_reference(pairs: list[Pair]) -> GPT2LMHeadModel:
    """A language model of the pairs' responses, chosen and rejected alike."""
    torch.manual_seed(0)
    ids = {"bos_token_id": 0, "eos_token_id": 0}
    model = GPT2LMHeadModel(GPT2Config(vocab_size=VOCABULARY, n_positions=96, n_embd=96, n_layer=3, n_head=4, **ids))
    optimizer = torch.optim.AdamW(model.parameters(), lr=LANGUAGE_LR)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LANGUAGE_LR, total_steps=LANGUAGE_STEPS)
    for batch in batches(pairs, LANGUAGE_STEPS, seed=0):
        ids, mask, _ = collate(batch)
        loss = model(input_ids=ids, attention_mask=mask, labels=ids.masked_fill(mask == 0, -100)).loss
        loss.backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    return model.eval().requires_grad_(False)


def train(
    reference: GPT2LMHeadModel, pairs: list[Pair], held_out: list[Pair], section: dict, seed: int
) -> Iterator[dict[str, float]]:
    """Rows of a run: what each evaluation found, the one before the first step included."""
    policy = GPT2LMHeadModel(reference.config)
    policy.load_state_dict(reference.state_dict())
    masked = MaskedPolicy(policy, reference, LossConfig.from_section(section, beta=BETA), seed=seed)
    step = PreferenceStep(masked)
    optimizer = torch.optim.AdamW([{"params": policy.parameters(), "lr": POLICY_LR}, masked.mask_group()])
    for number, batch in enumerate([None, *batches(pairs, STEPS, seed)]):
        if batch is not None:
            run(step, masked.train(), reference, batch).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        if number % EVERY == 0:
            yield {"step": number, **evaluate(step, masked, reference, held_out)}


@torch.no_grad()
def evaluate(
    step: PreferenceStep, masked: MaskedPolicy, reference: GPT2LMHeadModel, held_out: list[Pair]
) -> dict[str, float]:
    """Means over held-out pairs."""
    chunks = [held_out[start : start + 50] for start in range(0, len(held_out), 50)]
    outputs = [run(step, masked.eval(), reference, chunk) for chunk in chunks]
    metrics = {key: fmean(output.metrics[key] for output in outputs) for key in outputs[0].metrics}
    ranked = torch.cat([output.chosen_rewards > output.rejected_rewards for output in outputs])
    both = lambda name: round((metrics[f"{name}_chosen"] + metrics[f"{name}_rejected"]) / 2, 4)  # noqa: E731
    return {
        "loss": round(fmean(output.loss.item() for output in outputs), 4),
        "accuracy": round(ranked.float().mean().item(), 4),
        "zeros": both("sparsity_reward"),
        "mask_mean": both("mask_reward_mean"),
        "token_kl": both("token_kl"),
    }


def run(step: PreferenceStep, masked: MaskedPolicy, reference: GPT2LMHeadModel, batch: list[Pair]) -> StepOutput:
    """One step's output."""
    ids, mask, prompt_lens = collate(batch)
    inputs = {"input_ids": ids, "attention_mask": mask}
    tokens = ResponseTokens.from_padded(ids, mask, prompt_lens)
    return step(partial(masked, **inputs), tokens, reference=Runner(reference, partial(reference, **inputs)))


def batches(pairs: list[Pair], steps: int, seed: int) -> Iterator[list[Pair]]:
    """Random pairs, without one twice before all were seen."""
    order = torch.randperm(len(pairs), generator=torch.Generator().manual_seed(seed)).tolist()
    for step in range(steps):
        yield [pairs[order[(step * BATCH + index) % len(order)]] for index in range(BATCH)]


def collate(batch: list[Pair]) -> tuple[Tensor, Tensor, list[int]]:
    """Ids and attention mask of a batch, chosen first, and the prompts' lengths."""
    sequences = [torch.tensor(pair[0] + pair[side]) for side in (1, 2) for pair in batch]
    mask = pad_sequence([torch.ones_like(ids) for ids in sequences], batch_first=True)
    return pad_sequence(sequences, batch_first=True), mask, [len(pair[0]) for pair in batch] * 2


def write(rows: list[dict], path: Path) -> None:
    """Write the CSV file."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    typer.run(main)
