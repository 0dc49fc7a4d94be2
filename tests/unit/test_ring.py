"""Two gloo processes that share a packed row, as ring attention does, against one process that holds it whole.

Ring flash-attention itself needs CUDA, so hidden rows are given: a fixed row times a trainable matrix. Each process
works on its half, gradients are then averaged over both as DeepSpeed does. All in float64, where the order of the sums
leaves 1e-12; metrics are float32, hence 1e-6.
"""

import os

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing
from torch import Tensor, nn

from sparsepo_plugin import LossConfig, MaskPair, ReferenceFeatures, ResponseTokens, token_statistics
from sparsepo_plugin.masks import build_masks
from sparsepo_plugin.metrics import token_metrics

LAYERS, WIDTH, VOCABULARY, SITES = 3, 6, 17, 4
# (prompt, response) tokens: once a response lies across the halves, once the first half is a prompt and nothing else.
LAYOUTS = {"across": [(2, 5), (2, 6), (3, 1), (1, 4)], "all in one half": [(16, 2), (1, 3), (2, 1), (1, 4)]}
SECTIONS = {
    "learned": {"shared": False, "l1_reward": 0.02, "l1_kl": 0.03},
    "learned, mean": {"layers": "last", "l1_reward": 0.02, "l1_kl": 0.03, "l1_reduction": "mean"},
    "activation": {"mask": "activation"},
    "activation, no rescaling": {"mask": "activation", "rescale": "none"},
    "random": {"mask": "random"},
    "confpo": {"loss": "confpo"},
    "wpo": {"loss": "wpo"},
    "adpo": {"loss": "adpo"},
    "adpo, segments": {"loss": "adpo", "segments": 2},
}


def compute(section: dict, lens: list, rank: int | None) -> dict[str, Tensor]:
    """Loss, rewards, gradients and metrics of the whole row (rank None) or of one process' half."""
    g = torch.Generator().manual_seed(0)
    total = sum(map(sum, lens))
    row = torch.randn(total, WIDTH, generator=g, dtype=torch.float64)
    layers = torch.randn(LAYERS, total, WIDTH, generator=g, dtype=torch.float64)
    sites = torch.randn(SITES, total, generator=g, dtype=torch.float64)
    matrix, head, ref_head = (
        nn.Parameter(torch.randn(shape, generator=g, dtype=torch.float64))
        for shape in ((WIDTH, WIDTH), (VOCABULARY, WIDTH), (VOCABULARY, WIDTH))
    )
    tokens = tokens_of(lens, g)
    if rank is not None:
        share = -(-total // 2)
        here = slice(rank * share, (rank + 1) * share)
        row, layers, sites = row[here], layers[:, here], sites[:, here]
        tokens = tokens.shard(rank * share, (rank + 1) * share, dist.group.WORLD)
    loss, section = section.get("loss", "sparsepo"), {key: value for key, value in section.items() if key != "loss"}
    config = LossConfig.from_section(section, loss, beta=0.5, label_smoothing=0.1)
    masks = build_masks(config, WIDTH, LAYERS, seed=0)
    learned = {} if masks is None else dict(masks.double().named_parameters())
    for parameter in learned.values():
        parameter.data += 0.3 * torch.randn(parameter.shape, generator=g, dtype=torch.float64)
    rows = tokens.rows
    stats = token_statistics((row @ matrix)[rows], head, layers[-1, rows], ref_head, tokens.labels, collision=True)
    of_reference = layers[:, rows], sites[:, rows], layers[-1, rows]
    features = ReferenceFeatures(*of_reference, policy_logps=stats.policy_logps.detach())
    pair: MaskPair | None = None if masks is None else masks(features, tokens)
    out = config.build_objective()(stats, pair, tokens)
    nll = -tokens.mean(stats.policy_logps)[: tokens.num_pairs].mean()
    (out.loss + 0.2 * nll).backward()
    result = {
        "loss": out.loss.detach(),
        "nll": nll.detach(),
        "chosen": out.chosen_rewards,
        "rows": torch.tensor(len(rows)),
    }
    named = {"matrix": matrix, "head": head, **learned}
    result.update({f"gradient of {name}": parameter.grad for name, parameter in named.items()})
    result.update({f"metric {name}": value for name, value in token_metrics(stats, pair, tokens).items()})
    return result


def tokens_of(lens: list, generator: torch.Generator | None = None) -> ResponseTokens:
    ids = torch.randint(VOCABULARY, (sum(map(sum, lens)),), generator=generator)
    return ResponseTokens.from_packed(ids, [sum(pair) for pair in lens], [prompt for prompt, _ in lens])


def work(rank: int, folder: str) -> None:
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    results = {}
    for layout, lens in LAYOUTS.items():
        for name, section in SECTIONS.items():
            result = compute(section, lens, rank)
            for key, value in result.items():
                if key.startswith("gradient"):
                    dist.all_reduce(value)
                    value /= 2
            results[layout, name] = result
    torch.save(results, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ring(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ring")
    multiprocessing.spawn(work, (str(folder),), nprocs=2)
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", SECTIONS)
def test_two_processes_equal_one(ring, layout, name):
    whole = compute(SECTIONS[name], LAYOUTS[layout], None)
    assert sum(half[layout, name]["rows"] for half in ring) == whole.pop("rows")
    for half in ring:
        for key, expected in whole.items():
            tolerance = 1e-6 if key.startswith("metric") else 1e-12
            got = half[layout, name][key]
            torch.testing.assert_close(got, expected, atol=tolerance, rtol=tolerance, msg=f"{key}: {got} {expected}")


@pytest.mark.slow
def test_layouts_are_what_they_say(ring):
    rows = {layout: [half[layout, "learned"]["rows"].item() for half in ring] for layout in LAYOUTS}
    assert rows == {"across": [9, 7], "all in one half": [0, 10]}
