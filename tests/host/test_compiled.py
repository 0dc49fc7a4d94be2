"""Optimizers for which C++ is compiled on CPU, DeepSpeed's or that of torch.compile; flags as in test_flags.py."""

import shutil

import pytest
from filelock import FileLock
from host_runs import DPO, difference

pytestmark = pytest.mark.skipif(not shutil.which("g++"), reason="needs a C++ compiler")


@pytest.fixture
def only_builder(extensions):
    """torch waits for ever for a build that was killed: its lock stays."""
    with FileLock(extensions / "builder.lock"):
        for lock in extensions.glob("*/lock"):
            lock.unlink()
        yield


def test_an_offloaded_optimizer(train, only_builder):
    loss, weights = difference(train(ds={"adam_offload": True}), train())
    assert loss < 1e-4 and weights < 1e-4


def test_muon(train):
    flags = {"optim": "muon", "muon": {"lr": 0.01}, "max_norm": 0.0}
    ours, host = train(**flags, sparsepo=DPO), train(**flags, loss=None, sparsepo=None)
    loss, weights = difference(ours, host)
    # Newton-Schulz runs in bf16: the last digit of a gradient can move a weight by a bf16 rounding of its update.
    assert loss < 1e-3 and weights < 1e-3
    train(**flags, sparsepo={"mask_lr": "policy"})
