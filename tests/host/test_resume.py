"""A run that is stopped at any moment goes on, by the same command, to the weights of one that never was."""

import json
import random
import shutil
import sys
from pathlib import Path

import pytest
import torch
from host_runs import Run, merge, write_pairs
from process_server import Stop
from transformers import AutoModelForCausalLM

from sparsepo_plugin import load_masks
from sparsepo_plugin.checkpoint import load_description

# Twenty steps or 21 of two processes, a checkpoint after every second one; both kinds of dropout draw at random.
SAVING = {
    "train": {"micro_batch_size": 2, "max_epochs": 2},
    "ckpt": {"save_steps": 2, "max_num": 2, "load_enable": True},
    "sparsepo": {"dropout": 0.2},
}
LORA = {"lora": {"rank": 4, "alpha": 8, "dropout": 0.1}}
KINDS = {
    "ZeRO-2": {"ds": {"zero_stage": 2}},
    "ZeRO-3": {"ds": {"zero_stage": 3, "packing_samples": True}},
    "ZeRO-2, LoRA": {"ds": {"zero_stage": 2, **LORA}},
    "ZeRO-3, LoRA": {"ds": {"zero_stage": 3, **LORA}},
}


def moment(folder: Path, rng: random.Random) -> Stop:
    """At or after the next checkpoint: in a step or in a write, of all processes or of one."""
    whole = [int(path.name.removeprefix("global_step")) for path in folder.glob("checkpoints/global_step*[0-9]")]
    name = f"global_step{max(whole, default=0) + 2}"
    kind = rng.choice(["step", "write", "step of one", "write of one"])
    when = folder / "checkpoints" / (name if kind.startswith("step") else f"{name}*")  # whole, or still being written
    return Stop(when, rng.uniform(0, 0.05), rank=rng.randrange(2) if kind.endswith("one") else None)


@pytest.mark.parametrize("kind", KINDS)
def test_twenty_kills_change_no_bit(kind, config, launch, tmp_path):
    """Each of four runs is killed five times and resumed by the same command; its epochs end within an update."""
    pairs = write_pairs(tmp_path / "pairs.jsonl", 86, seed=2)  # 21 micro-batches a process, two for each update
    settings = merge(config(**SAVING, data={"dataset": str(pairs)}), KINDS[kind])
    whole = launch(settings, processes=2)
    assert whole.code == 0, whole.output[-4000:]
    rng = random.Random(kind)
    for _ in range(5):
        killed = launch(settings, processes=2, folder=tmp_path, stop=moment(tmp_path, rng))
        assert killed.code in (None, -9), killed.output[-4000:]
    assert not (tmp_path / "out" / "sparsepo.json").exists()
    resumed = launch(settings, processes=2, folder=tmp_path)
    assert resumed.code == 0 and "Resuming from" in resumed.output, resumed.output[-4000:]
    assert_same_bits(resumed, whole)
    assert sorted(path.name for path in (tmp_path / "checkpoints").glob("*/")) == ["global_step18", "global_step20"]


def assert_same_bits(run: Run, expected: Run):
    mine, theirs = run.weights, expected.weights
    assert mine.keys() == theirs.keys() and any(key.startswith("mask_head.") for key in mine)
    for key, value in mine.items():
        assert torch.equal(value, theirs[key]), key


def test_under_the_launcher_within_an_epoch(config, launch, tiny, tmp_path):
    """Evaluation, accumulated gradients and a second epoch, under torchrun and then DeepSpeed's launcher."""
    evaluation = {"dataset": str(tiny / "held_out.jsonl"), "split": "train", "steps": 3}
    settings = merge(merge(config(**SAVING), KINDS["ZeRO-3"]), {"eval": evaluation})
    whole = launch(settings, processes=2)
    assert whole.code == 0, whole.output[-4000:]
    assert len(whole.scalars("eval/eval_loss")) == len(whole.scalars("eval/acc_mean")) == 6
    stop = Stop(tmp_path / "checkpoints" / "global_step6")
    apart = {"logger": {"tensorboard_dir": str(tmp_path / "stopped")}}
    stopped = launch(merge(settings, apart), processes=2, launcher="torchrun", folder=tmp_path, stop=stop)
    assert stopped.code is None, "the run ended before its checkpoint"
    resumed = launch(settings, processes=2, launcher="deepspeed", folder=tmp_path)
    assert resumed.code == 0, resumed.output[-4000:]
    assert_same_bits(resumed, whole)


PROBE = """
from openrlhf.utils.deepspeed.deepspeed import DeepspeedStrategy

load = DeepspeedStrategy.load_ckpt

def load_ckpt(self, engine, *args):
    loaded = load(self, engine, *args)
    first, *_, masks = engine.optimizer.param_groups
    for flag in ("betas", "eps", "weight_decay"):
        print(f"PROBE adam.{flag}: {first[flag]}".replace("(", "[").replace(")", "]"))
    print("PROBE adam.lr:", engine.lr_scheduler.base_lrs[0])
    print("PROBE sparsepo.mask_lr:", engine.lr_scheduler.base_lrs[-1])
    print("PROBE sparsepo.mask_weight_decay:", masks["weight_decay"])
    return loaded

DeepspeedStrategy.load_ckpt = load_ckpt
"""


@pytest.mark.parametrize("stage", [0, 2, 3])
def test_options_that_the_checkpoint_restores_are_said(stage, config, launch, tmp_path):
    """What is said to be restored is what the optimizer then has, and what the run describes itself with."""
    first = config(ds={"zero_stage": stage}, ckpt={"save_steps": 4}, adam={"weight_decay": 0.01})
    assert launch(first, folder=tmp_path).code == 0
    (tmp_path / "probe.py").write_text(PROBE)
    other = {"lr": 5e-4, "eps": 1e-3, "betas": [0.8, 0.9], "weight_decay": 0.1}
    second = merge(first, {"adam": other, "sparsepo": {"mask_lr": 0.5, "mask_weight_decay": 0.2}})
    second = merge(second, {"loss_plugins": ["probe"], "train": {"max_epochs": 2}, "ckpt": {"load_enable": True}})
    run = launch(second, folder=tmp_path, path=tmp_path)
    assert run.code == 0, run.output[-4000:]
    said = [line for line in run.output.splitlines() if "restored from the checkpoint" in line]
    assert [line.partition(";")[2] for line in said] == [
        f" {value} has no effect" for value in (5e-4, [0.8, 0.9], 1e-3, 0.1, 0.5, 0.2)
    ]
    had = [line.removeprefix("PROBE ") for line in run.output.splitlines() if line.startswith("PROBE ")]
    assert sorted(had) == sorted(line.partition(",  ")[0].partition(", restored")[0] for line in said)
    description = load_description(run.folder / "out").loss
    assert (description.mask_lr, description.mask_weight_decay) == (0.01, 0.01)


@pytest.fixture(scope="session")
def written(config, launch, tmp_path_factory) -> Path:
    """Folder of a run that left the checkpoints global_step4 and global_step8."""
    folder = tmp_path_factory.mktemp("written")
    assert launch(config(ckpt={"save_steps": 4}), folder=folder).code == 0
    return folder / "checkpoints"


@pytest.fixture
def resume(config, launch, written, tmp_path):
    """Resume a copy of those checkpoints, after `damage`."""

    def resume(damage=lambda folder: None, processes: int = 1, path: Path | None = None, **over) -> Run:
        folder = shutil.copytree(written, tmp_path / "checkpoints")
        damage(folder)
        settings = merge(config(ckpt={"load_enable": True, "save_steps": 4, "max_num": 1}), over)
        return launch(settings, folder=tmp_path, processes=processes, path=path)

    return resume


def told(run: Run) -> str:
    assert run.code == 2, run.output[-4000:]
    (line,) = [line for line in run.output.splitlines() if "sparsepo: error:" in line]
    assert "Traceback" not in run.output
    return line


def shard(folder: Path, step: int) -> Path:
    (file,) = (folder / f"global_step{step}").glob("*optim_states.pt")
    return file


def truncate(folder: Path):
    file = shard(folder, 8)
    file.write_bytes(file.read_bytes()[:1000])


DAMAGES = {
    "has 1000 of": truncate,
    "optim_states.pt is missing": lambda folder: shard(folder, 8).unlink(),
    "checkpoint.json is missing": lambda folder: (folder / "global_step8" / "checkpoint.json").unlink(),
    "checkpoint.json cannot be read": lambda folder: (folder / "global_step8" / "checkpoint.json").write_text("{"),
}


@pytest.mark.parametrize("reason", DAMAGES)
def test_the_newest_whole_checkpoint_is_taken(reason, resume):
    run = resume(DAMAGES[reason])
    assert run.code == 0, run.output[-4000:]
    assert "checkpoints/global_step4, written" in run.output
    (line,) = [line for line in run.output.splitlines() if line.startswith("Left out, because not whole: ")]
    assert "global_step8 (" in line and reason in line
    assert len(run.losses) == 6  # of the ten


def test_latest_is_for_other_programs(resume):
    """The record in each checkpoint says which is the newest; a missing or wrong `latest` changes nothing."""
    run = resume(lambda folder: (folder / "latest").write_text("global_step12"))
    assert run.code == 0 and len(run.losses) == 2


def test_no_whole_checkpoint_is_no_new_start(resume):
    def damage(folder: Path):
        truncate(folder)
        shutil.rmtree(folder / "global_step4")

    run = resume(damage)
    assert "holds no whole checkpoint: global_step8 (" in told(run)


def test_a_shard_that_cannot_be_unpickled(resume):
    def damage(folder: Path):
        file = shard(folder, 8)
        file.write_bytes(bytes(file.stat().st_size))

    line = told(resume(damage))
    assert "global_step8 cannot be loaded" in line and "the one before" in line


def test_another_number_of_processes(resume):
    line = told(resume(processes=2, train={"micro_batch_size": 4}))
    assert "global_step8 was written by a run with processes: 1, not 2" in line


def test_rotation_removes_what_this_run_wrote_alone(resume):
    def others(folder: Path):
        own = json.loads((folder / "global_step8" / "checkpoint.json").read_text())["run"]
        (folder / f"global_step2.{own}.removed").mkdir()  # what a kill has left of a rotation
        (folder / "best_of_mine").mkdir()
        (folder / "notes").mkdir()
        (folder / "notes" / "paper.txt").write_text("mine")
        (folder / "notes.removed").mkdir()
        record = (folder / "global_step4" / "checkpoint.json").read_text()
        (folder / "global_step4" / "checkpoint.json").write_text(record.replace('"run": "', '"run": "another'))

    run = resume(others, train={"max_epochs": 2})
    assert run.code == 0, run.output[-4000:]
    left = {path.name for path in (run.folder / "checkpoints").iterdir()}
    scripts = {name for name in left if name.startswith("zero_to_")}  # DeepSpeed's, one more in a later release
    assert left - scripts == {"best_of_mine", "global_step20", "global_step4", "latest", "notes", "notes.removed"}
    assert (run.folder / "checkpoints" / "notes" / "paper.txt").exists()


FULL = """
import resource

resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))  # bytes that any file may have from now on
"""


def test_a_full_disk_leaves_the_checkpoint_before(resume, written, tmp_path):
    """A limit of the file size stands in for the disk: writing fails in the middle of a file in the same way."""
    (tmp_path / "full.py").write_text(FULL)
    before = {path.name: path.stat().st_size for path in written.rglob("*.pt")}
    line = told(resume(path=tmp_path, loss_plugins=["full"], train={"max_epochs": 2}))
    assert "ckpt.path" in line and "cannot be written" in line and "MiB are free" in line
    folder = tmp_path / "checkpoints"
    assert {path.name: path.stat().st_size for path in folder.glob("global_step[48]/*.pt")} == before
    assert (folder / "latest").read_text() == "global_step8" and not (folder / "global_step12").exists()


def test_the_saved_folder_is_a_plain_model_with_the_mask_beside_it(train, server, tiny):
    folder = train().folder / "out"
    # In a process that cannot import the plugin.
    code = (
        "import sys; sys.modules['sparsepo_plugin'] = None\n"
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n"
        f"model = AutoModelForCausalLM.from_pretrained({str(folder)!r})\n"
        f"tokenizer = AutoTokenizer.from_pretrained({str(folder)!r})\n"
        "print(tokenizer.decode(model.generate(**tokenizer('w1 w2', return_tensors='pt'), max_new_tokens=3)[0]))"
    )
    done = server.run(sys.executable, "-c", code, TORCH_DEVICE_BACKEND_AUTOLOAD="0")  # nor has its entry point
    assert done.returncode == 0 and done.stdout.startswith("w1 w2"), done.stderr
    trained = AutoModelForCausalLM.from_pretrained(folder).state_dict()
    start = AutoModelForCausalLM.from_pretrained(tiny / "model").state_dict()
    assert trained.keys() == start.keys()
    assert all(not torch.equal(trained[key], start[key]) for key in trained)
    masks, description = load_masks(folder)
    assert description.loss.reward.mask == description.loss.kl.mask == "learned" and masks.kl is not None


def test_the_saved_adapter_loads_with_peft(train, tiny):
    from peft import PeftModel

    run = train(ds={"lora": {"rank": 4, "alpha": 8, "dropout": 0.0}})
    base = AutoModelForCausalLM.from_pretrained(tiny / "model")
    model = PeftModel.from_pretrained(base, run.folder / "out")
    lora_b = [value for key, value in model.state_dict().items() if "lora_B" in key]
    assert lora_b and all(value.abs().max() > 0 for value in lora_b)
    load_masks(run.folder / "out")
