"""Runs of Axolotl: settings, how they are started, and what they leave."""

import json
import os
import sys
from pathlib import Path

import torch
import yaml
from host_fixtures import ENVIRONMENT
from host_runs import Run, merge
from process_server import ProcessServer, Stop

from sparsepo_plugin.record import read_metrics

OURS, ON_CPU = "sparsepo_plugin.SparsePOPlugin", "on_cpu.OnCPU"
PLUGINS = Path(__file__).parents[1] / "axolotl"  # where that of the tests lies
LORA = {"adapter": "lora", "lora_r": 4, "lora_alpha": 8, "lora_dropout": 0.0, "lora_target_linear": True}
LAUNCHERS = {
    "accelerate": "axolotl train FILE -- --multi_gpu --num_processes PROCESSES",
    "torchrun": "axolotl train FILE --launcher torchrun -- --standalone --nproc_per_node PROCESSES",
    "python": "axolotl train FILE --launcher python",
    "deepspeed": "deepspeed --num_gpus PROCESSES --no_local_rank --module axolotl.cli.train FILE",
}


def axolotl_server(extensions: Path, python: str = sys.executable) -> ProcessServer:
    """What starts, and ends, runs of Axolotl.

    Args:
        extensions: Where torch compiles DeepSpeed's C++.
        python: The interpreter of the environment that Axolotl is installed in.
    """
    own = {"AXOLOTL_DO_NOT_TRACK": "1", "DS_ACCELERATOR": "cpu", "TORCH_EXTENSIONS_DIR": str(extensions)}
    paths = [str(PLUGINS), *filter(None, [ENVIRONMENT.get("PYTHONPATH")])]
    return ProcessServer({**ENVIRONMENT, **own, "PYTHONPATH": os.pathsep.join(paths)}, "warm_axolotl", python)


def settings(tiny: Path) -> dict:
    """The YAML of ten fp32 steps with learned, independent masks, on the pairs of the `tiny` fixture."""
    return {
        "base_model": str(tiny / "model"),
        "plugins": [OURS],
        "rl": "dpo",
        "rl_beta": 0.5,
        "datasets": [{"path": str(tiny / "pairs.jsonl"), "split": "train", "type": {"field_prompt": "prompt"}}],
        "val_set_size": 0,
        "dataset_num_proc": 1,
        "sequence_len": 32,
        "micro_batch_size": 8,
        "gradient_accumulation_steps": 1,
        "num_epochs": 1,
        "learning_rate": 1e-3,
        "lr_scheduler": "constant",
        "optimizer": "adamw_torch",
        # With the usual eps of 1e-8 Adam turns rounding noise in near-zero gradients into whole steps.
        "adam_epsilon": 1e-4,
        "seed": 42,
        "attn_implementation": "sdpa",
        **dict.fromkeys(("bf16", "fp16", "tf32"), False),
        "loss": "sparsepo",
        "sparsepo": {"mask": "learned", "shared": False, "l1_reward": 1e-3, "l1_kl": 1e-3, "mask_lr": 1e-2},
    }


def start(
    server: ProcessServer,
    config: dict,
    folder: Path,
    processes: int = 1,
    launcher: str = "fork",
    stop: Stop | None = None,
    path: Path | None = None,
) -> Run:
    """Run `axolotl train`, or its module forked from a warm process, to its end.

    Args:
        server: As `axolotl_server` makes it.
        config: The YAML; where things are left is added.
        folder: Where they are.
        processes: How many train.
        launcher: A key of `LAUNCHERS`, or `fork`.
        stop: See `ProcessServer`.
        path: See `ProcessServer.fork`.
    """
    places = {"output_dir": str(folder / "out"), "dataset_prepared_path": str(folder / "prepared")}
    given, environment = merge(places, config), {}
    if processes > 1:
        given["plugins"] = [*given["plugins"], ON_CPU]
    if "deepspeed" not in given:  # with it accelerate turns DeepSpeed off
        environment["ACCELERATE_USE_CPU"] = "true"
    file = folder / "run.yaml"
    file.write_text(yaml.safe_dump(given))
    if launcher == "fork":
        module = ("axolotl.cli.train", str(file))
        done = server.fork(*module, processes=processes, stop=stop, path=path, **environment)
    else:
        words = {"FILE": str(file), "PROCESSES": str(processes)}
        command = [words.get(word, word) for word in LAUNCHERS[launcher].split()]
        done = server.run(*command, stop=stop, **environment)
    assert not server.running()
    return Run(done.returncode, done.stdout + done.stderr, folder)


def losses(run: Run) -> torch.Tensor:
    """Of each training step, as the metrics file has them."""
    rows = [row for row in read_metrics(run.folder / "out") if row["split"] == "train"]
    return torch.tensor([row["loss"] for row in rows], dtype=torch.float64)


def zero_file(folder: Path, stage: int) -> str:
    """A file for `deepspeed:` in which DeepSpeed takes from the trainer whatever it can."""
    file = folder / f"zero{stage}.json"
    optimization = {"stage": stage, "stage3_gather_16bit_weights_on_model_save": True}
    auto = ("gradient_accumulation_steps", "train_batch_size", "train_micro_batch_size_per_gpu")
    file.write_text(json.dumps({"zero_optimization": optimization, **dict.fromkeys(auto, "auto")}))
    return str(file)
