"""The paper's sentiment-control experiment in miniature, from nothing: `make demo`.

A small language model learns to write film reviews, two completions of each prompt are sampled from it and ranked by
VADER's sentiment score, and OpenRLHF trains it on the pairs with `loss: sparsepo` and learned masks.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated, NamedTuple

import torch
import typer
from language_model import build_tokenizer, sample, train
from reviews import Reviewer
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast
from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

from sparsepo_plugin import Run, load_run
from sparsepo_plugin.analysis.report import report

CONFIG = Path(__file__).with_name("sparsepo.yaml")
TRAIN_PROMPTS, HELD_OUT_PROMPTS = 2400, 500
# Pairs whose scores (from -1 to 1) are nearer than this say little.
MIN_DIFFERENCE = 0.5

SCORER = SentimentIntensityAnalyzer()


class Pair(NamedTuple):
    """One row of pairs.jsonl; both responses begin with the space that separates them from the prompt."""

    prompt: str
    chosen: str
    rejected: str


def main(
    output: Annotated[Path, typer.Option(help="Folder for models, data and metrics.")] = Path("runs/demo"),
    seed: Annotated[int, typer.Option(help="Seed of everything drawn.")] = 0,
) -> None:
    """Run the experiment and write metrics.json and report.html."""
    start = time.monotonic()
    torch.manual_seed(seed)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    tokenizer, reviewer = build_tokenizer(), Reviewer(seed)

    announce(1, f"a small Llama learns to write film reviews, on {device}")
    reference = train(tokenizer, reviewer, device)
    for part in (reference, tokenizer):
        part.save_pretrained(output / "reference")

    announce(2, "two completions of each prompt, ranked by VADER")
    prompts = list(dict.fromkeys(reviewer.opening() for _ in range(TRAIN_PROMPTS + HELD_OUT_PROMPTS)))
    held_out_prompts = prompts[:HELD_OUT_PROMPTS]
    held_out, before = make_pairs(reference, tokenizer, held_out_prompts)
    write_pairs(held_out, output / "held_out.jsonl")
    pairs, _ = make_pairs(reference, tokenizer, prompts[HELD_OUT_PROMPTS:])
    write_pairs(pairs, output / "pairs.jsonl")

    announce(3, f"OpenRLHF trains on {len(pairs)} pairs with loss: sparsepo")
    train_policy(output, seed)

    announce(4, "what was learned")
    run = load_run(output / "policy", device=device)
    completions = sample(run.policy, tokenizer, held_out_prompts)
    metrics = {
        "reward_before": before,
        "reward_after": mean_score(completions),
        "response_kl": mean_response_kl(run, held_out_prompts, completions),
        **look_at_pairs(run, held_out),
        "seconds": time.monotonic() - start,
    }
    show(metrics, output / "metrics.json")
    show_heaviest(run, held_out[0])
    report(output / "policy", output / "report.html", output / "held_out.jsonl")
    print(f"\ncurves, masks and tokens, for a browser: {output / 'report.html'}")


def announce(number: int, what: str) -> None:
    """Print where the run is."""
    print(f"\n[{number}/4] {what}", flush=True)


def make_pairs(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, prompts: list[str]
) -> tuple[list[Pair], float]:
    """Two completions of each prompt as a pair, if their scores differ enough, and the mean score of all."""
    completions = sample(model, tokenizer, prompts, count=2)
    pairs = []
    for prompt, first, second in zip(prompts, completions[::2], completions[1::2], strict=True):
        chosen, rejected = sorted((first, second), key=score, reverse=True)
        if chosen and rejected and score(chosen) - score(rejected) >= MIN_DIFFERENCE:
            pairs.append(Pair(prompt, f" {chosen}", f" {rejected}"))
    return pairs, mean_score(completions)


def score(text: str) -> float:
    """Ground-truth reward: VADER's compound sentiment, from -1 to 1."""
    return SCORER.polarity_scores(text)["compound"]


def mean_score(texts: list[str]) -> float:
    """Mean reward."""
    return sum(map(score, texts)) / len(texts)


def write_pairs(pairs: list[Pair], path: Path) -> None:
    """One JSON object a line, with OpenRLHF's column names."""
    path.write_text("".join(json.dumps(pair._asdict()) + "\n" for pair in pairs))


def train_policy(output: Path, seed: int) -> None:
    """`sparsepo train sparsepo.yaml`, with this run's paths; OpenRLHF's own log is shown."""
    flags = {
        "model.model_name_or_path": output / "reference",
        "data.dataset": output / "pairs.jsonl",
        "eval.dataset": output / "held_out.jsonl",
        "ckpt.output_dir": output / "policy",
        "logger.tensorboard_dir": output / "tensorboard",
        "train.seed": seed,
    }
    sparsepo = Path(sys.executable).with_name("sparsepo")
    arguments = [str(part) for flag, value in flags.items() for part in (f"--{flag}", value)]
    # One process is plenty for this model, however many GPUs there are.
    command = [sparsepo, "train", CONFIG, "--num-processes", "1", *arguments]
    # OpenRLHF appends every metric to its progress bar: cut it to a line.
    environment = {**os.environ, "TQDM_NCOLS": "100"}
    if code := subprocess.run(command, env=environment).returncode:
        raise typer.Exit(code)


def look_at_pairs(run: Run, pairs: list[Pair]) -> dict[str, float]:
    """Accuracy of the implicit reward, sparsity of the reward mask in percent, and what it finds."""
    tables = [run.tokens(*pair) for pair in pairs]
    margins = [table.of("chosen").advantage.sum() - table.of("rejected").advantage.sum() for table in tables]
    mask_reward = torch.cat([table.mask_reward for table in tables])
    sentiment = torch.tensor([word in SCORER.lexicon for table in tables for word in table.text])
    return {
        "accuracy": (torch.stack(margins) > 0).float().mean().item(),
        "sparsity_reward": 100 * (mask_reward == 0).float().mean().item(),
        "mask_auc": roc_auc(mask_reward, sentiment),
    }


def mean_response_kl(run: Run, prompts: list[str], completions: list[str]) -> float:
    """KL(π‖π_ref) of whole responses: the mean of their log-ratio over the policy's own completions."""
    rows = zip(prompts, completions, strict=True)
    ratios = [run.tokens(prompt, response=f" {text}").log_ratio.sum() for prompt, text in rows]
    return torch.stack(ratios).mean().item()


def roc_auc(scores: Tensor, positive: Tensor) -> float:
    """Probability that a positive scores above a negative, ties counted half."""
    ranks = scores[positive][:, None] - scores[~positive]
    return ((ranks > 0).double().mean() + 0.5 * (ranks == 0).double().mean()).item()


def show(metrics: dict[str, float], path: Path) -> None:
    """Write the metrics and print them as a table."""
    metrics = {name: round(value, 4) for name, value in metrics.items()}
    path.write_text(json.dumps(metrics, indent=2) + "\n")
    notes = {
        "reward_before": "VADER score of sampled completions, -1 to 1",
        "reward_after": "the same after training",
        "response_kl": "KL(π‖π_ref) in nats a response, on completions of its own",
        "accuracy": "held-out pairs ranked as VADER does",
        "sparsity_reward": "% of reward mask m_u exactly zero",
        "mask_auc": "m_u against the words in VADER's lexicon, 0.5 is chance",
        "seconds": "whole run",
    }
    print()
    for name, value in metrics.items():
        print(f"{name:<16}{value:>10.4g}   {notes[name]}")
    print(f"\nwritten to {path}")


def show_heaviest(run: Run, pair: Pair) -> None:
    """One response, and the five of its tokens that the masks weigh most."""
    table = run.tokens(prompt=pair.prompt, response=pair.chosen)
    heaviest = table.take(table.mask_reward.argsort(descending=True)[:5].tolist())
    print(f"\n{pair.prompt}{pair.chosen}\n\n{'token':<16}{'m_u':>8}{'m_d':>8}{'log-ratio':>12}{'advantage':>12}")
    columns = (heaviest.mask_reward, heaviest.mask_kl, heaviest.log_ratio, heaviest.advantage)
    for text, *numbers in zip(heaviest.text, *(column.tolist() for column in columns), strict=True):
        m_u, m_d, log_ratio, advantage = numbers
        print(f"{text:<16}{m_u:>8.2f}{m_d:>8.2f}{log_ratio:>12.2f}{advantage:>12.2f}")


if __name__ == "__main__":
    typer.run(main)
