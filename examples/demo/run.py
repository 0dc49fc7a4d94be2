"""The paper's sentiment-control experiment in miniature, from nothing: `make demo`.

A small language model learns to write film reviews, two completions of each prompt are sampled from it and ranked by
VADER's sentiment score, and OpenRLHF trains it on the pairs with `loss: sparsepo` and learned masks.
"""

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, NamedTuple

import torch
import typer
from language_model import build_tokenizer, load, sample, train
from reviews import Reviewer
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast
from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

from sparsepo_plugin import PreferenceStep, ResponseTokens, load_mask

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


@dataclass
class HeldOut:
    """What the masks and the policy say of held-out pairs; N response tokens, P pairs."""

    mask_reward: Tensor
    mask_kl: Tensor
    labels: Tensor
    margins: Tensor


def main(
    output: Annotated[Path, typer.Option(help="Folder for models, data and metrics.")] = Path("runs/demo"),
    seed: Annotated[int, typer.Option(help="Seed of everything drawn.")] = 0,
) -> None:
    """Run the experiment and write metrics.json."""
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
    policy = load(output / "policy", device)
    completions = sample(policy, tokenizer, held_out_prompts)
    metrics = {
        "reward_before": before,
        "reward_after": mean_score(completions),
        "token_kl": token_kl(policy, reference, tokenizer, held_out_prompts, completions),
        **mask_metrics(look_at_pairs(policy, reference, tokenizer, held_out, output / "policy"), tokenizer),
        "seconds": time.monotonic() - start,
    }
    show(metrics, output / "metrics.json")


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


def encode(
    tokenizer: PreTrainedTokenizerFast, prompts: list[str], responses: list[str], device: torch.device
) -> tuple[dict[str, Tensor], Tensor]:
    """Padded batch of prompt + response, and the prompts' lengths [S]."""
    rows = zip(prompts, responses, strict=True)
    texts = [f"{prompt} {response.strip()} {tokenizer.eos_token}" for prompt, response in rows]
    batch = tokenizer(texts, padding=True, return_tensors="pt").to(device)
    lengths = torch.tensor([len(ids) for ids in tokenizer(prompts)["input_ids"]], device=device)
    return dict(batch), lengths


@torch.no_grad()
def token_kl(
    policy: PreTrainedModel,
    reference: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    prompts: list[str],
    completions: list[str],
) -> float:
    """Mean over response tokens of KL(π‖π_ref) over the vocabulary, on the policy's own completions."""
    batch, lengths = encode(tokenizer, prompts, completions, policy.device)
    logps, reference_logps = (model(**batch).logits[:, :-1].log_softmax(-1) for model in (policy, reference))
    kl = (logps.exp() * (logps - reference_logps)).sum(-1)
    place = torch.arange(1, kl.shape[1] + 1, device=kl.device)
    return kl[batch["attention_mask"][:, 1:].bool() & (place >= lengths[:, None])].mean().item()


@torch.no_grad()
def look_at_pairs(
    policy: PreTrainedModel,
    reference: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    pairs: list[Pair],
    mask_folder: Path,
) -> HeldOut:
    """Masks and implicit rewards of held-out pairs, by the step that trained them."""
    mask_head, config = load_mask(mask_folder)
    step = PreferenceStep(config, beta=1.0)
    model = step.wrap(policy, reference, mask_head=mask_head.to(policy.device)).eval()
    prompts, chosen, rejected = map(list, zip(*pairs, strict=True))
    batch, lengths = encode(tokenizer, prompts * 2, chosen + rejected, policy.device)
    tokens = ResponseTokens.from_padded(batch["input_ids"], batch["attention_mask"], lengths)
    output = step(partial(model, **batch), partial(reference, **batch), tokens)
    return HeldOut(
        mask_reward=output.masks.reward,
        mask_kl=output.masks.kl,
        labels=tokens.labels,
        margins=output.chosen_rewards - output.rejected_rewards,
    )


def mask_metrics(held_out: HeldOut, tokenizer: PreTrainedTokenizerFast) -> dict[str, float]:
    """Accuracy of the implicit reward, sparsity of both masks in percent, and what the reward mask finds."""
    words = tokenizer.convert_ids_to_tokens(held_out.labels.tolist())
    sentiment = torch.tensor([word in SCORER.lexicon for word in words], device=held_out.labels.device)
    return {
        "accuracy": (held_out.margins > 0).float().mean().item(),
        "sparsity_reward": 100 * (held_out.mask_reward == 0).float().mean().item(),
        "sparsity_kl": 100 * (held_out.mask_kl == 0).float().mean().item(),
        "mask_auc": roc_auc(held_out.mask_reward, sentiment),
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
        "token_kl": "nats per token to the reference",
        "accuracy": "held-out pairs ranked as VADER does",
        "sparsity_reward": "% of reward mask m_u exactly zero",
        "sparsity_kl": "% of KL mask m_d exactly zero",
        "mask_auc": "m_u against the words in VADER's lexicon, 0.5 is chance",
        "seconds": "whole run",
    }
    print()
    for name, value in metrics.items():
        print(f"{name:<16}{value:>10.4g}   {notes[name]}")
    print(f"\nwritten to {path}")


if __name__ == "__main__":
    typer.run(main)
