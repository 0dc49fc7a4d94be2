"""What a learned mask could know at best: a linear function of what it reads that is told which tokens are edited."""

from pathlib import Path

import numpy as np
import torch
from edits import Pair
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from sparsepo_plugin.alignment import edited
from sparsepo_plugin.analysis.edits import roc_auc
from sparsepo_plugin.analysis.intervals import resampled
from sparsepo_plugin.texts import encode

EPOCHS, BATCH, LEARNING_RATE, WEIGHT_DECAY = 3, 512, 3e-3, 1e-2

Example = tuple[Tensor, Tensor]


def probe(reference: Path, training: list[Pair], held_out: list[Pair]) -> dict[str, float]:
    """Its AUC on held-out pairs, mean over pairs, with the interval that `sparsepo localize` gives."""
    model, tokenizer = (kind.from_pretrained(reference) for kind in (AutoModelForCausalLM, AutoTokenizer))
    seen, asked = ([_example(model, tokenizer, pair) for pair in pairs] for pairs in (training, held_out))
    linear = _fit(*map(torch.cat, zip(*seen, strict=True)))
    with torch.no_grad():
        aucs = [roc_auc(linear(hidden)[:, 0].numpy(), flags.numpy()) for hidden, flags in asked]
    low, high = resampled(np.mean, np.array(aucs))
    return {"probe_auc": float(np.mean(aucs)), "probe_auc_low": low, "probe_auc_high": high}


@torch.no_grad()
def _example(model: nn.Module, tokenizer: AutoTokenizer, pair: Pair) -> Example:
    """Hidden rows of all layers before each response token, normalised, and whether the token is edited."""
    sequences = [encode(tokenizer, pair.prompt, response) for response in (pair.chosen, pair.rejected)]
    rows = []
    for ids, prompt_len in sequences:
        layers = model(torch.tensor([ids]), output_hidden_states=True).hidden_states[1:]
        before = [layer[0, prompt_len - 1 : -1] for layer in layers]
        rows.append(torch.cat([nn.functional.layer_norm(layer, layer.shape[-1:]) for layer in before], dim=-1))
    flags = edited(*(ids[prompt_len:] for ids, prompt_len in sequences))
    return torch.cat(rows), torch.cat(flags)


def _fit(hidden: Tensor, flags: Tensor) -> nn.Linear:
    """Logistic regression."""
    linear = nn.Linear(hidden.shape[1], 1)
    optimizer = torch.optim.AdamW(linear.parameters(), LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    for _ in range(EPOCHS):
        for places in torch.randperm(len(hidden)).split(BATCH):
            logits = linear(hidden[places])[:, 0]
            nn.functional.binary_cross_entropy_with_logits(logits, flags[places].float()).backward()
            optimizer.step()
            optimizer.zero_grad()
    return linear
