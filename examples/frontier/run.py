"""The paper's Figure 2 in miniature, from nothing: `make frontier`.

In the world of the demo, seven methods are trained with three β and three seeds each, and the reward of their samples
is compared at equal KL to the reference. Begun again it goes on where it was ended.
"""

import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
import typer
from language_model import build_tokenizer, train  # of the demo
from reviews import Reviewer

HERE, OUTPUT = Path(__file__).parent, Path("runs/frontier")  # the latter is in base.yaml too
TRAIN_PROMPTS, HELD_OUT_PROMPTS = 1600, 300
MIN_DIFFERENCE = 0.5  # of the scores of a pair, as in the demo
BETAS, SEEDS = "0.05,0.4,3", "0,1,2"
BASELINES = {"figures": "dpo", "figures_tdpo": "tdpo v1"}  # a folder for each
SAMPLING = ("--reward", "vader", "--max-new-tokens", 56)  # as in the demo
JOBS = 2  # with a thread each; what is this small gains little from a second one


def main() -> None:
    """Run the experiment and write figures and tables to runs/frontier/figures."""
    start = time.monotonic()
    reference, pairs, held_out = (OUTPUT / name for name in ("reference", "pairs.jsonl", "held_out.jsonl"))
    if not (reference / "tokenizer.json").exists():
        make_reference(reference)
    prompts, held_out_prompts = write_prompts()
    sparsepo("generate", reference, "--prompts", prompts, "-o", pairs, *SAMPLING, "--min-difference", MIN_DIFFERENCE)
    sparsepo("generate", reference, "--prompts", held_out_prompts, "-o", held_out, *SAMPLING)
    train_all(OUTPUT / "sweep")
    runs = sorted(OUTPUT.glob("sweep/*/run"))
    evaluate([run for run in runs if not (run / "evaluation.jsonl").exists()], held_out_prompts)
    samples = held_out.with_suffix(".samples.jsonl")
    for folder, baseline in BASELINES.items():
        flags = ("--baseline", baseline, "--reference", samples)
        sparsepo("frontier", OUTPUT / "sweep", "-o", OUTPUT / folder, *flags)
    print(f"\n{len(runs)} runs in {(time.monotonic() - start) / 60:.0f} minutes; see {OUTPUT / 'figures'}")


def make_reference(folder: Path) -> None:
    """The demo's language model; the same for every method."""
    torch.manual_seed(0)
    tokenizer = build_tokenizer()
    for part in (train(tokenizer, Reviewer(0), "cuda" if torch.cuda.is_available() else "cpu"), tokenizer):
        part.save_pretrained(folder)


def write_prompts() -> tuple[Path, Path]:
    """Openings to train on, and others to evaluate on."""
    reviewer = Reviewer(1)
    openings = list(dict.fromkeys(reviewer.opening() for _ in range(TRAIN_PROMPTS + HELD_OUT_PROMPTS)))
    paths = (OUTPUT / "prompts.jsonl", OUTPUT / "held_out_prompts.jsonl")
    for path, texts in zip(paths, (openings[HELD_OUT_PROMPTS:], openings[:HELD_OUT_PROMPTS]), strict=True):
        path.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in texts))
    return paths


def train_all(folder: Path) -> None:
    """The grid."""
    grid = ("--variants", HERE / "methods.yaml", "--set", f"model.beta={BETAS}", "--seeds", SEEDS)
    sparsepo("sweep", HERE / "base.yaml", *grid, "-o", folder, "--jobs", JOBS, OMP_NUM_THREADS="1")


def evaluate(runs: list[Path], prompts: Path) -> None:
    """Finished runs and their checkpoints, shared out evenly."""
    flags = ("--checkpoints", "--prompts", prompts, *SAMPLING)
    with ThreadPoolExecutor(JOBS) as pool:
        shares = [share for share in (runs[number::JOBS] for number in range(JOBS)) if share]
        list(pool.map(lambda share: sparsepo("evaluate", *share, *flags, OMP_NUM_THREADS="1"), shares))


def sparsepo(command: str, *arguments: object, **environment: str) -> None:
    """A command of this environment."""
    print(f"\nsparsepo {command}", flush=True)
    words = [Path(sys.executable).with_name("sparsepo"), command, *map(str, arguments)]
    if code := subprocess.run(words, env=os.environ | environment).returncode:
        raise typer.Exit(code)


if __name__ == "__main__":
    typer.run(main)
