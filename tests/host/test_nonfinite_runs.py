"""What is not finite updates nothing and is saved nowhere, in any stage of DeepSpeed's, on one process and on two."""

import math
import re

import pytest
import torch
from host_runs import Run, merge
from transformers import AutoModelForCausalLM, AutoTokenizer

# An objective of somebody else's that breaks chosen micro-batches, counted from 1.
BREAKING = """
import os
import torch
from deepspeed.accelerator import get_accelerator
from sparsepo_plugin import OBJECTIVES
from sparsepo_plugin.objectives.sparsepo import SparsePO

get_accelerator().is_fp16_supported = lambda: True  # PyTorch computes it on a CPU; DeepSpeed asks for speed


class Broken(torch.autograd.Function):
    @staticmethod
    def forward(ctx, loss):
        return loss.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * float("nan")


@OBJECTIVES.register("breaking")
class Breaking(SparsePO):
    regularises = {}

    def __init__(self, beta: float = 0.1, *, gradient: list[int] = [], infinite: list[int] = [],
                 large: list[int] = [], factor: float = 1.0, rank: int = 0):
        super().__init__(beta)
        self.gradient, self.infinite, self.large, self.factor = gradient, infinite, large, factor
        self.here, self.count = int(os.environ["RANK"]) == rank, 0

    def forward(self, stats, masks, tokens):
        output = super().forward(stats, masks, tokens)
        self.count += torch.is_grad_enabled()
        if self.here and self.count in self.gradient:
            output.loss = Broken.apply(output.loss)
        if self.here and self.count in self.infinite:
            output.loss = output.loss + float("inf")
        if self.here and self.count in self.large:
            output.loss = output.loss + self.factor * (output.loss - output.loss.detach())
        return output
"""


@pytest.fixture(scope="session")
def breaking(tmp_path_factory, config, launch):
    """A run of that objective with its options; other arguments change the YAML."""
    folder = tmp_path_factory.mktemp("breaking")
    (folder / "breaking.py").write_text(BREAKING)

    def breaking(options: dict, processes: int = 1, **over) -> Run:
        named = {"loss": "breaking", "loss_plugins": ["breaking"], "sparsepo": None}
        section = {"shared": False, "mask_lr": 1e-2, **options}
        return launch(merge(config(**named, breaking=section), over), processes=processes, path=folder)

    return breaking


def refusal(run: Run) -> str:
    """The one line of a run that was stopped, and left no model."""
    assert run.code == 2, run.output[-4000:]
    lines = [line for line in run.output.splitlines() if "sparsepo: error:" in line]
    assert len(lines) == 1 and "Traceback" not in run.output, run.output[-4000:]
    assert {path.name for path in (run.folder / "out").iterdir()} <= {"sparsepo_metrics.jsonl"}
    return lines[0]


def warnings(run: Run) -> list[str]:
    """What was said of steps that were skipped, which may stand behind a progress bar."""
    return re.findall(r"not finite at step .*left out in a row: \d+", run.output)


def state(run: Run, step: int) -> dict:
    """Everything that changes in a checkpoint: weights, optimizer and scheduler, by file and key."""
    files = sorted((run.folder / "checkpoints" / f"global_step{step}").glob("*.pt"))
    found = {file.name: torch.load(file, weights_only=False) for file in files}
    return dict(flatten({name: {key: held.get(key) for key in CHANGING} for name, held in found.items()}))


CHANGING = ("module", "optimizer", "optimizer_state_dict", "lr_scheduler")
COUNTERS = ("overflow", "cur_iter")  # of DeepSpeed's loss scaler, which counts updates that are left out too


def flatten(value, path=()):
    if isinstance(value, dict | list | tuple):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, item in items:
            yield from flatten(item, (*path, key))
    elif isinstance(value, torch.Tensor | int | float) and path[-1] not in COUNTERS:
        yield path, torch.as_tensor(value)


STAGES = [(0, "fp32"), (1, "fp32"), (2, "fp32"), (3, "fp32"), (0, "bf16"), (2, "bf16"), (3, "bf16")]
EVERY_STEP = {"save_steps": 1, "max_num": 10}


@pytest.mark.parametrize(("stage", "dtype"), STAGES)
def test_a_gradient_under_a_finite_loss_stops_the_run(stage, dtype, breaking):
    run = breaking({"gradient": [3]}, ds={"zero_stage": stage, "param_dtype": dtype}, ckpt=EVERY_STEP)
    line = refusal(run)
    assert "not finite at step 3: gradient of the loss by" in line and "pairs [0, 1, 2, 3, 4, 5, 6, 7]" in line
    assert "the loss is finite: the gradient of loss 'breaking' itself is at fault" in line
    assert {path.name for path in (run.folder / "checkpoints").glob("global*")} == {"global_step1", "global_step2"}


@pytest.mark.parametrize(("stage", "dtype"), STAGES)
def test_a_skipped_step_did_not_happen(stage, dtype, breaking):
    """The third of five updates: after it weights, moments, counters and scheduler are those after the second."""
    options = {"gradient": [3], "on_nonfinite": "skip"}
    ds = {"zero_stage": stage, "param_dtype": dtype}
    run = breaking(options, ds=ds, data={"max_samples": 40}, ckpt=EVERY_STEP)
    assert run.code == 0, run.output[-4000:]
    (warning,) = warnings(run)
    assert "not finite at step 3: gradient of the loss" in warning and warning.endswith("left out in a row: 1")
    assert run.scalars("train/skipped_steps") == [0, 0, 1, 1, 1]
    second, third, fourth = (state(run, step) for step in (2, 3, 4))
    assert second.keys() == third.keys() == fourth.keys() and len(second) > 20
    assert not [key for key, value in second.items() if not torch.equal(value, third[key])]
    assert any(not torch.equal(value, fourth[key]) for key, value in third.items())
    assert all(map(math.isfinite, run.losses)) and all(value.isfinite().all() for value in run.weights.values())


@pytest.mark.parametrize("stage", [0, 2, 3])
def test_one_rank_of_two_amid_an_accumulation(stage, breaking):
    """An infinite loss, whose gradient is finite, in the first of two micro-batches of the second step."""
    options = {"infinite": [3], "rank": 1}
    over = {"processes": 2, "ds": {"zero_stage": stage}, "train": {"micro_batch_size": 2}}
    line = refusal(breaking(options, **over, ckpt=EVERY_STEP))
    assert (
        "rank 1: not finite at step 2: loss, pairs [0, 1] of the micro-batch; all that loss 'breaking' reads" in line
    )
    assert "adam.lr" in line
    run = breaking({**options, "on_nonfinite": "skip"}, **over)
    assert run.code == 0, run.output[-4000:]
    assert len(warnings(run)) == 1
    assert run.scalars("train/skipped_steps") == [0, *[1] * 9]
    assert all(value.isfinite().all() for value in run.weights.values())


def test_the_optimizer_of_bf16_with_gradients_in_fp32(breaking):
    """DeepSpeed's own for stage 1, in which each rank has a share of the parameters."""
    ds = {"zero_stage": 1, "param_dtype": "bf16", "grad_accum_dtype": "fp32"}
    line = refusal(breaking({"gradient": [3], "rank": 1}, processes=2, ds=ds, train={"micro_batch_size": 4}))
    assert "rank 1: not finite at step 3: gradient of the loss by" in line


@pytest.mark.parametrize("stage", [0, 2, 3])
def test_a_gradient_that_overflows_in_the_model(stage, breaking):
    """Finite where it enters the model: the parameter is named in place of the pairs."""
    run = breaking({"large": [3], "factor": 3e38}, ds={"zero_stage": stage})
    line = refusal(run)
    assert re.search(
        r"step 3: gradient of \S+ of the (policy|masks), any pair of the step; the loss is finite: ", line
    )


@pytest.mark.parametrize("stage", [0, 2, 3])
def test_fp16_scales_its_loss_down_until_it_cannot(stage, breaking):
    """From 2**16, once it has overflowed twice, to 1; DeepSpeed leaves those updates out, and no run is stopped."""
    over = {"ds": {"zero_stage": stage, "param_dtype": "fp16"}, "train": {"max_epochs": 2}}
    run = breaking({"large": [3, 4], "factor": 1e7}, **over)
    assert run.code == 0 and not warnings(run), run.output[-4000:]
    assert run.scalars("train/skipped_steps") == [0, 0, 1, *[2] * 17]
    line = refusal(breaking({"large": list(range(1, 30)), "factor": 1e30}, **over))
    assert "gradient of " in line and "what overflows in float16 may not in float32 (ds.param_dtype)" in line


def test_ten_in_a_row_end_a_run_that_skips(breaking):
    options = {"gradient": list(range(3, 40)), "on_nonfinite": "skip"}
    run = breaking(options, train={"max_epochs": 2})
    assert "not finite at step 12:" in (line := refusal(run)) and "left out in a row: 10" in line
    assert len(warnings(run)) == 10  # the last of them is the error


@pytest.mark.parametrize(("stage", "processes"), [(2, 1), (3, 2)])
@pytest.mark.parametrize("on_nonfinite", ["stop", "skip"])
def test_a_base_model_that_is_broken(stage, processes, on_nonfinite, config, launch, tiny, tmp_path):
    """Skipping cannot help. Under ZeRO-3 one rank has the weight that is not finite."""
    model = AutoModelForCausalLM.from_pretrained(tiny / "model")
    model.model.layers[1].mlp.up_proj.weight.data[-1, -1] = torch.nan
    model.save_pretrained(tmp_path / "broken")
    AutoTokenizer.from_pretrained(tiny / "model").save_pretrained(tmp_path / "broken")
    changes = {"ds": {"zero_stage": stage}, "train": {"micro_batch_size": 4}}
    names = {
        "model": {"model_name_or_path": str(tmp_path / "broken")},
        "ref": {"model_name_or_path": str(tiny / "model")},
    }
    run = launch(config(**changes, **names, sparsepo={"on_nonfinite": on_nonfinite}), processes=processes)
    line = refusal(run)
    assert "step 1: log-probabilities of the policy" in line and "model.layers.1.mlp.up_proj.weight" in line
    assert "the model's files are broken" in line and line.endswith("(model.model_name_or_path)")


@pytest.mark.parametrize(("stage", "processes"), [(2, 1), (3, 2)])
def test_weights_that_the_last_update_broke_are_not_saved(stage, processes, config, launch):
    """Nothing looks at them any more but the saving."""
    huge = {
        "adam": {"lr": 1e25, "weight_decay": 1e25},
        "max_norm": 0.0,
        "lr_warmup_ratio": 0.0,
        "data": {"max_samples": 8},
    }
    changes = {"ds": {"zero_stage": stage}, "train": {"micro_batch_size": 4}}
    line = refusal(launch(config(**huge, **changes), processes=processes))
    assert "step 1: weight model.embed_tokens.weight of the policy, after the update" in line and "adam.lr" in line


def test_masks_that_an_update_broke_are_not_in_a_checkpoint(config, launch):
    run = launch(
        config(sparsepo={"mask_lr": 1e25, "mask_weight_decay": 1e25}, lr_warmup_ratio=0.0, ckpt={"save_steps": 1})
    )
    assert "weight reward.weight of the masks, after the update; lower sparsepo.mask_lr" in refusal(run)
    assert not list(run.folder.glob("checkpoints/*"))


def test_a_mask_that_stays_dead(config, launch):
    """L1 of the masks' weights kills them within a step of so high a rate; ten dead ones later the run stops."""
    section = {"l1_reward": 10.0, "l1_kl": 10.0, "mask_lr": 1.0}
    over = {"train": {"max_epochs": 2}, "lr_warmup_ratio": 0.0}
    warned = launch(config(sparsepo=section, **over))
    assert warned.code == 0, warned.output[-4000:]
    assert [*range(20)] == warned.scalars("train/dead_steps_reward") == warned.scalars("train/dead_steps_kl")
    line = refusal(launch(config(sparsepo={**section, "on_dead_mask": "stop"}, **over)))
    assert "step 11, the last of 10 in a row: the reward mask is zero on every response token" in line


OF_ONE_RANK = """
import os

import torch

from sparsepo_plugin import TokenMask


class Own(TokenMask):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))

    def forward(self, features, tokens):
        return (self.weight * (os.environ["RANK"] == os.environ["ALIVE"])).expand(len(tokens))
"""


@pytest.mark.parametrize("alive", ["1", "none"])
def test_a_mask_is_dead_where_it_is_zero_on_the_tokens_of_all_ranks(alive, config, launch, tmp_path):
    """Those of one rank are few, and zeros there alone no reason to stop."""
    (tmp_path / "of_one_rank.py").write_text(OF_ONE_RANK.replace('os.environ["ALIVE"]', repr(alive)))
    without = dict.fromkeys(("shared", "l1_reward", "l1_kl", "metrics_every"))
    section = {**without, "mask": "of_one_rank:Own", "on_dead_mask": "stop"}
    settings = config(sparsepo=section, train={"micro_batch_size": 4})
    run = launch(settings, processes=2, folder=tmp_path, path=tmp_path)
    if alive == "1":
        assert run.code == 0 and set(run.scalars("train/dead_steps_reward")) == {0.0}, run.output[-4000:]
    else:
        line = refusal(run)
        assert "step 10, the last of 10 in a row: the reward mask is zero" in line and "(rank 1)" not in line
