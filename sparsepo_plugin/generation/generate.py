"""`sparsepo generate`: samples of a model, scored, and the best and the worst of each prompt as a pair."""

import hashlib
import json
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
import typer
from torch import nn

from ..analysis.files import check_output, write_lines
from ..checkpoint import DESCRIPTION, load_description
from ..decoder import load_decoder, loading
from ..errors import SparsePOError
from ..run import default_device, load_policy
from ..texts import Joining
from .pairs import pairs_of
from .prompts import PrefixRange, Prompt, read_prefixes, read_prompts
from .rewards import load_reward, scored
from .samples import SamplesFile, fingerprint_of
from .sampling import Sampler, Sampling


def generate(
    model: str,
    prompts: Path,
    reward: str,
    output: Path,
    sampling: Sampling,
    prefix_tokens: str | None = None,
    min_difference: float = 0.0,
) -> Path:
    """Write pairs, and beside them every sample: for `pairs.jsonl` those are in `pairs.samples.jsonl`.

    The same call goes on where a killed one was, and ends with the same files.

    Args:
        model: Folder or hub name of a causal language model, or the folder of a finished run.
        prompts: JSON lines with `prompt`, or with `text` to cut prefixes from.
        reward: See `load_reward`.
        output: The file of pairs.
        sampling: How completions are drawn.
        prefix_tokens: Cut prompts of so many tokens, such as `5-8`.
        min_difference: Of the scores of a pair, at least.

    Returns:
        The file of the samples.

    Raises:
        SparsePOError: a model, the prompts or the reward cannot be used, the files are of other options or cannot be
            written, or no pair is left.
    """
    _check(output, sampling.count, min_difference)
    prefix = None if prefix_tokens is None else PrefixRange.parse(prefix_tokens)
    device = default_device()
    policy, tokenizer, joining = _load(model, device)
    asked = _read(prompts, tokenizer, prefix, sampling.seed)
    joining = joining or Joining(chat_template=any(not isinstance(text, str) for text, _ in asked), end="appended")
    score = load_reward(reward, device)
    options = {
        "MODEL": model,
        "--reward": reward,
        "--prefix-tokens": prefix_tokens,
        "--min-difference": min_difference,
        **{f"--{name.replace('_', '-')}": value for name, value in asdict(sampling).items()},
        "the fingerprint of --prompts": _digest(asked),
        "the fingerprint of MODEL": fingerprint_of(policy),
    }
    count = sampling.count
    file = SamplesFile(_samples_of(output), options, len(asked) * count, sampling.prompts_at_once * count)
    sampler = Sampler(policy, tokenizer, joining, sampling)
    for completions in sampler.batches(asked, "generate", file.done // count):
        file.add(scored(score, completions))
    _write_pairs(file, output, min_difference, len(asked))
    return file.path


def _check(output: Path, count: int, min_difference: float) -> None:
    """Refuse, before anything is loaded, what could not be written or would be lost."""
    if output.suffix != ".jsonl":
        raise SparsePOError(f"-o {output} must end in .jsonl, the trainer goes by it")
    check_output(output)
    samples = _samples_of(output)
    if output.exists() and not samples.exists():
        raise SparsePOError(f"-o {output} is there, and {samples.name}, which says what it was made with, is not")
    if count < 2:
        raise SparsePOError(f"--count is {count}, 2 or more are needed for a pair")
    if not 0 <= min_difference < float("inf"):
        raise SparsePOError(f"--min-difference is {min_difference:g}, 0 or more is needed")


def _samples_of(output: Path) -> Path:
    return output.with_suffix(".samples.jsonl")


def _load(name: str, device: torch.device) -> tuple[nn.Module, Any, Joining | None]:
    """A model and its tokenizer and, of a run, how it joined prompts and responses."""
    if (Path(name) / DESCRIPTION).is_file():
        described = load_description(name)
        return *load_policy(name, described, device=device), described.joining
    from transformers import AutoTokenizer

    model = load_decoder(name, "MODEL", dtype="auto", device=device)
    with loading("the tokenizer of MODEL", name):
        return model, AutoTokenizer.from_pretrained(name, trust_remote_code=False), None


def _read(path: Path, tokenizer: Any, prefix: PrefixRange | None, seed: int) -> list[Prompt]:
    if prefix is None:
        return read_prompts(path)
    prompts, short = read_prefixes(path, tokenizer, prefix, seed)
    if short:
        typer.echo(f"generate: {short} texts are left out, they are shorter than their prefix", err=True)
    return prompts


def _digest(prompts: list[Prompt]) -> str:
    texts = json.dumps([prompt.text for prompt in prompts])
    return hashlib.sha256(texts.encode()).hexdigest()[:16]


def _write_pairs(file: SamplesFile, output: Path, min_difference: float, prompts: int) -> None:
    dropped: Counter[str] = Counter()
    pairs = list(pairs_of(file.read(), min_difference, dropped))
    for reason, number in dropped.items():
        typer.echo(f"generate: dropped {number}: {reason}", err=True)
    if not pairs:
        raise SparsePOError(
            f"no pair is left of {prompts} prompts, {output} is not written; {file.path} has the samples"
        )
    write_lines(output, (json.dumps(pair) for pair in pairs))
    mean = fmean(sample["reward"] for sample in file.read())
    typer.echo(
        f"generate: {prompts} prompts, mean reward {mean:.4g}, {len(pairs)} pairs written to {output}", err=True
    )
