"""Compiled functions against the same functions as written."""

import logging

import pytest
import torch

from sparsepo_plugin.fused import fused


def softmax_times(logits, ref_logits, scale, power):
    """Overwrites what it has made, as the functions of the hot path do."""
    weights = (logits - logits.amax(1, keepdim=True)).exp_()
    weights.div_(weights.sum(1, keepdim=True))
    return (weights if ref_logits is None else weights.mul_(ref_logits)).pow(power) * scale


def arguments(rows, columns, reference=True):
    g = torch.Generator().manual_seed(rows)
    logits, ref_logits = (torch.randn(rows, columns, generator=g) for _ in range(2))
    return logits, ref_logits if reference else None, torch.randn(rows, 1, generator=g), 2


@pytest.mark.parametrize("reference", [True, False])
def test_equals_plain_and_overwrites_nothing(tracer, reference):
    function = fused(softmax_times)
    for rows, columns in ((5, 30), (8, 70), (3, 11)):
        args = arguments(rows, columns, reference)
        before = args[0].clone()
        found = function(*args)
        assert torch.equal(args[0], before)
        # float32: kernels that are fused round in another order.
        torch.testing.assert_close(found, softmax_times(*args), atol=1e-6, rtol=1e-5)


def test_compiles_once_for_all_shapes(tracer):
    function = fused(softmax_times)
    torch._dynamo.utils.counters.clear()
    for rows, columns in ((5, 30), (8, 70), (3, 11), (1, 30), (2, 9)):
        function(*arguments(rows, columns))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


def test_falls_back_with_one_warning(monkeypatch, caplog):
    """The compiler's own way to fail: here a backend that raises, elsewhere a missing Triton or C compiler."""

    def backend(graph, inputs):
        raise RuntimeError("no kernel today")

    torch._dynamo.reset()
    compile = torch.compile
    monkeypatch.setattr(torch, "compile", lambda *args, **options: compile(*args, backend=backend, **options))
    function = fused(softmax_times)
    with caplog.at_level(logging.WARNING, "sparsepo_plugin"):
        for rows in (4, 6):
            args = arguments(rows, 20)
            expected = softmax_times(*args)
            assert torch.equal(function(*args), expected)
    (record,) = caplog.records
    assert "not fused" in record.message and "no kernel today" in record.message


def test_errors_of_the_arithmetic_itself_reach_the_caller(tracer):
    with pytest.raises(RuntimeError, match="shapes"):
        fused(lambda logits, ref_logits: logits @ ref_logits)(torch.ones(3, 4), torch.ones(3, 4))
