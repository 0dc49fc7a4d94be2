"""The numbers of one run as they were recorded, so that a change is seen that is the same in all layouts.

Processors add in another order: between SSE4.2, AVX2 and AVX-512 losses, rewards and masks moved by up to 1.5e-6 and
the gradient's norm by 4e-6 of itself. The tolerances are seven times as much.
To renew it, `pytest tests/invariant/test_trajectory.py --renew-trajectory`, and say in the commit why it changed.
"""

import csv
from pathlib import Path

import pytest
from test_layouts import MASKS

RECORD = Path(__file__).with_name("trajectory.csv")
NAMES = ("loss", "chosen_reward", "reject_reward", "grad_norm", "token_kl_chosen", "mask_reward_mean_chosen",
         "mask_reward_mean_rejected", "sparsity_reward_chosen")  # fmt: skip


def test_the_recorded_run(train, pytestconfig):
    run = train(sparsepo=MASKS["learned shared"])
    found = list(zip(*(run.scalars(f"train/{name}") for name in NAMES), strict=True))
    if pytestconfig.getoption("renew_trajectory", False):
        lines = [",".join(["step", *NAMES])]
        lines += [",".join([str(step), *(f"{value:.8g}" for value in row)]) for step, row in enumerate(found, 1)]
        RECORD.write_text("\n".join(lines) + "\n")
    with RECORD.open() as file:
        recorded = [[float(row[name]) for name in NAMES] for row in csv.DictReader(file)]
    assert len(found) == len(recorded) == 10
    for step, (row, expected) in enumerate(zip(found, recorded, strict=True), 1):
        assert row == pytest.approx(expected, rel=3e-5, abs=1e-5), f"step {step}: {dict(zip(NAMES, row, strict=True))}"
