"""Masks and objectives of third parties: what fails on the first batch fails before training, in one line."""

import pytest

HEAD = """
import sys
import torch
from sparsepo_plugin import MASKS, OBJECTIVES, Objective, ObjectiveOutput, TokenMask
"""


def mask(body: str, init: str = "super().__init__()", options: str = "", extra: str = "") -> str:
    """A module with a mask `Own`."""
    return f"""{HEAD}
class Own(TokenMask):
    {extra or "pass"}
    def __init__(self{options}):
        {init}
    def forward(self, features, tokens):
        {body}
"""


ONES = "return torch.ones(len(tokens))"
OWN = "super().__init__(); self.w = torch.nn.Parameter(torch.ones(1))"
LAZY = "super().__init__(); self.w = torch.nn.LazyLinear(1)"
PLAIN = {"l1_reward": None, "l1_kl": None, "mask_lr": None, "shared": None}


@pytest.mark.parametrize(
    ("code", "says"),
    [
        (mask("return None"), "returns NoneType, one floating weight for each of the 10 response tokens is needed"),
        (mask("return [1.0] * len(tokens)"), "returns list, one floating weight"),
        (mask("return 1.0"), "returns float, one floating weight"),
        (mask("return torch.ones(len(tokens), 1)"), "returns shape [10, 1], one floating weight"),
        (mask("return torch.ones(3)"), "returns shape [3], one floating weight"),
        (mask("return torch.ones(())"), "returns shape [], one floating weight"),
        (mask("return torch.ones(len(tokens), dtype=int)"), "returns torch.int64, one floating weight"),
        (mask("return torch.ones(len(tokens), dtype=bool)"), "returns torch.bool, one floating weight"),
        (
            mask("return torch.ones(len(tokens), dtype=torch.complex64)"),
            "returns torch.complex64, one floating",
        ),
        (mask("return torch.ones(len(tokens), device='meta')"), "returns weights on meta, the tokens are on cpu"),
        (mask("return -torch.ones(len(tokens))"), "returns a negative weight (-1); a class whose weights may be says"),
        (mask("return torch.full((len(tokens),), float('nan'))"), "returns weights that are not finite"),
        (mask("return torch.full((len(tokens),), float('inf'))"), "returns weights that are not finite"),
        (mask(f"tokens.labels.zero_(); {ONES}"), "changes tokens.labels, which masks may only read"),
        (mask(f"tokens.labels = tokens.labels.clone(); {ONES}"), "failed: FrozenInstanceError: cannot assign to"),
        (mask(f"features.last_hidden.mul_(2); {ONES}"), "changes features.last_hidden, which masks may only read"),
        (mask("raise ValueError('no\\nweights')"), "failed: ValueError: no weights"),
        (mask("return features.nothing"), "failed: AttributeError: 'ReferenceFeatures' object has no attribute"),
        (mask("return features.hidden_states[0, :, 0]"), "failed: TypeError: 'NoneType' object is not subscriptable"),
        (mask("assert False"), "failed: AssertionError ("),
        (mask("return torch.ones(7) + torch.ones(len(tokens))"), "failed: RuntimeError: The size of tensor a (7)"),
        (mask("sys.exit(0)"), "failed: SystemExit: 0"),
        (mask(ONES, init="raise KeyError('x')"), "mask 'own_{}:Own' cannot be made: KeyError: 'x'"),
        (mask(ONES, init="super().__init__(); 1 / 0"), "cannot be made: ZeroDivisionError: division by zero"),
        (mask(ONES, init="sys.exit(0)"), "cannot be made: SystemExit: 0"),
        (mask(ONES, init="self.weight = torch.nn.Parameter(torch.ones(1))"), "cannot be made: AttributeError: cannot"),
        (mask(ONES, init="pass"), "cannot be made: its constructor does not call super().__init__()"),
        (mask(ONES, extra="needs = 'hidden_states'"), "own_{}:Own has needs of str, a frozenset of names is needed"),
        (mask(ONES, extra="needs = frozenset({'activations'}); sites = ('thoughts',)"), "has no thoughts site"),
        (mask(ONES, options=", rate: 'NoSuchType' = 1"), "NameError: name 'NoSuchType' is not defined"),
        (mask(ONES, options=", rate: float"), "sparsepo.rate is needed: it has no default"),
        (mask(ONES, extra="needs = frozenset({'thoughts'})"), "mask 'own_{}:Own' needs thoughts"),
        (mask(ONES, extra="needs = frozenset({'oracle_logps'})"), "needs oracle_logps and has no option `oracle`"),
        (
            mask("return self.w(features.last_hidden)[:, 0]", init=LAZY),
            "has parameters that a first batch would shape",
        ),
        (mask(ONES, init=OWN), "has parameters and returns weights without a gradient by them"),
        (mask(f"{ONES} * self.w.detach()", init=OWN), "has parameters and returns weights without a gradient by them"),
        (f"{HEAD}\nclass Own(TokenMask): pass", "failed: NotImplementedError"),
        (f"{HEAD}\nclass Own: pass", "own_{}:Own is not a sparsepo_plugin.TokenMask"),
        (f"{HEAD}\nclass Own(torch.nn.Module): pass", "own_{}:Own is not a sparsepo_plugin.TokenMask"),
        (f"{HEAD}\ndef Own(): pass", "mask 'own_{}:Own' cannot be imported: own_{} has no class 'Own'"),
        (f"{HEAD}\nOwn = 3", "mask 'own_{}:Own' cannot be imported: own_{} has no class 'Own'"),
        ("", "mask 'own_{}:Own' cannot be imported: own_{} has no class 'Own'"),
        ("class Own(", "mask 'own_{}:Own' cannot be imported: SyntaxError: '(' was never closed"),
        ("\tx = 1", "cannot be imported: IndentationError: unexpected indent"),
        ("x = '\0'", "cannot be imported: SyntaxError: source code string cannot contain null bytes"),
        ("import no_such_package", "cannot be imported: ModuleNotFoundError: No module named 'no_such_package'"),
        ("from sparsepo_plugin import Nothing", "cannot be imported: ImportError: cannot import name 'Nothing'"),
        ("1 / 0", "cannot be imported: ZeroDivisionError: division by zero ("),
        ("import sys; sys.exit(0)", "cannot be imported: SystemExit: 0"),
        ("exit()", "cannot be imported: SystemExit"),
        ("raise BaseException('stop')", "cannot be imported: BaseException: stop"),
        ("raise GeneratorExit", "cannot be imported: GeneratorExit"),
        ("raise RecursionError('deep')", "cannot be imported: RecursionError: deep"),
    ],
    ids=lambda text: " ".join(text.replace(HEAD, "").split())[-60:].replace("\0", "0"),
)
def test_masks(refused, request, code, says):
    number = request.node.callspec.indices["code"]  # each its own module: Python keeps those that it has imported
    section = {**PLAIN, "mask": f"own_{number}:Own"}
    line = refused((says.replace("{}", str(number)),), over={"sparsepo": section}, files={f"own_{number}.py": code})
    assert "Traceback" not in line


def test_a_learning_rate_of_frozen_parameters(refused):
    code = mask(f"{ONES} * self.w", init=f"{OWN}.requires_grad_(False)")
    section = {**PLAIN, "mask": "own_frozen:Own", "mask_lr": 0.1}
    says = "sparsepo.mask_lr has no effect: mask 'own_frozen:Own' has nothing to learn"
    refused((says,), over={"sparsepo": section}, files={"own_frozen.py": code})


def objective(body: str, init: str = "super().__init__()", extra: str = "pass") -> str:
    """A module with an objective `Own`."""
    return f"""{HEAD}
class Own(Objective):
    {extra}
    def __init__(self):
        {init}
    def forward(self, stats, masks, tokens):
        {body}
"""


GOOD = "rewards = tokens.sum(stats.policy_logps); output = self.output(rewards); "


@pytest.mark.parametrize(
    ("code", "says"),
    [
        (objective("return None"), "returns NoneType, an ObjectiveOutput is needed"),
        (objective("return stats.policy_logps.sum()"), "returns Tensor, an ObjectiveOutput is needed"),
        (objective(f"{GOOD} output.loss = output.loss.detach(); return output"), "returns a loss without a gradient"),
        (
            objective(f"{GOOD} output.loss = output.loss[None]; return output"),
            "returns loss of shape [1], a tensor",
        ),
        (objective(f"{GOOD} output.loss = 1.0; return output"), "returns loss of float, a tensor of shape []"),
        (objective(f"{GOOD} output.chosen_rewards = rewards; return output"), "chosen_rewards of shape [4], a tensor"),
        (objective(f"{GOOD} output.rejected_rewards = None; return output"), "rejected_rewards of NoneType"),
        (objective(f"{GOOD} output.metrics = {{'a': rewards}}; return output"), "returns metric 'a', tensor("),
        (objective(f"{GOOD} output.metrics = {{'a': 'x'}}; return output"), "returns metric 'a', 'x': one number"),
        (objective("raise ValueError('no loss')"), "failed: ValueError: no loss ("),
        (objective("return masks.reward"), "failed: AttributeError: 'NoneType' object has no attribute 'reward'"),
        (objective("return stats.expected_log_ratio.sum()"), "failed: AttributeError: 'NoneType' object"),
        (objective("sys.exit(0)"), "failed: SystemExit: 0"),
        (objective(GOOD, init="1 / 0"), "cannot be made: ZeroDivisionError: division by zero"),
        (objective(GOOD, init="super().__init__(); self.w = torch.nn.Linear(1, 1)"), "has parameters, which nothing"),
        (objective(GOOD, extra="mask = 'nothing'"), "unknown mask 'nothing'"),
        (objective(GOOD, extra="expectation = 'both'"), "has expectation 'both', allowed are reference, policy"),
        (f"{HEAD}\nclass Own(Objective): pass", "failed: NotImplementedError"),
        (f"{HEAD}\nclass Own(TokenMask): pass", "is not a sparsepo_plugin.Objective"),
        ("import sys; sys.exit(0)", "cannot be imported: SystemExit: 0"),
    ],
    ids=lambda text: " ".join(text.replace(HEAD, "").split())[-60:],
)
def test_objectives(refused, request, code, says):
    number = request.node.callspec.indices["code"]
    over = {"loss": f"loss_{number}:Own", "sparsepo": None, "model": {"beta": None}}
    refused((says,), over=over, files={f"loss_{number}.py": code})


@pytest.mark.parametrize(
    ("code", "says"),
    [
        ("MASKS.register('learned')(type('A', (TokenMask,), {}))", "mask 'learned' is already registered by sparsepo"),
        ("OBJECTIVES.register('dpo')(type('A', (Objective,), {}))", "objective 'dpo' is already registered by"),
        ("MASKS.register('a b')", "mask name 'a b': only letters, digits, '_' and '-' are allowed"),
        ("MASKS.register('')", "mask name ''"),
        ("MASKS.register(3)", "AttributeError: 'int' object has no attribute"),
        ("MASKS.register('three')(3)", "mask 'three': a class is needed, not 3"),
        ("sys.exit(0)", "SystemExit: 0"),
        ("sys.exit('bye')", "SystemExit: bye"),
        ("raise BaseException", "BaseException"),
        ("def f(", "SyntaxError: '(' was never closed"),
        ("import no_such_package", "ModuleNotFoundError: No module named 'no_such_package'"),
        ("raise ValueError('a\\nb\\x1b[2J')", "ValueError: a b?[2J"),
    ],
)
def test_plugins(refused, request, code, says):
    name = f"plugin_{request.node.callspec.indices['code']}"
    says = (f"loss_plugins: '{name}' cannot be imported: ", says)
    refused(says, over={"loss_plugins": [name]}, files={f"{name}.py": HEAD + code})


def test_a_fault_inside_a_package_names_its_file_and_line(refused):
    files = {"faulty_package/__init__.py": "\n1 / 0", "faulty_package/masks.py": ""}
    says = ("cannot be imported: ZeroDivisionError: division by zero", "faulty_package/__init__.py:2)")
    refused(says, over={"sparsepo": {"mask": "faulty_package.masks:Own"}}, files=files)
