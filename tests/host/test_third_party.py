"""A package of somebody else's trains as itself: five steps through the command line, against plain PyTorch.

Its two masks and three objectives (tests/third_party) come in all three ways: as entry points, by their paths, and
registered by a module under `loss_plugins:`. Tolerances as in test_equivalence.py: the order of fp32 additions alone.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from host_runs import difference_of_weights, merge, places
from torch.nn.functional import logsigmoid
from transformers import AutoModelForCausalLM, AutoTokenizer, get_scheduler
from typer.testing import CliRunner

import sparsepo_plugin
from sparsepo_plugin import load_run
from sparsepo_plugin.checkpoint import load_description
from sparsepo_plugin.cli import app

PACKAGE = Path(__file__).parents[1] / "third_party"
STEPS, BATCH, BETA, SMOOTHING, MASK_LR, DECAY = 5, 8, 0.5, 0.1, 1e-2, 0.3
TOLERANCE = 1e-5
WAYS = ("entry point", "path", "plugin")

# What each objective is trained with: its mask, its other options, the flags that it takes, and what is logged of it.
LEARNED = {"mask_lr": MASK_LR, "mask_weight_decay": DECAY}
OBJECTIVES = {
    "margin": ({"mask": "probe", "scale": 0.8, "margin": 0.2, **LEARNED}, {"beta": BETA}, "margin_met"),
    "cautious": (
        {"caution": 0.7, "length": 2, "metrics_every": 1},
        {"beta": BETA, "label_smoothing": SMOOTHING},
        "token_kl_chosen",
    ),
    "plain": ({"power": 0.5}, {}, "acc"),
}


@pytest.fixture(scope="session")
def installed(tmp_path_factory) -> Path:
    """The folder into which pip installed the package."""
    target = tmp_path_factory.mktemp("site")
    pip = [sys.executable, "-m", "pip", "install", "-qq", "--no-deps", "--no-build-isolation", "--target", str(target)]
    source = tmp_path_factory.mktemp("source") / "third_party"
    subprocess.run(["cp", "-r", str(PACKAGE), str(source)], check=True)  # building leaves files beside the sources
    subprocess.run([*pip, str(source)], check=True)
    return target


@pytest.fixture(autouse=True)
def _forgotten(monkeypatch):
    """What a test in this process imports and registers is gone after it."""
    for registry in (sparsepo_plugin.MASKS, sparsepo_plugin.OBJECTIVES):
        registry.names()  # which loads our own
        monkeypatch.setattr(registry, "_classes", dict(registry._classes))
    yield
    for name in [name for name in sys.modules if name.partition(".")[0] == "token_ideas"]:
        del sys.modules[name]


def yaml_of(loss: str, way: str) -> dict:
    """The part of a YAML that names the loss and its mask in one of the ways."""
    section, flags, _ = OBJECTIVES[loss]
    module, registered = "token_ideas", "registered-"
    named = {"entry point": loss, "path": f"{module}.objectives:{loss.title()}", "plugin": f"{registered}{loss}"}[way]
    mask = {"entry point": "probe", "path": f"{module}.masks:Probe", "plugin": f"{registered}probe"}[way]
    section = {**section, **({"mask": mask} if "mask" in section else {})}
    plugins = {"loss_plugins": [f"{module}.registering"]} if way == "plugin" else {}
    model = {"beta": None, **flags}
    return {"loss": named, "options" if way == "path" else named: section, "model": model, **plugins}


@pytest.fixture(scope="session")
def run(config, launch, installed):
    """A finished run of an objective in one of the ways."""
    finished = {}

    def run(loss: str, way: str, **over):
        key = json.dumps([loss, way, over], sort_keys=True)
        if key not in finished:
            data = {"max_samples": STEPS * BATCH}
            settings = merge(config(sparsepo=None, data=data), merge(yaml_of(loss, way), over))
            finished[key] = launch(settings, path=installed)
            assert finished[key].code == 0, finished[key].output[-4000:]
        return finished[key]

    return run


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("loss", OBJECTIVES)
def test_it_trains_as_itself(loss, way, run, tiny):
    ours = run(loss, way)
    losses, weights = plain(loss, tiny)
    assert len(ours.losses) == STEPS
    torch.testing.assert_close(ours.losses, torch.tensor(losses, dtype=torch.float64), rtol=0, atol=TOLERANCE)
    assert ours.weights.keys() == weights.keys()
    for name, value in ours.weights.items():
        torch.testing.assert_close(value, weights[name], rtol=0, atol=TOLERANCE, msg=name)
    assert len(ours.scalars(f"train/{OBJECTIVES[loss][2]}")) == STEPS
    assert ours.output.count("Loading weights: 100%") == (1 if loss == "plain" else 2)


@pytest.mark.parametrize("way", WAYS)
def test_its_run_can_be_asked(way, run, installed, monkeypatch):
    """What the run left names the code; modules are imported only if the caller allows it."""
    folder = run("margin", way).folder / "out"
    described = load_description(folder)
    names = yaml_of("margin", way)
    assert (described.loss.loss, described.loss.reward.mask) == (names["loss"], names[described.loss.section]["mask"])
    assert described.loss.objective == {"beta": BETA, "margin": 0.2}
    monkeypatch.syspath_prepend(installed)
    table = load_run(folder, device="cpu", allow_code=way != "entry point").tokens(
        "w1 w2 ", chosen="w3 w4", rejected="w5"
    )
    assert 0 < table.mask_reward.min() < table.mask_reward.max() < 1.6
    torch.testing.assert_close(table.advantage, table.mask_reward * table.log_ratio)


def test_masks_of_its_own_in_both_roles_of_ours(config, launch, installed):
    halves = {"reward": {"mask": "probe"}, "kl": {"mask": "opening", "length": 2}}
    section = {**dict.fromkeys(("mask", "shared", "l1_reward", "l1_kl", "metrics_every")), **halves}
    done = launch(config(sparsepo=section, data={"max_samples": STEPS * BATCH}), path=installed)
    assert done.code == 0, done.output[-4000:]
    assert {key for key in done.weights if key.startswith("mask_head")} == {
        "mask_head.reward.linear.weight",
        "mask_head.reward.linear.bias",
    }
    assert done.scalars("train/sparsity_reward_chosen") == [0.0] * STEPS
    assert min(done.scalars("train/sparsity_kl_chosen")) > 0


def test_a_plain_layer_under_zero_3_and_bf16(config, launch, installed):
    """Two processes that share every weight; in bfloat16 all parameters are of it, and so are the features."""
    section = {"mask": "probe", "shared": None, **dict.fromkeys(("l1_reward", "l1_kl", "metrics_every"))}
    data, halves = {"max_samples": STEPS * BATCH}, {"micro_batch_size": 4}
    one = launch(config(sparsepo=section, data=data), path=installed)
    zero_3 = config(sparsepo=section, data=data, ds={"zero_stage": 3}, train=halves)
    two = launch(zero_3, processes=2, path=installed)
    assert (one.code, two.code) == (0, 0), two.output[-4000:]
    assert difference_of_weights(one, two) < TOLERANCE
    half = launch(merge(zero_3, {"ds": {"param_dtype": "bf16"}}), processes=2, path=installed)
    assert half.code == 0, half.output[-4000:]
    start = half.weights["mask_head.reward.linear.weight"]
    assert start.isfinite().all()
    assert not torch.equal(start, probe_of(256).weight.data)


def test_it_resumes(run, config, launch, installed, tmp_path):
    """From its checkpoint of step 3: the same weights as the run that went on."""
    whole = run("margin", "entry point", ckpt={"save_steps": 3})
    subprocess.run(["cp", "-r", str(whole.folder / "checkpoints"), str(tmp_path)], check=True)
    settings = merge(config(sparsepo=None, data={"max_samples": STEPS * BATCH}), yaml_of("margin", "entry point"))
    resumed = launch(settings, "--ckpt.load_enable", folder=tmp_path, path=installed)
    assert resumed.code == 0, resumed.output[-4000:]
    assert "Resuming from" in resumed.output
    assert whole.weights.keys() == resumed.weights.keys()
    for key, value in whole.weights.items():
        assert torch.equal(resumed.weights[key], value), key


def test_it_is_listed_and_checked(config, installed, tmp_path, monkeypatch):
    """With the package installed where Python finds it."""
    monkeypatch.syspath_prepend(installed)
    monkeypatch.setattr(sys, "path", list(sys.path))  # the command puts the current folder first

    def sparsepo(*arguments):
        return CliRunner().invoke(app, [str(argument) for argument in arguments])

    listed = sparsepo("objectives").stdout
    assert {"margin", "cautious", "plain", "sparsepo"} <= {line.split()[0] for line in listed.splitlines()}
    described = sparsepo("masks", "token_ideas.masks:Probe").stdout
    assert "A logistic probe on the reference's last state." in described
    assert [line.split()[:3] for line in described.splitlines() if line.startswith("  scale")] == [
        ["scale", "float", "1.0"]
    ]
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump(merge(places(tmp_path), merge(config(sparsepo=None), yaml_of("margin", "plugin")))))
    checked = sparsepo("check", file)
    assert checked.exit_code == 0, checked.stderr
    assert checked.stdout.splitlines()[-1].endswith("ok, loss: registered-margin")
    wrong = sparsepo("check", file, "--registered-margin.marign", "1")
    assert wrong.exit_code == 2
    assert "registered-margin.marign is not a key of this section: allowed are" in wrong.stderr
    flag = sparsepo("check", file, "--model.label_smoothing", "0.1")
    assert flag.exit_code == 2
    assert "model.label_smoothing has no effect with loss: registered-margin" in flag.stderr


# The same in plain PyTorch: whole logits, autograd throughout.


def probe_of(width: int) -> torch.nn.Linear:
    """The start of the mask: the seed of the run and nothing else decides it."""
    with torch.random.fork_rng():
        torch.manual_seed(42)
        return torch.nn.Linear(width, 1)


def plain(loss: str, tiny: Path) -> tuple[list[float], dict[str, torch.Tensor]]:
    """Losses of the five steps, and the weights after them under the names of a run's files."""
    policy = AutoModelForCausalLM.from_pretrained(tiny / "model", dtype=torch.float32)
    reference = AutoModelForCausalLM.from_pretrained(tiny / "model", dtype=torch.float32).requires_grad_(False)
    tokenizer = AutoTokenizer.from_pretrained(tiny / "model")
    pairs = [json.loads(line) for line in (tiny / "pairs.jsonl").read_text().splitlines()][: STEPS * BATCH]
    order = torch.randperm(len(pairs), generator=torch.Generator().manual_seed(42)).tolist()
    probe = probe_of(policy.config.hidden_size)
    groups = [{"params": list(policy.parameters()), "lr": 1e-3}]
    if loss == "margin":
        groups.append({"params": list(probe.parameters()), "lr": MASK_LR, "weight_decay": DECAY})
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95), eps=1e-4, weight_decay=0.0)
    kwargs = {"min_lr_rate": 0.1}
    scheduler = get_scheduler("cosine_with_min_lr", optimizer, 1, STEPS, scheduler_specific_kwargs=kwargs)
    losses = []
    for step in range(STEPS):
        batch = [pairs[index] for index in order[step * BATCH : (step + 1) * BATCH]]
        value = torch.stack([pair_loss(loss, policy, reference, probe, tokenizer, pair) for pair in batch]).mean()
        optimizer.zero_grad()
        value.backward()
        trained = [parameter for group in groups for parameter in group["params"]]
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        scheduler.step()
        losses.append(value.item())
    weights = {f"model.{name}": value for name, value in policy.state_dict().items()}
    if loss == "margin":
        weights |= {f"mask_head.reward.linear.{name}": value for name, value in probe.state_dict().items()}
    return losses, weights


def pair_loss(loss, policy, reference, probe, tokenizer, pair):
    """−log σ of the difference of rewards, by the docstrings of the package's classes."""
    rewards = {}
    for side in ("chosen", "rejected"):
        start = len(tokenizer(pair["prompt"])["input_ids"])
        ids = torch.tensor(tokenizer(pair["prompt"] + pair[side] + " </s>")["input_ids"])
        logps = policy(ids[None]).logits[0, start - 1 : -1].log_softmax(-1)
        seen = reference(ids[None], output_hidden_states=True)
        reference_logps = seen.logits[0, start - 1 : -1].log_softmax(-1)
        label = ids[start:, None]
        own, ratio = logps.gather(1, label)[:, 0], (logps - reference_logps).gather(1, label)[:, 0]
        if loss == "margin":
            mask = 2 * 0.8 * probe(seen.hidden_states[-1][0, start - 1 : -1])[:, 0].sigmoid()
            rewards[side] = BETA * (mask * ratio).sum()
        elif loss == "cautious":
            kl = (reference_logps.exp() * (reference_logps - logps)).sum(-1)
            rewards[side] = BETA * (ratio.sum() - 0.7 * kl[:2].sum())
        else:
            rewards[side] = own.sum() / len(own) ** 0.5
    difference = rewards["chosen"] - rewards["rejected"] - (0.2 if loss == "margin" else 0.0)
    smoothing = SMOOTHING if loss == "cautious" else 0.0
    return -(1 - smoothing) * logsigmoid(difference) - smoothing * logsigmoid(-difference)
