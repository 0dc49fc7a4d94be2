"""What our index of a packed row and the host's own slice of it for ring attention say of each other."""

import os

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing
from tiny import Pairs

# 25 tokens: the host pads the row for two processes, and a response lies across their halves.
PAIRS = Pairs([(2, 5), (2, 6), (3, 1), (1, 5)])
WEIGHTS = list((torch.arange(17) / 8).split([5, 6, 1, 5]))


def work(rank: int, folder: str) -> None:
    from sparsepo_plugin.hosts.openrlhf.overlay import activate

    activate()
    from openrlhf.models.ring_attn_utils import get_tensor_in_current_ring_attn_rank

    from sparsepo_plugin.hosts.openrlhf.layout import _shared

    os.environ["OMP_NUM_THREADS"] = "1"
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    group = dist.group.WORLD
    row = torch.cat(PAIRS.sequences)
    tokens = _shared(PAIRS.packed_tokens.weighed(WEIGHTS), len(row), group)
    slice_, _ = get_tensor_in_current_ring_attn_rank(row[None], group, 0)
    found = {name: getattr(tokens, name) for name in ("rows", "labels", "sequence", "position", "weights")}
    torch.save({**found, "before": slice_[0, tokens.rows]}, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def halves(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ring")
    multiprocessing.spawn(work, (str(folder),), nprocs=2)
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


def test_the_halves_are_the_whole(halves):
    whole = PAIRS.packed_tokens
    for name in ("labels", "sequence", "position"):
        assert torch.equal(torch.cat([half[name] for half in halves]), getattr(whole, name)), name
    assert torch.equal(torch.cat([half["weights"] for half in halves]), torch.cat(WEIGHTS))
    assert all(len(half["rows"]) for half in halves)


def test_rows_count_into_the_hosts_slice(halves):
    """Each row holds the token before the label."""
    before = torch.cat(PAIRS.sequences)[PAIRS.packed_tokens.rows]
    assert torch.equal(torch.cat([half["before"] for half in halves]), before)
