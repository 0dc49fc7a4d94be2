"""What a run leaves, of tiny random models, with a tokenizer of bytes that takes any text; and pairs of such texts."""

import json
from pathlib import Path
from typing import Any

import torch
from tiny import LAYERS, WIDTH, decoder, describe
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from sparsepo_plugin import LossConfig, save_masks
from sparsepo_plugin.masks import build_masks
from sparsepo_plugin.record import MetricsFile

INDEPENDENT = {"shared": False, "l1_reward": 1e-3, "init": "linear"}  # about half of the weights are zero

PLAIN = {
    "prompt": "Though I saw this movie",
    "chosen": " the second time, I had to watch it again. The acting was pretty good.\n\nWatch it!",
    "rejected": " on cable yesterday, the storyline is weak\tin the beginning.",
}
# What must stay text, whatever a page is made of.
NASTY = [
    {
        "prompt": "</script><script>alert(1)</script> <b>bold?</b> & \"quotes\" 'single' `tick` ${x}",
        "chosen": " </script><img src=x onerror=alert(2)> <!-- <script> &lt;b&gt; \\u003c --> ok",
        "rejected": " ]]> <b>not bold</b> \u2028\u2029 <iframe src=//example.org> $title $$ %s {0}",
    },
    {
        "prompt": "قل شيئا جميلا",
        "chosen": " هذا الفيلم رائع جدا ومسل \u202eevil\u202c",
        "rejected": " הסרט משעמם 😀👩‍👩‍👧 \x00\x01\x1b[31m\x7f \ufeff\u200b  two   spaces",
    },
]


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE that knows the words of the texts above."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        min_frequency=1,
        special_tokens=["<pad>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([text for pair in (PLAIN, *NASTY) for text in pair.values()] * 2, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>")


def finished_run(
    folder: Path,
    loss: str = "sparsepo",
    section: dict | None = None,
    seed: int = 0,
    architecture: str = "llama",
    **changes: Any,
) -> Path:
    """A policy, its reference beside it, masks if the loss has any, and the description. Returns the folder."""
    tokenizer = byte_tokenizer()
    config = LossConfig.from_section(section or (INDEPENDENT if loss == "sparsepo" else {}), loss, beta=0.5)
    reference = folder.with_name(f"{folder.name}_reference")
    for place, number in ((folder, seed), (reference, seed + 100)):
        decoder(architecture, number, vocab_size=len(tokenizer)).save_pretrained(place)
        tokenizer.save_pretrained(place)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        masks = build_masks(config, WIDTH, LAYERS, seed=seed)
    places = {"base_model": str(reference), "reference": str(reference) if config.uses_reference else None}
    save_masks(folder, describe(config, **{**places, **changes}), masks.state_dict() if masks else {})
    return folder


def write_lines(path: Path, rows: list[dict]) -> Path:
    """JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_metrics(folder: Path, steps: int = 6, scale: float = 1.0) -> None:
    """Numbers of training and of an evaluation at the end, which differ by step and by name; every third has no KL."""
    log = MetricsFile(folder)
    names = ["loss", "accuracy", "margin", "chosen_reward", "rejected_reward", "token_kl_margin"]
    names += [f"{name}_{side}" for name in ("sparsity_reward", "sparsity_kl") for side in ("chosen", "rejected")]
    for step in range(1, steps + 1):
        numbers = {name: scale * (step + place / 8) for place, name in enumerate(names)}
        if step % 3:
            numbers |= {f"token_kl_{side}": scale * step / 4 for side in ("chosen", "rejected")}
        log.write(step, numbers)
    log.write(steps, numbers | {"loss": 0.5 * scale, "token_kl_chosen": 2.0, "token_kl_rejected": 3.0}, split="eval")
