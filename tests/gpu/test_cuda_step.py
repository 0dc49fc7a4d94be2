"""The step on a CUDA device against the CPU's: compiled arithmetic, products of 16 bits, rows in host memory.

Tolerances: float32 sums in another order, 1e-4 (TF32 is off); bfloat16 weights and activations, whose numbers
are rounded to 2⁻⁸, 5e-2 of the largest value.
"""

from functools import partial

import pytest
import torch
from tiny import TWO_PAIRS, Pairs, decoder, make_step, runner

from sparsepo_plugin import ResponseTokens, divergence, token_statistics
from sparsepo_plugin.reference import collect_features

PAIRS = Pairs(TWO_PAIRS)
SECTIONS = {
    "learned": {"shared": False, "l1_reward": 1e-2, "l1_kl": 1e-2},
    "learned, X = policy": {"expectation": "policy"},
    "dense": {"mask": "activation"},
    "offloaded": {"shared": False, "layers": "all", "offload_features": True},
}


def on(device):
    """Inputs and index of the pairs there."""
    inputs = {name: value.to(device) for name, value in PAIRS.inputs.items()}
    return inputs, ResponseTokens.from_padded(inputs["input_ids"], inputs["attention_mask"], PAIRS.prompt_lens)


def take_step(section, device, dtype=torch.float32):
    """Loss, token statistics, masks, and the gradients of policy and masks, in float32 on the CPU."""
    policy, reference = (decoder("llama", seed).to(device, dtype) for seed in (0, 1))
    step = make_step(section, policy, reference)
    step.policy.to(device)
    inputs, tokens = on(device)
    output = step(partial(step.policy, **inputs), tokens, runner(reference, inputs))
    output.loss.backward()
    found = {"loss": output.loss.detach(), **output.statistics._asdict(), **output.masks._asdict()}
    found |= {name: p.grad for name, p in step.policy.named_parameters() if p.grad is not None}
    return {name: value.float().cpu() for name, value in found.items()}


@pytest.mark.parametrize("section", SECTIONS.values(), ids=SECTIONS)
def test_in_float32_it_is_that_of_the_cpu(section):
    expected, found = take_step(section, "cpu"), take_step(section, "cuda")
    assert len(found) > 20
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("section", SECTIONS.values(), ids=SECTIONS)
def test_in_bfloat16_it_is_near_that_of_float32(section):
    expected, found = take_step(section, "cuda"), take_step(section, "cuda", torch.bfloat16)
    assert found.keys() == expected.keys()
    assert [name for name, value in found.items() if not value.isfinite().all()] == []
    for name in ("loss", "policy_logps", "reference_logps", "expected_log_ratio"):
        allowed = 5e-2 * max(1.0, expected[name].abs().max().item())
        torch.testing.assert_close(found[name], expected[name], atol=allowed, rtol=0)


@pytest.mark.parametrize("expectation", ["reference", "policy", None])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("budget", [0, 70_000, None], ids=["kept: none", "kept: a chunk", "kept: all"])
def test_compiled_statistics_are_those_of_the_plain_code(expectation, dtype, budget, monkeypatch, caplog):
    """And they are compiled: what falls back says so."""
    generator = torch.Generator().manual_seed(0)
    hidden, weight, ref_hidden, ref_weight = (
        torch.randn(*shape, generator=generator).to("cuda", dtype) for shape in ((50, 32), (1000, 32)) * 2
    )
    labels = torch.randint(0, 1000, (50,), generator=generator).cuda()

    def statistics_and_gradients():
        leaves = [tensor.clone().requires_grad_() for tensor in (hidden, weight)]
        given = (ref_hidden, ref_weight) if expectation else (None, None)
        options = {"expectation": expectation, "chunk_size": 16, "logits_budget": budget}
        found = token_statistics(*leaves, *given, labels, **options)
        sum(values.sum() for values in found if values is not None).backward()
        return [*(values for values in found if values is not None), *(leaf.grad.float() for leaf in leaves)]

    compiled = statistics_and_gradients()
    assert "not fused" not in caplog.text
    monkeypatch.setattr(divergence, "_fuses", lambda device: False)
    for found, expected in zip(compiled, statistics_and_gradients(), strict=True):
        # 16-bit gradients are rounded from sums that differ in their last bit of float32.
        allowed = 1e-4 if dtype == torch.float32 else 2e-2 * expected.abs().max().item()
        torch.testing.assert_close(found, expected, atol=allowed, rtol=1e-4)


@pytest.mark.parametrize("offload", [False, True])
def test_offloaded_rows_lie_in_host_memory_until_a_mask_reads_them(offload):
    reference = decoder("llama", 1).cuda()
    inputs, tokens = on("cuda")
    wanted = make_step({"layers": "all"}, decoder("llama"), decoder("llama", 1)).policy.request
    features = collect_features(runner(reference, inputs), tokens, wanted, offload)
    assert features.hidden_states.device.type == ("cpu" if offload else "cuda")
    assert features.last_hidden.is_cuda and features.layer(0).is_cuda
    on_cpu = collect_features(runner(reference.cpu(), PAIRS.inputs), PAIRS.tokens, wanted)
    torch.testing.assert_close(features.hidden_states.cpu(), on_cpu.hidden_states, atol=1e-4, rtol=1e-3)
