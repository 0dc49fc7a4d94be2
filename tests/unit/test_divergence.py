"""token_statistics against a plain float64 implementation differentiated by autograd.

Tolerances: in float64 both sides differ by rounding of sums over V only (1e-10). Below that the function computes in
float32 from the rounded inputs, so statistics of magnitude up to about 10 agree to 1e-5; a gradient is returned in the
input's dtype, so it is off by half a unit of that dtype's last place relative to the largest entry, and a bit more.
"""

from contextlib import nullcontext

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from sparsepo_plugin import SparsePOError, TokenStatistics, divergence, projection, token_statistics
from sparsepo_plugin.fused import fused

EXPECTATIONS = ("reference", "policy")
GRADIENT_TOLERANCE = {torch.float64: 1e-10, torch.float32: 2e-6, torch.bfloat16: 2**-8, torch.float16: 2**-11}


def plain(hidden, weight, bias, ref_hidden, ref_weight, ref_bias, labels, expectation):
    """Eq. 8 and 13 as they are written, over whole logits."""
    logps = torch.nn.functional.linear(hidden, weight, bias).log_softmax(-1)
    ref_logps = torch.nn.functional.linear(ref_hidden, ref_weight, ref_bias).log_softmax(-1).detach()
    over = ref_logps if expectation == "reference" else logps
    picked = [x.gather(1, labels[:, None]).squeeze(1) for x in (logps, ref_logps)]
    return TokenStatistics(*picked, (over.exp() * (logps - ref_logps)).sum(-1))


def inputs(rows=7, vocabulary=11, width=5, ref_width=5, dtype=torch.float64, bias="both", seed=0):
    """Arguments in the order of `plain`, all policy inputs asking for a gradient."""
    g = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=g, dtype=torch.float64).to(dtype)

    policy = [
        normal(rows, width),
        normal(vocabulary, width),
        normal(vocabulary) if bias in ("both", "policy") else None,
    ]
    ref_bias = normal(vocabulary) if bias in ("both", "reference") else None
    reference = [normal(rows, ref_width), normal(vocabulary, ref_width), ref_bias]
    for x in policy:
        if x is not None:
            x.requires_grad_()
    return [*policy, *reference, torch.randint(vocabulary, (rows,), generator=g)]


def run(args, expectation, chunk_size=None, logits_budget=None, collision=False):
    hidden, weight, bias, ref_hidden, ref_weight, ref_bias, labels = args
    return token_statistics(
        *(hidden, weight, ref_hidden, ref_weight, labels),
        policy_bias=bias,
        reference_bias=ref_bias,
        expectation=expectation,
        chunk_size=chunk_size,
        logits_budget=logits_budget,
        collision=collision,
    )


def in_double(args):
    """The same numbers in float64, as leaves of their own."""
    return [
        x if x is None or not torch.is_floating_point(x) else x.detach().double().requires_grad_(x.requires_grad)
        for x in args
    ]


def objective(stats, seed=1, one_mask=False):
    """A scalar in which each statistic of each token has a weight of its own, or r_t − e_t has one."""
    g = torch.Generator().manual_seed(seed)
    weights = torch.randn(3, len(stats[0]), generator=g, dtype=torch.float64)
    if one_mask:
        weights = weights[0] * torch.tensor([[1.0], [-1.0], [-1.0]])
    values = torch.stack([x.double() for x in stats if x is not None])
    return (values * weights[: len(values)]).sum()


def compare(args, expectation, chunk_size=None, logits_budget=None, one_mask=False):
    expected_args = in_double(args)
    stats, expected = run(args, expectation, chunk_size, logits_budget), plain(*expected_args, expectation)
    dtype = args[0].dtype
    assert {x.dtype for x in stats} == {torch.float64 if dtype == torch.float64 else torch.float32}
    value_tolerance = 1e-10 if dtype == torch.float64 else 1e-5
    for name, got, want in zip(stats._fields, stats, expected, strict=True):
        torch.testing.assert_close(got.double(), want, atol=value_tolerance, rtol=value_tolerance, msg=name)
    wanted = [x for x in args if x is not None and x.requires_grad]
    if not wanted:
        return
    grads = torch.autograd.grad(objective(stats, one_mask=one_mask), wanted)
    expected_grads = torch.autograd.grad(
        objective(expected, one_mask=one_mask), [x for x in expected_args if x is not None and x.requires_grad]
    )
    for got, want, x in zip(grads, expected_grads, wanted, strict=True):
        assert got.dtype == x.dtype
        scale = want.abs().max().item() if want.numel() else 1.0
        torch.testing.assert_close(got.double(), want, rtol=0, atol=GRADIENT_TOLERANCE[dtype] * (1 + scale))


@pytest.mark.parametrize("expectation", EXPECTATIONS)
@pytest.mark.parametrize("dtype", GRADIENT_TOLERANCE, ids=str)
@pytest.mark.parametrize("bias", ["both", "policy", "reference", "none"])
def test_equals_plain(expectation, dtype, bias):
    compare(inputs(dtype=dtype, bias=bias), expectation, chunk_size=3)


@settings(max_examples=40)
@given(
    rows=st.integers(0, 9),
    vocabulary=st.integers(1, 13),
    width=st.integers(1, 7),
    ref_width=st.integers(1, 7),
    chunk_size=st.one_of(st.none(), st.integers(1, 11)),
    logits_budget=st.integers(0, 2 * 9 * 13 * 8),
    expectation=st.sampled_from(EXPECTATIONS),
    bias=st.sampled_from(["both", "policy", "reference", "none"]),
)
def test_any_shape_equals_plain(rows, vocabulary, width, ref_width, chunk_size, logits_budget, expectation, bias):
    compare(inputs(rows, vocabulary, width, ref_width, bias=bias), expectation, chunk_size, logits_budget)


@pytest.mark.parametrize("expectation", EXPECTATIONS)
def test_gradcheck(expectation):
    """Finite differences, which know nothing of either implementation."""
    *policy, ref_hidden, ref_weight, ref_bias, labels = inputs(3, 4, 2, 3)

    def f(hidden, weight, bias):
        return torch.stack(run([hidden, weight, bias, ref_hidden, ref_weight, ref_bias, labels], expectation, 2))

    assert torch.autograd.gradcheck(f, policy)


@pytest.mark.parametrize("expectation", EXPECTATIONS)
@pytest.mark.parametrize("chunk_size", [1, 2, 3, 7, 8, 1000])
def test_chunk_size_does_not_matter(expectation, chunk_size):
    """float32, as trained; sums over rows are taken in another order, hence 1e-5 on gradients."""
    args = inputs(rows=7, vocabulary=50, dtype=torch.float32)
    stats, whole = run(args, expectation, chunk_size), run(args, expectation)
    for got, want in zip(stats, whole, strict=True):
        torch.testing.assert_close(got, want, atol=1e-6, rtol=1e-6)
    for got, want in zip(
        torch.autograd.grad(objective(stats), args[:3]), torch.autograd.grad(objective(whole), args[:3]), strict=True
    ):
        torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("expectation", EXPECTATIONS)
@pytest.mark.parametrize("wants", ["100", "010", "001", "110", "011", "101", "000"])
def test_only_some_inputs_want_a_gradient(expectation, wants):
    args = inputs()
    for x, want in zip(args[:3], wants, strict=True):
        x.requires_grad_(want == "1")
    compare(args, expectation, chunk_size=2)


@pytest.mark.parametrize("expectation", [*EXPECTATIONS, None])
@pytest.mark.parametrize("reference", [True, False])
@pytest.mark.parametrize("chunk_size", [1, 3, None])
@pytest.mark.parametrize("logits_budget", [0, 11 * 3 * 8, "100%"])
def test_collision(expectation, reference, chunk_size, logits_budget):
    """log Σ_v π(v)² of whole logits; nothing else changes by it, and no gradient passes through it."""
    args = inputs()
    hidden, weight, bias, *of_reference, labels = args
    if not reference:
        of_reference, expectation = [None] * 3, None
    args = [hidden, weight, bias, *of_reference, labels]
    options = args, expectation, chunk_size, logits_budget
    plain, stats = run(*options), run(*options, collision=True)
    for name in plain._fields:
        assert (one := getattr(plain, name)) is (other := getattr(stats, name)) is None or torch.equal(one, other)
    whole = torch.nn.functional.linear(hidden, weight, bias).softmax(-1).square().sum(-1).log()
    torch.testing.assert_close(stats.log_collision, whole, atol=1e-10, rtol=0)
    grads = [
        torch.autograd.grad(objective(plain), args[:3]),
        torch.autograd.grad(objective(stats[:-1]) + stats.log_collision.sum(), args[:3]),
    ]
    for got, want in zip(*grads, strict=True):
        assert torch.equal(got, want)


def test_collision_of_confident_models():
    """From −log V of a uniform distribution to 0 of a certain one, whose other probabilities underflow."""
    hidden, weight, *_, labels = inputs(rows=3, vocabulary=11, dtype=torch.float32, bias="none")
    for scale, expected in ((0, -torch.tensor(11.0).log()), (1e4, torch.tensor(0.0))):
        stats = token_statistics(
            scale * hidden.detach(), weight.detach(), None, None, labels, expectation=None, collision=True
        )
        torch.testing.assert_close(stats.log_collision, expected.expand(3), atol=1e-6, rtol=0)


def test_reference_gets_no_gradient():
    args = inputs()
    for x in args[3:6]:
        x.requires_grad_()
    stats = run(args, "reference")
    grads = torch.autograd.grad(objective(stats), args[3:6], allow_unused=True)
    assert grads == (None, None, None)


@pytest.mark.parametrize("expectation", EXPECTATIONS)
def test_tied_weight_gets_both_gradients(expectation):
    """One parameter is embedding and head: the gradient is the sum of both uses."""
    *_, bias, ref_hidden, ref_weight, ref_bias, labels = inputs(6, 9, 4, 4)
    weight = inputs(6, 9, 4, 4, seed=3)[1]
    ids = torch.tensor([1, 5, 1, 0, 8, 3])

    def through(function):
        hidden = torch.nn.functional.embedding(ids, weight).tanh()
        stats = function([hidden, weight, bias, ref_hidden, ref_weight, ref_bias, labels])
        return torch.autograd.grad(objective(stats), weight)[0]

    ours = through(lambda args: run(args, expectation, 4))
    torch.testing.assert_close(ours, through(lambda args: plain(*args, expectation)), atol=1e-10, rtol=0)


def test_kl_of_equal_models_is_zero():
    hidden, weight, bias, *_, labels = inputs(dtype=torch.float32)
    for expectation in EXPECTATIONS:
        stats = run([hidden, weight, bias, hidden.detach(), weight.detach(), bias.detach(), labels], expectation)
        assert torch.equal(stats.expected_log_ratio, torch.zeros(7))
        assert torch.equal(stats.policy_logps, stats.reference_logps)


def test_sign_of_the_expectations():
    """e = -KL(ref||pi) <= 0 for X = reference, KL(pi||ref) >= 0 for X = policy."""
    args = inputs(rows=20)
    assert (run(args, "reference").expected_log_ratio < 0).all()
    assert (run(args, "policy").expected_log_ratio > 0).all()


@pytest.mark.parametrize("expectation", EXPECTATIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_confident_models_stay_finite(expectation, dtype):
    """Logits hundreds apart: most probabilities underflow to zero, and 0·log 0 must not be NaN."""
    args = inputs(dtype=dtype)
    args[0] = (args[0].detach() * 100).requires_grad_()
    args[3] = args[3] * 100
    stats = run(args, expectation)
    grads = torch.autograd.grad(objective(stats), args[:3])
    assert all(torch.isfinite(x).all() for x in (*stats, *grads))


def test_policy_and_reference_may_differ_in_dtype():
    """A bf16 policy against a float32 reference, as when only the policy was cast."""
    args = inputs(dtype=torch.float32)
    low = [x.detach().bfloat16().requires_grad_() for x in args[:3]]
    compare([*low, *args[3:]], "reference", 2)


def test_float64_of_either_model_is_kept():
    args = inputs(dtype=torch.float64)
    low = [x.detach().float().requires_grad_() for x in args[:3]]
    for mixed in ([*low, *args[3:]], [*args[:3], *(x.float() for x in args[3:6]), args[6]]):
        stats = run(mixed, "reference")
        grads = torch.autograd.grad(objective(stats), mixed[:3])
        assert [g.dtype for g in grads] == [x.dtype for x in mixed[:3]]


def test_autocast_does_not_lower_the_precision():
    args = inputs(dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        stats = run(args, "reference")
        grads = torch.autograd.grad(objective(stats), args[:3])
    expected = run(args, "reference")
    for got, want in zip(stats, expected, strict=True):
        assert torch.equal(got, want)
    for got, want in zip(grads, torch.autograd.grad(objective(expected), args[:3]), strict=True):
        assert torch.equal(got, want)


class _Operations(TorchDispatchMode):
    """Names of all operations, and the tensors' shapes that they returned, by dtype."""

    def __init__(self):
        super().__init__()
        self.names, self.shapes = [], {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.names.append(str(func))
        for x in out if isinstance(out, tuple | list) else [out]:
            if isinstance(x, torch.Tensor):
                self.shapes.setdefault(x.dtype, []).append(x.shape)
        return out

    @property
    def largest(self):
        """Most elements of any tensor."""
        return max(shape.numel() for shapes in self.shapes.values() for shape in shapes)


@pytest.mark.parametrize("expectation", EXPECTATIONS)
def test_no_tensor_of_rows_times_vocabulary(expectation):
    """Forward and backward stay at chunk·V elements; what is saved between them is inputs only."""
    rows, vocabulary, width, chunk = 64, 300, 4, 5
    args = inputs(rows, vocabulary, width, width, dtype=torch.float32)
    saved = []
    with (
        _Operations() as operations,
        torch.autograd.graph.saved_tensors_hooks(lambda x: (saved.append(x.numel()), x)[1], lambda x: x),
    ):
        stats = run(args, expectation, chunk, logits_budget=0)
        torch.autograd.grad(torch.stack(stats).sum(), args[:3])
    assert operations.largest == max(chunk * vocabulary, vocabulary * width)
    assert max(saved) == vocabulary * width
    assert sum(saved) <= 2 * (rows * width + vocabulary * width + vocabulary) + 4 * rows


def test_default_chunk_bounds_the_logits():
    """On CPU three [rows, V] buffers of float32 share 48 MiB, but a chunk has at least 64 rows: here 128 and 64."""
    for vocabulary, rows in ((1 << 15, 128), (1 << 17, 64)):
        with _Operations() as operations:
            shape = {"rows": 200, "vocabulary": vocabulary, "width": 1, "ref_width": 1}
            run(inputs(**shape, dtype=torch.float32, bias="none"), "reference")
        assert operations.largest == rows * vocabulary


def test_little_memory_makes_smaller_chunks_unless_runs_must_repeat(monkeypatch):
    """A twelfth of an eighth of what is free, in rows; the order of sums would follow it."""
    monkeypatch.setattr(projection, "free_memory", lambda device: 8 * 12 * 1000 * 100)
    assert projection.rows_per_chunk(1000, torch.device("cpu")) == 100
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: True)
    assert projection.rows_per_chunk(1000, torch.device("cpu")) == (48 << 20) // 12000


FUSED = ("_fused_summary", "_fused_grad_logits")


def fused_anew(name):
    """One of `FUSED`, not compiled yet."""
    return fused(getattr(divergence, name).__wrapped__)


@pytest.mark.parametrize(("rows", "chunk_size"), [(7, 3), (6, None), (1, None)])
@pytest.mark.parametrize("expectation", EXPECTATIONS)
@pytest.mark.usefixtures("tracer")
def test_fused_equals_plain(expectation, rows, chunk_size, monkeypatch):
    """What runs on a GPU, as a compiler sees it."""
    calls = []
    for name in FUSED:
        compiled = fused_anew(name)
        spy = lambda *args, f=compiled: (calls.append(f.__name__), f(*args))[1]  # noqa: E731
        monkeypatch.setattr(divergence, name, spy)
    monkeypatch.setattr(divergence, "_fuses", lambda device: True)
    compare(inputs(rows), expectation, chunk_size)
    chunks = -(-rows // (chunk_size or rows))
    assert calls == [name for name in FUSED for _ in range(chunks)]


@pytest.mark.usefixtures("tracer")
def test_fused_collision_equals_plain(monkeypatch):
    args = inputs()
    expected = run(args, "reference", 3, collision=True)
    monkeypatch.setattr(divergence, "_fused_summary", fused_anew("_fused_summary"))
    monkeypatch.setattr(divergence, "_fuses", lambda device: True)
    for got, want in zip(run(args, "reference", 3, collision=True), expected, strict=True):
        torch.testing.assert_close(got, want, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("expectation", [*EXPECTATIONS, None])
@pytest.mark.usefixtures("tracer")
def test_two_graphs_serve_all_batches(expectation, monkeypatch):
    """One chunk, then several, with a short last one: nothing is compiled again in the middle of a run."""
    for name in FUSED:
        monkeypatch.setattr(divergence, name, fused_anew(name))
    monkeypatch.setattr(divergence, "_fuses", lambda device: True)
    torch._dynamo.utils.counters.clear()
    for rows, vocabulary, chunk_size in ((6, 30, 100), (11, 30, 4), (9, 50, 8), (20, 50, 20)):
        hidden, weight, _, ref_hidden, ref_weight, _, labels = inputs(rows, vocabulary)
        reference = (ref_hidden, ref_weight) if expectation else (None, None)
        stats = token_statistics(hidden, weight, *reference, labels, expectation=expectation, chunk_size=chunk_size)
        sum(x.sum() for x in stats if x is not None).backward()
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2


@pytest.mark.parametrize(
    ("expectation", "fused_by"),
    [
        *((expectation, by) for expectation in EXPECTATIONS for by in (None, "tracer")),
        pytest.param("reference", "compiler", marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 2**-7), (torch.float16, 2**-9)])
def test_confident_tokens_on_a_gpu(expectation, dtype, tolerance, fused_by, monkeypatch, request):
    """Row by row, where 1 − π is small: the label's gradient is what is left of two numbers near 1 before rounding.

    The GPU's road with its one operation that a CPU lacks, a product of 16-bit matrices in float32, written out. Each
    entry of the gradient of the logits is rounded once, by 2^-9 or 2^-12 of itself, and so is the result.
    """
    if fused_by:
        request.getfixturevalue(fused_by)
    mm = torch.mm
    monkeypatch.setattr(
        *(torch, "mm"),
        lambda a, b, out_dtype=None, out=None: mm(a.float(), b.float()) if out_dtype else mm(a, b, out=out),
    )
    for name in FUSED:
        monkeypatch.setattr(divergence, name, fused_anew(name))
    monkeypatch.setattr(projection, "is_gpu", lambda device: True)
    monkeypatch.setattr(divergence, "_fuses", lambda device: fused_by is not None)
    monkeypatch.setattr(projection, "free_memory", lambda device: 1 << 30)
    _, weight, _, ref_hidden, ref_weight, _, labels = inputs(12, 200, 16, 16, dtype, bias="none")
    # Hidden states along the label's own weight, ever further: π from 0.3 to nearly 1.
    along = weight.detach()[labels].double()
    scale = torch.linspace(6, 20, 12).double()[:, None] / along.square().sum(1, keepdim=True)
    args = [(along * scale).to(dtype).requires_grad_(), weight, None, ref_hidden, ref_weight, None, labels]
    exact = in_double(args)
    stats, expected = run(args, expectation), plain(*exact, expectation)
    assert 0.99 < expected.policy_logps.exp().max() < 1
    for stat, want in ((stats.policy_logps, expected.policy_logps), (stats[2], expected[2])):
        torch.testing.assert_close(stat.double(), want, atol=1e-5, rtol=1e-5)
        (got,) = torch.autograd.grad(stat.sum(), args[0], retain_graph=True)
        (true,) = torch.autograd.grad(want.sum(), exact[0], retain_graph=True)
        error = (got.double() - true).norm(dim=1) / true.norm(dim=1)
        assert error.max() < tolerance, error


@pytest.mark.parametrize("expectation", EXPECTATIONS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("keeps", [False, True])
def test_gpus_multiply_16_bits_as_they_are(expectation, dtype, keeps, monkeypatch):
    """On tensors without data: shapes and dtypes of the GPU's road, and that no weight is converted on it."""
    monkeypatch.setattr(projection, "is_gpu", lambda device: device.type == "meta")
    monkeypatch.setattr(divergence, "_fuses", lambda device: False)
    monkeypatch.setattr(divergence, "_not_zero", lambda coefficients: [0, 1])  # there is nothing to look at
    monkeypatch.setattr(torch, "autocast", lambda *args, **options: nullcontext())  # it knows no such device
    rows, vocabulary, width = 9, 40, 6
    args = [x.detach().to("meta").requires_grad_(x.requires_grad) for x in inputs(rows, vocabulary, width, 5, dtype)]
    with _Operations() as operations:
        stats = run(args, expectation, 4, "1GB" if keeps else 0)
    assert {x.dtype for x in stats} == {torch.float32}
    assert (vocabulary, width) not in operations.shapes[torch.float32]
    assert operations.names.count("aten.mm.dtype") == 2 * 3
    assert "aten.mm.default" not in operations.names
    with operations:
        grads = torch.autograd.grad(torch.stack(stats).sum(), args[:3])
    assert operations.names.count("aten.mm.dtype") == 2 * 3 + (0 if keeps else 2 * 3) + 2 * 3
    assert [(g.dtype, g.shape) for g in grads] == [(x.dtype, x.shape) for x in args[:3]]


def test_what_is_kept_is_what_there_is_room_for():
    """Chunks of 3, 3 and 1 rows of the reference first, then of the policy; whole chunks only, 11 float64 a row."""
    for budget, reference, policy in (
        *((0, [], []), (263, [], []), (264, [3], []), (527, [3], []), (615, [3, 3], []), (616, [3, 3, 1], [])),
        *((880, [3, 3, 1], [3]), ("1MB", [3, 3, 1], [3, 3, 1])),
    ):
        assert kept(inputs(bias="none"), budget) == policy + reference


def test_what_the_backward_does_not_read_is_not_kept():
    """The reference's logits without X, and any without a gradient."""
    assert kept(inputs(), "1MB", expectation=None) == [3, 3, 1]
    assert kept(in_double(x if x is None else x.detach() for x in inputs()), "1MB") == []
    with torch.no_grad():
        assert kept(inputs(), "1MB") == []


def kept(args, budget, expectation="reference"):
    """Rows of every tensor of logits that is saved for the backward."""
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: (saved.append(x), x)[1], lambda x: x):
        run(args, expectation, 3, budget)
    return [len(x) for x in saved if x.shape[1:] == (11,)]


# Of 7 rows in chunks of 3, 3 and 1, V = 11, float32: nothing, a chunk of the reference, all of it, and one more, all.
BUDGETS = (0, 132, 308, 440, "1MB")


@pytest.mark.parametrize("expectation", [*EXPECTATIONS, None])
@pytest.mark.parametrize("wants", ["111", "100", "010", "001"])
@pytest.mark.parametrize("bias", ["both", "none"])
@pytest.mark.parametrize("one_mask", [False, True])
def test_the_budget_does_not_matter(expectation, wants, bias, one_mask):
    """Bit for bit, also with a frozen head (100), and where a_t = m·(r_t − e_t) leaves π out of the gradient."""
    args, found = inputs(dtype=torch.float32, bias=bias), []
    for x, want in zip(args[:3], wants, strict=True):
        if x is not None:
            x.requires_grad_(want == "1")
    if not (wanted := [x for x in args[:3] if x is not None and x.requires_grad]):
        return
    for budget in BUDGETS:
        stats = run(args, expectation, 3, budget)
        loss = objective(stats, one_mask=one_mask)
        # Twice: what is kept is still there.
        torch.autograd.grad(loss, wanted, retain_graph=True)
        found.append([*stats[: 2 + (expectation is not None)], *torch.autograd.grad(loss, wanted)])
    for other in found[1:]:
        assert all(map(torch.equal, other, found[0]))


@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("wants", ["111", "100"])
@pytest.mark.parametrize("expectation", EXPECTATIONS)
@pytest.mark.parametrize("one_mask", [False, True])
def test_every_budget_equals_plain(expectation, wants, one_mask, budget):
    args = inputs(dtype=torch.float32)
    for x, want in zip(args[:3], wants, strict=True):
        x.requires_grad_(want == "1")
    compare(args, expectation, 3, budget, one_mask)


@pytest.mark.parametrize("budget", [0, "1MB"])
@pytest.mark.parametrize(
    ("weights", "read"),
    [
        ((1, 0, 2), {"policy", "reference"}),
        ((1, 0, -1), {"reference"}),
        ((1, 0, 0), {"policy"}),
        ((0, 0, 0), {"policy"}),
    ],
)
def test_the_backward_reads_only_what_the_gradient_depends_on(weights, read, budget, monkeypatch):
    """(g_0 + g_2)·π and g_2·π_ref: neither where its factor is 0 for every token."""
    args = inputs()
    stats, names = run(args, "reference", 3, budget), set()
    logits = projection.Projection.logits

    def watched(self, number):
        names.add("policy" if self.hidden is args[0] or torch.equal(self.hidden, args[0]) else "reference")
        return logits(self, number)

    monkeypatch.setattr(projection.Projection, "logits", watched)
    sum(weight * values.sum() for weight, values in zip(weights, stats, strict=True)).backward()
    assert names == read


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"expectation": "both"}, "expectation: 'both', allowed are reference and policy"),
        ({"chunk_size": 0}, "chunk_size: 0, must be at least 1"),
        ({"logits_budget": "half"}, "logits_budget: 'half', must be a number of bytes"),
    ],
)
def test_bad_options_are_refused(changes, message):
    with pytest.raises(SparsePOError, match=message):
        run(inputs(), **{"expectation": "reference", **changes})


@pytest.mark.parametrize("index", [0, 3, 4, 6], ids=["policy rows", "reference rows", "vocabulary", "labels"])
def test_shapes_that_disagree_are_refused(index):
    args = inputs()
    args[index] = args[index][:-1]
    with pytest.raises(SparsePOError, match="must agree"):
        run(args, "reference")
