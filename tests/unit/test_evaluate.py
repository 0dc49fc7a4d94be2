"""`sparsepo evaluate` against whole softmaxes, an enumeration of all responses, and means taken by hand.

Tolerance: float32 projections of some rows against all of them, 1e-4 for sums of a few tokens.
"""

import json
import shutil
from itertools import product

import numpy
import pytest
import torch
from finished_runs import PLAIN, finished_run, write_lines, write_metrics
from peft import LoraConfig, get_peft_model
from tiny import VOCABULARY, decoder, describe
from typer.testing import CliRunner
from words import word_tokenizer

from sparsepo_plugin import LossConfig, Run, SparsePOError, load_run
from sparsepo_plugin.analysis.intervals import mean_with_interval
from sparsepo_plugin.cli import app

pytest.importorskip("scipy")
PROMPTS = [{"prompt": PLAIN["prompt"]}, {"prompt": "the acting"}, {"prompt": "cable"}, {"prompt": "Watch it"}]
COUNT = "count_of_a_test:vowels"
STEPS = 5


def run_of(policy, frozen, loss="dpo", **changes):
    config = LossConfig.from_section(None, loss, beta=0.5)
    return Run(policy, frozen, None, word_tokenizer(), describe(config, **changes))


def plain_divergence(policy, reference, ids, start):
    """Σ_t KL(π‖π_ref) and Σ_t log π − log π_ref of the tokens from `start` on, from whole softmaxes."""
    ids = torch.tensor([ids])
    with torch.no_grad():
        logps, reference_logps = (
            model(input_ids=ids).logits[0, start - 1 : -1].log_softmax(-1) for model in (policy, reference)
        )
    ratios = logps - reference_logps
    return (logps.exp() * ratios).sum().item(), ratios.gather(1, ids[0, start:, None]).sum().item()


SEQUENCES = [([3, 4, 5, 9, 8, 2], 3), ([7, 20, 21], 1), ([3, 4, 30, 31, 32, 33, 9, 9, 2], 4)]


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_divergence_of_sequences(architecture, count):
    """Of an even and an odd number of them; whatever distribution the loss took its KL under."""
    policy, reference = decoder(architecture, 0), decoder(architecture, 1)
    for loss in ("dpo", "tdpo", "simpo"):
        found = run_of(policy, reference, loss).divergence(SEQUENCES[:count])
        expected = [plain_divergence(policy, reference, *sequence) for sequence in SEQUENCES[:count]]
        torch.testing.assert_close(found.T, torch.tensor(expected), atol=1e-4, rtol=1e-5)


def test_divergence_from_the_policy_without_its_adapter():
    policy = get_peft_model(decoder(seed=0), LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False))
    found = run_of(policy.eval(), None, reference="base", shared_reference=True).divergence(SEQUENCES)
    expected = [plain_divergence(policy, decoder(seed=0), *sequence) for sequence in SEQUENCES]
    assert abs(expected[0][0]) > 0.01
    torch.testing.assert_close(found.T, torch.tensor(expected), atol=1e-4, rtol=1e-5)


def test_its_mean_is_the_kl_of_whole_responses():
    """Over all 37² responses of two tokens: Σ_y π(y) Σ_t KL_t = Σ_y π(y) log π(y)/π_ref(y), in double precision."""
    policy, reference = decoder(seed=0).double(), decoder(seed=1).double()
    prompt, responses = [3, 4, 5], list(product(range(VOCABULARY), repeat=2))
    kl, log_ratio = run_of(policy, reference).divergence([(prompt + list(pair), 3) for pair in responses])
    with torch.no_grad():
        ids = torch.tensor([prompt + list(pair) for pair in responses])
        logps = policy(input_ids=ids).logits.log_softmax(-1)[:, 2:4].gather(2, ids[:, 3:, None]).sum((1, 2))
    probabilities = logps.exp()
    assert probabilities.sum().item() == pytest.approx(1.0)
    assert (probabilities * kl).sum().item() == pytest.approx((probabilities * log_ratio).sum().item(), abs=1e-6)
    assert (probabilities * kl).sum() > 0.1


def test_no_reference():
    with pytest.raises(SparsePOError, match="divergence: the run has no reference to compare with"):
        run_of(decoder(), None, "simpo", reference=None).divergence(SEQUENCES)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Runs `sparsepo` and `simpo`, prompts, and a reward."""
    folder = tmp_path_factory.mktemp("evaluated")
    for seed, loss in enumerate(("sparsepo", "simpo")):
        write_metrics(finished_run(folder / loss, loss, seed=seed), steps=6)
    write_lines(folder / "prompts.jsonl", PROMPTS)
    (folder / "count_of_a_test.py").write_text(
        "def vowels(prompts, completions):\n    return [sum(map(text.count, 'aeiou')) for text in completions]\n"
    )
    return folder


@pytest.fixture
def evaluate(folder, tmp_path, monkeypatch):
    """The command, typed where the runs are; `out/` is a folder of the test."""
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(folder)

    def evaluate(*arguments, reward=COUNT, prompts="prompts.jsonl"):
        flags = ["evaluate", *arguments, "--prompts", prompts, "--reward", reward, "--max-new-tokens", str(STEPS)]
        return CliRunner().invoke(app, [flag.replace("out/", f"{tmp_path}/") for flag in flags])

    return evaluate


def read(path):
    header, *rows = map(json.loads, path.read_text().splitlines())
    return header, rows, json.loads(path.with_suffix(".json").read_text())


COLUMNS = ["checkpoint", "step", "temperature", "prompt_index", "sample", "prompt", "completion", "reward"]
COLUMNS += ["kl", "log_ratio", "num_tokens"]


def test_the_command(evaluate, folder, tmp_path):
    done = evaluate("sparsepo", "--count", "2", "--temperature", "1", "--temperature", "0.5", "-o", "out/a.jsonl")
    assert done.exit_code == 0, done.output
    header, rows, summary = read(tmp_path / "a.jsonl")
    drawn_with = {"seed": 0, "count": 2, "top_p": 1.0, "max_new_tokens": STEPS}
    assert header == {"reward": COUNT, "prompts": "prompts.jsonl", "reference": None, **drawn_with}
    places = [(t, n, s) for t in (1.0, 0.5) for n in range(4) for s in range(2)]
    assert [(row["temperature"], row["prompt_index"], row["sample"]) for row in rows] == places
    assert all(list(row) == COLUMNS and (row["checkpoint"], row["step"]) == ("", 6) for row in rows)
    assert all(row["prompt"] == PROMPTS[row["prompt_index"]]["prompt"] for row in rows)
    assert all(row["reward"] == sum(map(row["completion"].count, "aeiou")) for row in rows)
    assert summary["options"] == header
    for result, temperature in zip(summary["results"], (1.0, 0.5), strict=True):
        assert (result["step"], result["temperature"], result["prompts"]) == (6, temperature, 4)
        for name in ("reward", "kl", "log_ratio"):
            values = [row[name] for row in rows if row["temperature"] == temperature]
            assert result[name]["mean"] == pytest.approx(numpy.mean(values))
            assert result[name]["low"] <= result[name]["mean"] <= result[name]["high"]
        shown = ", ".join(f"{result['kl'][key]:.4g}" for key in ("low", "high"))
        assert f"temperature {temperature:g}: reward" in done.stdout and f"[{shown}]" in done.stdout


def test_kl_is_of_the_tokens_that_were_drawn(evaluate, folder, tmp_path):
    """Those of the sampler, whose own tests they pass; the KL is of the models at temperature 1 at any other, too."""
    from sparsepo_plugin.generation.prompts import read_prompts
    from sparsepo_plugin.generation.sampling import Sampler, Sampling

    assert evaluate("sparsepo", "--temperature", "0.7", "-o", "out/a.jsonl").exit_code == 0
    _, rows, _ = read(tmp_path / "a.jsonl")
    run = load_run(folder / "sparsepo", device="cpu")
    sampling = Sampling(temperature=0.7, count=1, max_new_tokens=STEPS)
    sampler = Sampler(run.policy, run.tokenizer, run.description.joining, sampling)
    (completions,) = sampler.batches(read_prompts(folder / "prompts.jsonl"), "test")
    for row, completion in zip(rows, completions, strict=True):
        assert (row["completion"], row["num_tokens"]) == (completion.text, len(completion.ids))
        kl, log_ratio = plain_divergence(run.policy, run.reference, *completion.sequence)
        assert row["kl"] == pytest.approx(kl, abs=1e-4) and row["kl"] > 0.1
        assert row["log_ratio"] == pytest.approx(log_ratio, abs=1e-4)


def test_several_runs_each_get_their_file(evaluate, folder):
    done = evaluate("sparsepo", "simpo")
    assert done.exit_code == 0, done.output
    assert "simpo: the run has no reference, KL is null; --reference names one" in done.stderr
    assert "kl unknown" in done.stdout
    assert all(row["kl"] is not None for row in read(folder / "sparsepo" / "evaluation.jsonl")[1])
    _, rows, summary = read(folder / "simpo" / "evaluation.jsonl")
    assert {(row["kl"], row["log_ratio"]) for row in rows} == {(None, None)}
    assert summary["results"][0]["kl"] is None and summary["results"][0]["reward"]["mean"] > 0


def test_another_reference(evaluate, folder, tmp_path):
    """For a run without one, and in place of a run's own; a policy is at no distance from itself."""
    for reference, near in (("simpo", True), ("sparsepo_reference", False)):
        assert evaluate("simpo", "--reference", reference, "-o", "out/a.jsonl").exit_code == 0
        header, rows, _ = read(tmp_path / "a.jsonl")
        assert header["reference"] == reference
        assert all((abs(row["kl"]) < 1e-4) == near for row in rows)


def test_checkpoints(evaluate, folder, tmp_path):
    """Of both forms, in the order of their steps and the finished policy last; the reference is loaded once."""
    run = tmp_path / "run"
    shutil.copytree(folder / "sparsepo", run)
    for name, policy in (("checkpoint-10", "simpo"), ("checkpoints/global_step4_hf", "sparsepo_reference")):
        shutil.copytree(folder / "sparsepo", run / name)
        shutil.copy(folder / policy / "model.safetensors", run / name)
    shutil.copytree(folder / "simpo", run / "other")
    assert evaluate("out/run", "--checkpoints").exit_code == 0
    _, rows, summary = read(run / "evaluation.jsonl")
    names = [("global_step4_hf", 4), ("checkpoint-10", 10), ("", 6)]
    assert [(row["checkpoint"], row["step"]) for row in rows] == [name for name in names for _ in PROMPTS]
    assert [result["step"] for result in summary["results"]] == [4, 10, 6]
    near, far, _ = (result["kl"]["mean"] for result in summary["results"])
    assert abs(near) < 1e-4 < 0.1 < far
    assert evaluate("out/run/checkpoints/global_step4_hf").exit_code == 0
    _, alone, _ = read(run / "checkpoints" / "global_step4_hf" / "evaluation.jsonl")
    assert [row | {"checkpoint": "global_step4_hf"} for row in alone] == rows[:4]
    (run / "sparsepo.json").unlink()
    assert evaluate("out/run", "--checkpoints").exit_code == 0
    assert {row["checkpoint"] for row in read(run / "evaluation.jsonl")[1]} == {"global_step4_hf", "checkpoint-10"}


@pytest.mark.parametrize(
    ("arguments", "given", "says"),
    [
        (("absent",), {}, "absent/sparsepo.json is missing"),
        (("sparsepo", "simpo", "-o", "out/a.jsonl"), {}, "a.jsonl is one file, and 2 runs are given"),
        (("sparsepo", "-o", "out/a.json"), {}, "a.json must end in .jsonl, the means are written beside it"),
        (("sparsepo", "-o", "prompts.jsonl/a.jsonl"), {}, "prompts.jsonl is a file, a folder is needed there"),
        (("sparsepo", "--checkpoints", "-o", "out/a.jsonl"), {}, "--checkpoints: sparsepo has none: checkpoint-N of"),
        (("sparsepo", "--temperature", "-1", "-o", "out/a.jsonl"), {}, "--temperature is -1, 0 or more is needed"),
        (("sparsepo", "--reference", "absent", "-o", "out/a.jsonl"), {}, "absent cannot be loaded"),
        (("sparsepo", "-o", "out/a.jsonl"), {"reward": "absent"}, "--reward: allowed are vader"),
        (("sparsepo", "-o", "out/a.jsonl"), {"prompts": "absent"}, "--prompts absent cannot be read: No such file"),
    ],
    ids=str,
)
def test_bad_input(arguments, given, says, evaluate, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    done = evaluate(*arguments, **given)
    assert done.exit_code == 2, done.output
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("sparsepo: error: ")]
    assert says in line and "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_intervals():
    """Of many values the normal one, mean ± 1.96·s/√n, to a tenth of its width; the same for the same seed."""
    values = numpy.random.default_rng(0).exponential(size=400).tolist()
    found = mean_with_interval(values, seed=1)
    assert found == mean_with_interval(values, seed=1)
    assert found["mean"] == pytest.approx(numpy.mean(values))
    half = 1.96 * numpy.std(values) / 20
    assert found["low"] == pytest.approx(found["mean"] - half, abs=0.2 * half)
    assert found["high"] == pytest.approx(found["mean"] + half, abs=0.2 * half)


def test_intervals_of_little():
    assert mean_with_interval([2.0], seed=0) == {"mean": 2.0, "low": None, "high": None}
    assert mean_with_interval([2.0, 2.0], seed=0) == {"mean": 2.0, "low": 2.0, "high": 2.0}
