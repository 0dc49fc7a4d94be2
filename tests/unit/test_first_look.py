"""What a mask of one's own may do wrong, and the one line that it gets on the first batch.

Every mask here is written as a user would write it, in a module of its own, and runs through the step.
"""

import sys
import textwrap
from functools import partial

import pytest
import torch
from tiny import TWO_PAIRS, Pairs, decoder, make_step, runner

from sparsepo_plugin import SparsePOError

PAIRS = Pairs(TWO_PAIRS)
MASK = """
import torch
from sparsepo_plugin import TokenMask

class Mine(TokenMask):
    needs = frozenset({{"last_hidden", "activations", "hidden_states"}})

    def __init__(self, hidden_size: int, *, scale: float = 1.0):
        super().__init__()
        {init}

    def forward(self, features, tokens):
        ones = torch.ones(len(tokens))
        {forward}
"""


@pytest.fixture
def take(tmp_path, monkeypatch):
    """Steps with a mask whose constructor and forward have these lines."""

    def take(forward="return ones", init="pass", steps=1, section=None, text=MASK):
        (tmp_path / "masks_of_mine.py").write_text(
            text.format(init=init, forward=textwrap.indent(forward, 8 * " ")[8:])
        )
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.delitem(sys.modules, "masks_of_mine", raising=False)
        reference = decoder("llama", seed=1)
        step = make_step({"mask": "masks_of_mine:Mine", **(section or {})}, decoder("llama"), reference)
        for number in range(steps):
            output = step(
                partial(step.policy, **PAIRS.inputs), PAIRS.tokens, runner(reference, PAIRS.inputs), number=number
            )
        return output

    return take


def refused(take, **lines) -> str:
    with pytest.raises(SparsePOError) as caught:
        take(**lines)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("forward", "says"),
    [
        ("return None", "returns NoneType, one floating weight for each of the 13 response tokens is needed"),
        ("return ones[:, None]", r"returns shape [13, 1], one floating weight for each of the 13"),
        ("return ones[1:]", "returns shape [12]"),
        ("return ones.sum()", "returns shape []"),
        ("return ones.long()", "returns torch.int64, one floating weight"),
        ("return ones.bool()", "returns torch.bool"),
        ("return ones.to('meta')", "returns weights on meta, the tokens are on cpu"),
        ("return ones / 0", "returns weights that are not finite, though all that it reads is"),
        ("return ones * float('nan')", "returns weights that are not finite"),
        ("return -0.25 * ones", "returns a negative weight (-0.25); a class whose weights may be says signed = True"),
        ("tokens.labels.zero_()\nreturn ones", "changes tokens.labels, which masks may only read"),
        ("tokens.labels.data.fill_(3)\nreturn ones", "changes tokens.labels"),
        ("tokens.position.copy_(tokens.position.flip(0))\nreturn ones", "changes tokens.position"),
        ("features.last_hidden.mul_(0.5)\nreturn ones", "changes features.last_hidden"),
        ("features.hidden_states[0] = 0\nreturn ones", "changes features.hidden_states"),
        ("features.activations = None\nreturn ones", "changes features.activations"),
        ("features.last_hidden = features.last_hidden.clone()\nreturn ones", "changes features.last_hidden"),
    ],
)
def test_what_it_returns_and_leaves(take, forward, says):
    assert refused(take, forward=forward).startswith(f"reward mask 'masks_of_mine:Mine' {says}")


def test_the_mask_of_the_right_role_is_named(take):
    line = refused(take, forward="return -ones", section={"mask": "uniform", "kl": {"mask": "masks_of_mine:Mine"}})
    assert line.startswith("kl mask 'masks_of_mine:Mine' returns a negative weight")


def test_signed_weights_are_allowed_to_a_class_that_says_so(take):
    assert take(init="self.signed = True", forward="return -0.25 * ones").masks.reward.tolist() == [-0.25] * 13


def test_later_batches_cost_no_look(take):
    """The look is at the first batch alone: it needs numbers of the device."""
    grows = "self.calls = getattr(self, 'calls', 0) + 1\nreturn ones * (1 if self.calls == 1 else -1)"
    assert take(forward=grows, steps=2).masks.reward.tolist() == [-1.0] * 13


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        ({"init": "self.weight = missing"}, "mask 'masks_of_mine:Mine' cannot be made: NameError: name 'missing'"),
        ({"forward": "return ones @ torch.ones(3)"}, "reward mask 'masks_of_mine:Mine' failed: RuntimeError: "),
        ({"forward": "return features.last_hiden"}, "reward mask 'masks_of_mine:Mine' failed: AttributeError: "),
        (
            {"text": MASK + "\n1 / 0"},
            "sparsepo.mask: mask 'masks_of_mine:Mine' cannot be imported: ZeroDivisionError: ",
        ),
        ({"text": MASK + "\nimport sys; sys.exit(0)"}, "mask 'masks_of_mine:Mine' cannot be imported: SystemExit: 0"),
        (
            {"text": MASK + "\nclass Broken("},
            "sparsepo.mask: mask 'masks_of_mine:Mine' cannot be imported: SyntaxError: ",
        ),
        (
            {"text": "import no_such_library"},
            "cannot be imported: ModuleNotFoundError: No module named 'no_such_library'",
        ),
    ],
)
def test_a_fault_is_one_line_with_its_place(take, tmp_path, lines, says):
    line = refused(take, **lines)
    assert says in line
    text = (tmp_path / "masks_of_mine.py").read_text().splitlines()
    broken = ("missing", "torch.ones(3)", "last_hiden", "1 / 0", "sys.exit", "class Broken", "no_such_library")
    (number,) = [number for number, row in enumerate(text, start=1) if any(word in row for word in broken)]
    assert f"({tmp_path}/masks_of_mine.py:{number})" in line


def test_needs_that_the_class_does_not_declare(take):
    """Whether a reference is loaded is decided by the class, before there is an instance."""
    line = refused(take, init="self.needs = frozenset({'logps', 'oracle_logps'})")
    assert line.startswith(
        "mask 'masks_of_mine:Mine' needs logps, oracle_logps: its class must declare all of its `needs`"
    )


def test_an_oracle_that_no_option_names(take):
    line = refused(take, text=MASK.replace('{{"last_hidden", "activations", "hidden_states"}}', '{{"oracle_logps"}}'))
    assert line == "mask 'masks_of_mine:Mine' needs oracle_logps and has no option `oracle` that names the model"


def test_a_model_that_is_broken_is_not_the_masks_fault():
    reference = decoder("llama", seed=1)
    reference.model.embed_tokens.weight.data.fill_(torch.nan)
    step = make_step({}, decoder("llama"), reference)
    with pytest.raises(
        SparsePOError, match=r"log-probabilities of the reference.*weight model.embed_tokens.weight is not"
    ):
        step(partial(step.policy, **PAIRS.inputs), PAIRS.tokens, runner(reference, PAIRS.inputs))


# A plain layer on what the reference says.

LINEAR = """
import torch
from sparsepo_plugin import TokenMask

class Mine(TokenMask):
    needs = frozenset({{"last_hidden", "activations", "hidden_states"}})

    def __init__(self, hidden_size: int, num_layers: int):
        super().__init__()
        self.of_hidden = torch.nn.Linear(hidden_size, 1)
        self.of_layers = torch.nn.Linear(hidden_size, 1)
        self.of_sites = torch.nn.Linear(3 * num_layers, 1)

    def forward(self, features, tokens):
        sums = self.of_hidden(features.last_hidden) + self.of_sites(features.activations.T)
        return (sums + self.of_layers(features.layer(1)) + self.of_layers(features.hidden_states[2])).sigmoid()[:, 0]
"""


@pytest.mark.parametrize("reference_dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("mask_dtype", [torch.float32, torch.bfloat16])
def test_a_linear_layer_reads_features_of_any_dtype(tmp_path, monkeypatch, mask_dtype, reference_dtype):
    """As an engine casts all parameters, or none: the features follow those of the mask."""
    (tmp_path / "masks_of_mine.py").write_text(LINEAR.format())
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "masks_of_mine", raising=False)
    reference = decoder("llama", seed=1).to(reference_dtype)
    step = make_step({"mask": "masks_of_mine:Mine"}, decoder("llama").to(reference_dtype), reference)
    step.policy.masks.to(mask_dtype)
    out = step(partial(step.policy, **PAIRS.inputs), PAIRS.tokens, runner(reference, PAIRS.inputs))
    out.loss.backward()
    assert out.masks.reward.dtype == torch.float32
    assert all(parameter.grad.abs().max() > 0 for parameter in step.policy.masks.parameters())
