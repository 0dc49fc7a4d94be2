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
from statistics import fmean
from typing import Annotated

import torch
import typer
from language_model import build_tokenizer, train
from reviews import Reviewer
from torch import Tensor
from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

from sparsepo_plugin import Run, load_run
from sparsepo_plugin.analysis.evaluate import evaluate
from sparsepo_plugin.analysis.pairs import Pair, read_pairs
from sparsepo_plugin.analysis.report import report
from sparsepo_plugin.generation.generate import generate
from sparsepo_plugin.generation.sampling import Sampling

CONFIG = Path(__file__).with_name("sparsepo.yaml")
TRAIN_PROMPTS, HELD_OUT_PROMPTS = 2400, 500
MAX_NEW_TOKENS = 56
# Pairs whose scores (from -1 to 1) are nearer than this say little.
MIN_DIFFERENCE = 0.5


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
    before = make_pairs(output, "held_out", prompts[:HELD_OUT_PROMPTS], seed)
    make_pairs(output, "pairs", prompts[HELD_OUT_PROMPTS:], seed)

    announce(3, "OpenRLHF trains on the pairs with loss: sparsepo")
    train_policy(output, seed)

    announce(4, "what was learned")
    held_out = read_pairs(output / "held_out.jsonl")
    run = load_run(output / "policy", device=device)
    metrics = {
        "reward_before": before,
        **evaluate_policy(output, seed),
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


def make_pairs(output: Path, name: str, prompts: list[str], seed: int) -> float:
    """`sparsepo generate` with the reference, from the start; the mean reward of all completions."""
    for old in output.glob(f"{name}*.jsonl"):
        old.unlink()
    path, sampling = output / f"{name}_prompts.jsonl", Sampling(max_new_tokens=MAX_NEW_TOKENS, seed=seed)
    path.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts))
    pairs, model = output / f"{name}.jsonl", str(output / "reference")
    samples = generate(model, path, "vader", pairs, sampling, min_difference=MIN_DIFFERENCE)
    _, *rows = map(json.loads, samples.read_text().splitlines())
    return fmean(row["reward"] for row in rows)


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


def evaluate_policy(output: Path, seed: int) -> dict[str, float]:
    """`sparsepo evaluate`: reward and KL of the policy's own completions."""
    sampling = Sampling(count=1, max_new_tokens=MAX_NEW_TOKENS, seed=seed)
    for line in evaluate([output / "policy"], output / "held_out_prompts.jsonl", "vader", sampling, [1.0]):
        print(line)
    (found,) = json.loads((output / "policy" / "evaluation.json").read_text())["results"]
    return {"reward_after": found["reward"]["mean"], "response_kl": found["kl"]["mean"]}


def look_at_pairs(run: Run, pairs: list[Pair]) -> dict[str, float]:
    """Accuracy of the implicit reward, sparsity of the reward mask in percent, and what it finds."""
    lexicon = SentimentIntensityAnalyzer().lexicon
    tables = [run.tokens(pair.prompt, pair.chosen, pair.rejected) for pair in pairs]
    margins = [table.of("chosen").advantage.sum() - table.of("rejected").advantage.sum() for table in tables]
    mask_reward = torch.cat([table.mask_reward for table in tables])
    sentiment = torch.tensor([word in lexicon for table in tables for word in table.text])
    return {
        "accuracy": (torch.stack(margins) > 0).float().mean().item(),
        "sparsity_reward": 100 * (mask_reward == 0).float().mean().item(),
        "mask_auc": roc_auc(mask_reward, sentiment),
    }


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
