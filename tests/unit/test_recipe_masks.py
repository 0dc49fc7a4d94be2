"""The learned masks of the paper's recipes, at their models' width and depth: how they start, and where they can go.

States are normal noise. Of a trained model they have the shapes alone and, in the second half of the file, that tokens
have much in common.
"""

import importlib
import math
import sys
from functools import cache
from pathlib import Path

import pytest
import torch
import yaml

from sparsepo_plugin import LossConfig, ReferenceFeatures
from sparsepo_plugin.masks import build_masks

ROOT = Path(__file__).parents[2]
PAPER = ROOT / "examples" / "openrlhf" / "paper"
RECIPES = {path.stem: yaml.safe_load(path.read_text()) for path in sorted(PAPER.glob("*.yaml"))}
LEARNED = [name for name, recipe in RECIPES.items() if recipe.get("sparsepo", {}).get("mask") == "learned"]
TOKENS, SEEDS = 48, 16


def experiment_of(name):
    return name.split("_")[0]


def config_of(name, **changed):
    return LossConfig.from_section({**RECIPES[name]["sparsepo"], **changed}, beta=0.1)


# One recipe for each experiment and architecture: the others differ in nothing that is looked at here.
KINDS = list({(experiment_of(name), str(config_of(name).reward)): name for name in LEARNED}.values())


@pytest.fixture(scope="module")
def experiments():
    """Sizes of the experiments' models, and their steps, by name."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "docs")
        paper = importlib.import_module("paper")
    yield {experiment.name: (experiment, paper.steps(experiment)) for experiment in paper.EXPERIMENTS}
    for name in ("paper", "tables"):
        sys.modules.pop(name)


@cache
def states(layers, width, common):
    """Hidden states [L, N, d] of unit variance, of which all tokens share `common`."""
    generator = torch.Generator().manual_seed(0)
    own = torch.randn(layers, TOKENS, width, generator=generator)
    shared = torch.randn(layers, 1, width, generator=generator)
    return own.mul_(math.sqrt(1 - common)).add_(shared, alpha=math.sqrt(common))


def features(experiment, common):
    hidden = states(experiment.layers, experiment.width, common)
    return ReferenceFeatures(hidden_states=hidden, last_hidden=hidden[-1])


def mask_of(name, experiment, seed, **changed):
    """The recipe's mask, or the first of two, laid over its model."""
    return build_masks(config_of(name, **changed), experiment.width, experiment.layers, seed).reward


def share_of_zeros(mask, read):
    with torch.no_grad():
        return (mask(read, None) == 0).float().mean().item()


def released(hidden, seed, layers, depth):
    """Share of zeros of the release's mask before training, written here from what it does.

    Weights are N(0, 0.02²) and biases 0. Where all layers are read each is normalised and has its ReLU, and one more
    linear unit and ReLU join them.
    """
    generator = torch.Generator().manual_seed(seed)

    def linear(rows, outputs):
        return rows @ torch.empty(rows.shape[-1], outputs).normal_(0, 0.02, generator=generator)

    def layer_mask(rows):
        return torch.relu(linear(linear(rows, 200) if depth == 2 else rows, 1))

    if layers == "last":
        mask = layer_mask(hidden[-1])
    else:
        normalised = torch.nn.functional.layer_norm(hidden, hidden.shape[-1:])
        mask = torch.relu(linear(torch.cat([layer_mask(rows) for rows in normalised], -1), 1))
    return (mask == 0).float().mean().item()


def apart(some, others):
    """How far two samples of the same size lie apart: the mean distance between their quantiles."""
    return (torch.tensor(some).sort().values - torch.tensor(others).sort().values).abs().mean().item()


@pytest.mark.parametrize("name", KINDS)
def test_masks_start_as_released(name, experiments):
    """Some tokens are zero and some are not, for nearly every seed; how many, has the release's distribution."""
    experiment, _ = experiments[experiment_of(name)]
    section, read = RECIPES[name]["sparsepo"], features(experiment, common=0)
    options = section.get("layers", "all"), section.get("depth", 1)
    theirs = [released(read.hidden_states, seed, *options) for seed in range(SEEDS)]
    ours = [share_of_zeros(mask_of(name, experiment, seed), read) for seed in range(SEEDS)]
    assert sum(0 < share < 1 for share in ours) > 0.9 * SEEDS
    assert apart(ours, theirs) < 0.15
    without = [share_of_zeros(mask_of(name, experiment, seed, init="positive"), read) for seed in range(SEEDS)]
    assert apart(without, theirs) > 0.3, "the plugin's own start has no zeros"


def schedule(progress, kind, warmup):
    """Rate of a learning-rate schedule, relative to its peak."""
    if progress < warmup:
        return progress / warmup
    left = (1 - progress) / (1 - warmup)
    return left if kind == "linear" else (1 - math.cos(math.pi * left)) / 2


def pushed(mask, read, direction, recipe, steps, stages=4):
    """Share of zeros after the recipe's steps, all of which push the whole mask up or down.

    Adam moves each weight by the learning rate where the gradient keeps its sign, so a few long steps stand for many.
    """
    adam = torch.optim.Adam(mask.parameters(), lr=1.0, betas=recipe["adam"]["betas"])
    for stage in range(stages):
        rate = schedule((stage + 0.5) / stages, recipe["lr_scheduler"], recipe["lr_warmup_ratio"])
        adam.param_groups[0]["lr"] = recipe["adam"]["lr"] * rate * steps / stages
        adam.zero_grad()
        (-direction * mask(read, None)).sum().backward()
        adam.step()
    return share_of_zeros(mask, read)


# Least change of the share of zeros that all steps of a recipe can make, down and up, where tokens share half of their
# states. MBPP's and the ablations' steps are few and small, and move the zeros by a few percent.
REACH = {"imdb": (0.2, 0.1), "hh": (0.3, 0.1), "tldr": (0.2, 0.2), "mbpp": (0.02, 0.02), "mix": (0.005, 0.005)}


@pytest.mark.parametrize("name", KINDS)
def test_zeros_can_come_and_go(name, experiments):
    """Within the recipe's own steps and learning rate, at the mean over seeds."""
    experiment, steps = experiments[experiment_of(name)]
    read, shares = features(experiment, common=0.5), []
    for seed in range(4):
        start, down, up = (mask_of(name, experiment, seed) for _ in range(3))
        moved = [pushed(mask, read, way, RECIPES[name], steps) for mask, way in ((down, -1), (up, 1))]
        shares.append([share_of_zeros(start, read), *moved])
    start, down, up = torch.tensor(shares).mean(0).tolist()
    least_down, least_up = REACH[experiment.name]
    assert down - start > least_down, (start, down)
    assert start - up > least_up, (start, up)
