"""What a pair begins with computed once, in every decoder that is known to allow it, against the plain step."""

import pytest
from shared_steps import assert_same, take
from tiny import ARCHITECTURES

EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 12, "output_router_logits": True}
OTHERS = {
    "granite": {"logits_scaling": 1.0},
    "olmo2": {},
    "phi": {"num_key_value_heads": 2},
    "phi3": {},
    "qwen3_moe": EXPERTS,
    "starcoder2": {},
}
WINDOWS = {
    "gemma3_text": {"sliding_window": 4},
    "mistral": {"sliding_window": 4},
    "qwen2": {"sliding_window": 4, "use_sliding_window": True, "max_window_layers": 1},
}
CASES = [*((name, {}) for name in ARCHITECTURES if name != "gptj"), *OTHERS.items(), *WINDOWS.items()]


@pytest.mark.parametrize("laid", ["padded", "packed"])
@pytest.mark.parametrize(("name", "changes"), CASES, ids=[f"{name} {[*changes][:1]}" for name, changes in CASES])
def test_equals_the_plain_step(name, changes, laid):
    assert_same(take(True, name, laid=laid, **changes), take(False, name, **changes))


@pytest.mark.parametrize("name", ["mixtral", "gemma"])
def test_dense_masks_read_the_same(name):
    """Whose sites are outputs of attention, experts and layers."""
    section = {"mask": "activation"}
    assert_same(*(take(share, name, section=section) for share in (True, False)))
