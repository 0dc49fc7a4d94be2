"""Runs of TRL's trainer with our losses, in this process or, as a script, in those that a launcher starts."""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from datasets import load_dataset
from host_runs import Run, merge
from transformers import AutoModelForCausalLM, set_seed

# Ten fp32 steps with learned, independent masks, and the optimizer of the `config` fixture.
BASE = {
    "loss": "sparsepo",
    "loss_options": {"mask": "learned", "shared": False, "l1_reward": 1e-3, "l1_kl": 1e-3, "mask_lr": 1e-2},
    "beta": 0.5,
    "max_length": 32,
    "per_device_train_batch_size": 8,
    "num_train_epochs": 1,
    "learning_rate": 1e-3,
    # With the usual eps of 1e-8 Adam turns rounding noise in near-zero gradients into whole steps.
    "adam_epsilon": 1e-4,
    "adam_beta2": 0.95,
    "lr_scheduler_type": "cosine_with_min_lr",
    "lr_scheduler_kwargs": {"min_lr_rate": 0.1},
    "warmup_steps": 1,
    "bf16": False,
    "use_cpu": True,
    "logging_steps": 1,
    "save_strategy": "no",
    "report_to": "none",
    "train_sampling_strategy": "sequential",
    "disable_tqdm": True,
}


class TrlRun(Run):
    """What a run of TRL left behind."""

    @property
    def launched(self) -> dict[str, Any]:
        """See the function of this name."""
        return json.loads((self.folder / "launched.json").read_text())

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """The rows of the metrics file, those of training batches."""
        lines = (self.folder / "out" / "sparsepo_metrics.jsonl").read_text().splitlines()
        return [row for row in map(json.loads, lines) if row["split"] == "train"]

    def scalars(self, name: str) -> list[float]:
        return [row[name] for row in self.metrics]

    @property
    def losses(self) -> torch.Tensor:
        return torch.tensor(self.scalars("loss"), dtype=torch.float64)


def make_trainer(folder: Path, tiny: Path, *, plain: bool = False, lora: dict | None = None, **over: Any) -> Any:
    """A trainer on the pairs of `tiny`.

    Args:
        folder: Where it leaves its model, in `out`.
        tiny: The fixture's folder.
        plain: TRL's own, without a loss of ours.
        lora: Arguments of an adapter.
        **over: Arguments of the trainer, merged over `BASE`; `model`, `ref_model`, `order` (of the pairs, by default
            as they stand), `evaluated` (how many pairs are), `pairs` (another file of them) and `other` (whether the
            reference is another model) are the test's.
    """
    from trl import DPOConfig, DPOTrainer

    from sparsepo_plugin.hosts.trl import SparsePOTrainer, SparsePOTrainerConfig

    model, ref_model = over.pop("model", str(tiny / "model")), over.pop("ref_model", None)
    order, evaluated = over.pop("order", None), over.pop("evaluated", 0)
    file = over.pop("pairs", str(tiny / "ended.jsonl"))
    if over.pop("other", False):
        ref_model = AutoModelForCausalLM.from_pretrained(tiny / "other")
    given = merge(merge(BASE, {"output_dir": str(folder / "out")}), over)
    if plain:
        set_seed(42)  # as ours does: older releases draw an adapter before they seed
        given = {key: value for key, value in given.items() if key not in ("loss", "loss_options", "loss_plugins")}
    pairs = load_dataset("json", data_files=file, split="train", cache_dir=str(folder / "cache"))
    trained = pairs if order is None else pairs.select(order)
    trainer, config = (DPOTrainer, DPOConfig) if plain else (SparsePOTrainer, SparsePOTrainerConfig)
    return trainer(
        model,
        ref_model,
        config(**given),
        train_dataset=trained,
        eval_dataset=pairs.select(range(evaluated)) if evaluated else None,
        peft_config=lora and _adapter(lora),
    )


def _adapter(given: dict) -> Any:
    from peft import LoraConfig

    return LoraConfig(**{"r": 4, "lora_alpha": 8, "task_type": "CAUSAL_LM", "target_modules": "all-linear", **given})


def train(folder: Path, tiny: Path, resume: bool = False, **over: Any) -> TrlRun:
    """A finished run, which also says how it was launched; see `make_trainer`."""
    trainer = make_trainer(folder, tiny, **over)
    trainer.train(resume_from_checkpoint=resume or None)
    trainer.save_model()
    if trainer.is_world_process_zero():
        (folder / "launched.json").write_text(json.dumps(launched(trainer)))
    return TrlRun(0, "", folder)


def launched(trainer: Any) -> dict[str, Any]:
    """What really ran around the model."""
    wrapper, parameter = trainer.model_wrapped, next(trainer.model.parameters())
    stage = wrapper.zero_optimization_stage() if trainer.is_deepspeed_enabled else None
    return {
        "processes": trainer.accelerator.num_processes,
        "wrapper": type(wrapper).__name__,
        "zero_stage": stage,
        "sharded": hasattr(parameter, "ds_id"),
    }


if __name__ == "__main__":
    spec = json.loads(Path(sys.argv[1]).read_text())
    if (
        "deepspeed" in spec
    ):  # accelerate knows no backend for DeepSpeed on CPU, and would take each process for the only one
        PartialState(backend="gloo")
        spec["accelerator_config"] = {"use_configured_state": True}
    train(Path(spec.pop("folder")), Path(spec.pop("tiny")), **spec)
    PartialState().wait_for_everyone()  # or one that still waits for another may abort when that ends
    PartialState().destroy_process_group()
