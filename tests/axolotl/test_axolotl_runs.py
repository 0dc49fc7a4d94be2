"""`axolotl train` for real: how a run is started and laid out makes no difference to what it learns and leaves.

Losses are read from the metrics file. Ten steps in fp32; the tolerances are a few times the largest difference seen,
which comes from the order of fp32 additions alone.
"""

import pytest
import torch
from axolotl_runs import LORA, losses, zero_file
from host_runs import Run, difference_of_weights, merge
from process_server import Stop
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from sparsepo_plugin import load_masks
from sparsepo_plugin.record import read_metrics

LOSS, WEIGHTS = 1e-5, 1e-5
HALF = {"micro_batch_size": 4}  # of the batch for each of two processes


def assert_equal(one: Run, other: Run) -> None:
    assert len(losses(one)) == len(losses(other)) == 10
    assert (losses(one) - losses(other)).abs().max() < LOSS
    assert difference_of_weights(one, other) < WEIGHTS


@pytest.mark.parametrize(("launcher", "stage"), [("accelerate", None), ("torchrun", 2), ("deepspeed", 3), ("fork", 1)])
def test_two_processes_equal_one(launcher, stage, config, launch, train, tmp_path):
    """DDP, and ZeRO by `deepspeed: file.json`, under each launcher; the second rank's part shows that ZeRO is on."""
    over = {**HALF, **({"deepspeed": zero_file(tmp_path, stage)} if stage else {})}
    run = launch(config(**over), processes=2, launcher=launcher)
    assert run.code == 0, run.output[-4000:]
    assert_equal(run, train())
    parts = list((run.folder / "out").glob("checkpoint-10/global_step10/*zero_pp_rank_1*optim_states.pt"))
    assert len(parts) == (1 if stage else 0)


def test_in_the_process_of_the_command(config, launch, train):
    run = launch(config(), launcher="python")
    assert run.code == 0, run.output[-4000:]
    assert_equal(run, train())


def test_a_full_fine_tune_leaves_a_plain_model(tiny, train):
    out = train().folder / "out"
    assert load_file(out / "model.safetensors").keys() == load_file(tiny / "model" / "model.safetensors").keys()
    policy = AutoModelForCausalLM.from_pretrained(out)
    start = AutoModelForCausalLM.from_pretrained(tiny / "model")
    assert not torch.equal(policy.lm_head.weight, start.lm_head.weight)
    masks, described = load_masks(out)
    assert set(dict(masks.named_children())) == {"reward", "kl"}
    assert (described.host, described.shared_reference) == ("axolotl", False)
    assert "Axolotl" in (out / "README.md").read_text()


@pytest.mark.parametrize(
    ("processes", "over"),
    [(1, {}), (1, LORA), (2, {**HALF, "deepspeed": 2}), (2, {**HALF, "deepspeed": 3, **LORA})],
    ids=["full", "LoRA", "ZeRO-2", "ZeRO-3, LoRA"],
)
def test_resumed_from_a_checkpoint(processes, over, config, launch, tmp_path):
    """Bit for bit what the run that wrote the checkpoint went on to; dropout of masks and adapter draws at random."""
    over = merge(over, {"sparsepo": {"dropout": 0.2}, "save_steps": 5})
    if stage := over.get("deepspeed"):
        over["deepspeed"] = zero_file(tmp_path, stage)
    if "adapter" in over:
        over["lora_dropout"] = 0.1
    whole = launch(config(**over), processes=processes)
    assert whole.code == 0, whole.output[-4000:]
    checkpoint = whole.folder / "out" / "checkpoint-5"
    resumed = launch(config(**over, resume_from_checkpoint=str(checkpoint)), processes=processes)
    assert resumed.code == 0, resumed.output[-4000:]
    assert [row["step"] for row in read_metrics(resumed.folder / "out")] == [6, 7, 8, 9, 10]
    assert torch.equal(losses(resumed), losses(whole)[5:])
    mine, theirs = resumed.weights, whole.weights
    assert mine.keys() == theirs.keys() and any(key.startswith("mask_head.") for key in mine)
    assert all(torch.equal(mine[key], theirs[key]) for key in mine)
    kept = load_file(checkpoint / "mask_head.safetensors")
    assert not any(torch.equal(kept[key], theirs[f"mask_head.{key}"]) for key in kept)


def test_killed_and_started_again(config, launch, train, tmp_path):
    """By the same command; it goes on from the last checkpoint that is whole."""
    settings = config(save_steps=2, auto_resume_from_checkpoints=True)
    stop = Stop(tmp_path / "out" / "checkpoint-6", after=0.1)
    killed = launch(settings, folder=tmp_path, stop=stop)
    assert killed.code is None and not (tmp_path / "out" / "sparsepo.json").exists()
    resumed = launch(settings, folder=tmp_path)
    assert resumed.code == 0 and "auto-resume" in resumed.output, resumed.output[-4000:]
    assert_equal(resumed, train())
