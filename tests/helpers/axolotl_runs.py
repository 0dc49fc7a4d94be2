"""Runs of Axolotl: settings, and what they leave."""

import json
from pathlib import Path

import torch
from host_runs import Run

from sparsepo_plugin.record import read_metrics

OURS, ON_CPU = "sparsepo_plugin.SparsePOPlugin", "on_cpu.OnCPU"

LORA = {"adapter": "lora", "lora_r": 4, "lora_alpha": 8, "lora_dropout": 0.0, "lora_target_linear": True}


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
