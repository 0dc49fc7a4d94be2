"""The paper's Figure 2 in miniature, from nothing: `make frontier`.

In the world of the demo, seven methods are trained with three β and three seeds each, and the reward of their samples
is compared at equal KL to the reference. Begun again it goes on where it was ended. `make frontier METHODS=dpo,simpo`
compares others, in a folder of their own: names of methods.yaml and more.yaml, and losses that need no option. Models
and weights that they need are made first, as ingredients.py says.
"""

import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
import yaml
from commands import OUTPUT, sparsepo
from ingredients import PAIRS, needed, prepared
from language_model import build_tokenizer, train  # of the demo
from reviews import Reviewer

from sparsepo_plugin import OBJECTIVES, LossConfig, SparsePOError
from sparsepo_plugin.config import objective_class, taken_from_host
from sparsepo_plugin.errors import one_line_errors
from sparsepo_plugin.options import parameters

HERE = Path(__file__).parent
TRAIN_PROMPTS, HELD_OUT_PROMPTS = 1600, 300
MIN_DIFFERENCE = 0.5  # of the scores of a pair, as in the demo
BETAS, SEEDS = "0.05,0.4,3", "0,1,2"
OWN_BETAS = (0.5, 4, 30)  # times the default of a loss that has a β of its own, as the three above are of 0.1
BASELINES = {"figures": "dpo", "figures_tdpo": "tdpo v1"}  # a folder for each
SAMPLING = ("--reward", "vader", "--max-new-tokens", 56)  # as in the demo
JOBS = 2  # with a thread each; what is this small gains little from a second one


Variants = dict[str, dict[str, Any]]


def main(methods: Annotated[str, typer.Option(help="Names, with commas; the paper's without it.")] = "") -> None:
    """Run the experiment and write figures and tables to runs/frontier/figures."""
    start = time.monotonic()
    with one_line_errors():
        variants = read_variants(methods)
    folder = OUTPUT / methods
    baselines = {"figures": next(iter(variants))} if methods else BASELINES
    reference, held_out = OUTPUT / "reference", OUTPUT / "held_out.jsonl"
    if not (reference / "tokenizer.json").exists():
        make_reference(reference)
    prompts, held_out_prompts = write_prompts()
    sparsepo("generate", reference, "--prompts", prompts, "-o", PAIRS, *SAMPLING, "--min-difference", MIN_DIFFERENCE)
    sparsepo("generate", reference, "--prompts", held_out_prompts, "-o", held_out, *SAMPLING)
    for name in dict.fromkeys(name for variant in variants.values() for name in needed(variant)):
        prepared(name)
    train_all(folder / "sweep", variants)
    runs = sorted(folder.glob("sweep/*/run"))
    # Losses without a reference leave runs without one.
    compared = ("--reference", reference) if methods else ()
    evaluate([run for run in runs if not (run / "evaluation.jsonl").exists()], held_out_prompts, *compared)
    samples = held_out.with_suffix(".samples.jsonl")
    for name, baseline in baselines.items():
        flags = ("--baseline", baseline, "--reference", samples)
        sparsepo("frontier", folder / "sweep", "-o", folder / name, *flags)
    print(f"\n{len(runs)} runs in {(time.monotonic() - start) / 60:.0f} minutes; see {folder / 'figures'}")


def read_variants(methods: str) -> Variants:
    """What each method sets.

    Args:
        methods: Names, with commas; those of methods.yaml without any.

    Raises:
        SparsePOError: one is no method, or needs an option.
    """
    ours = yaml.safe_load((HERE / "methods.yaml").read_text())
    named = ours | yaml.safe_load((HERE / "more.yaml").read_text())
    return {name: _variant(name, named) for name in methods.split(",")} if methods else ours


def _variant(name: str, named: Variants) -> dict[str, Any]:
    if name in named:
        return named[name]
    if name not in OBJECTIVES.names():
        allowed = dict.fromkeys([*named, *OBJECTIVES.names()])
        raise SparsePOError(f"METHODS: {name!r} is no method; there are {', '.join(allowed)}")
    try:
        LossConfig.from_section(None, name)
    except SparsePOError as error:
        raise SparsePOError(f"METHODS: {error}; say what it is in examples/frontier/more.yaml") from error
    return {"loss": name}


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


def train_all(folder: Path, variants: Variants) -> None:
    """The grid; losses that have a β of their own have a grid of their own, in the same folder."""
    scales = {name: scale_of(variant["loss"]) for name, variant in variants.items()}
    for number, own in enumerate((False, True)):
        chosen = {name: variant for name, variant in variants.items() if ("model.beta" not in scales[name]) is own}
        if chosen:
            file = folder.with_name(f"variants_{number}.yaml")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(yaml.safe_dump(chosen, sort_keys=False))
            sets = {flag for name in chosen for flag in scales[name].items()}
            grid = [word for key, values in sorted(sets) for word in ("--set", f"{key}={values}")]
            flags = ("--variants", file, *grid, "--seeds", SEEDS, "-o", folder, "--jobs", JOBS)
            sparsepo("sweep", HERE / "base.yaml", *flags, OMP_NUM_THREADS="1")


def scale_of(loss: str) -> dict[str, str]:
    """The key of a loss's β, and its values with commas; nothing for one without."""
    cls = objective_class(loss)
    if "beta" in taken_from_host(cls):
        return {"model.beta": BETAS}
    own = parameters(cls).get("beta")
    return {} if own is None else {f"{loss}.beta": ",".join(f"{factor * own.default:g}" for factor in OWN_BETAS)}


def evaluate(runs: list[Path], prompts: Path, *compared: object) -> None:
    """Finished runs and their checkpoints, shared out evenly."""
    flags = ("--checkpoints", "--prompts", prompts, *SAMPLING, *compared)
    with ThreadPoolExecutor(JOBS) as pool:
        shares = [share for share in (runs[number::JOBS] for number in range(JOBS)) if share]
        list(pool.map(lambda share: sparsepo("evaluate", *share, *flags, OMP_NUM_THREADS="1"), shares))


if __name__ == "__main__":
    typer.run(main)
