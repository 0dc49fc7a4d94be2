"""Ten fp32 steps of Axolotl with what a pair begins with computed once and twice; tolerances as in tests/invariant."""

import pytest
from axolotl_runs import LORA, losses
from host_runs import difference_of_weights

LOSS, WEIGHTS = 5e-6, 2.5e-5
ONCE = "sparsepo.share_prefix: what chosen and rejected begin with is computed once"


@pytest.mark.parametrize("kind", ["full", "LoRA"])
def test_equals_the_run_without(kind, train):
    over = LORA if kind == "LoRA" else {}
    once, twice = (train(**over, sparsepo={"share_prefix": share}) for share in (True, False))
    assert once.output.count(ONCE) == 1 and ONCE not in twice.output
    assert losses(once)[0] != losses(once)[-1]
    assert (losses(once) - losses(twice)).abs().max() < LOSS
    assert difference_of_weights(once, twice) < WEIGHTS
