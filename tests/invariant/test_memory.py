"""2,000 steps with texts of varied lengths leave the resident memory where it was after the first."""

from statistics import mean

from host_runs import write_pairs
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

STEPS, EVERY = 2000, 10

# Its own measure of the process, logged as a number of the loss.
WEIGHED = """
import psutil
import torch

from sparsepo_plugin.objectives.sparsepo import SparsePO


class Weighed(SparsePO):
    def forward(self, stats, masks, tokens):
        output = super().forward(stats, masks, tokens)
        output.metrics["resident"] = torch.tensor(psutil.Process().memory_info().rss / 2**20)
        return output
"""


def test_resident_memory_is_flat(config, launch, tiny, tmp_path):
    """2 % over 1,600 steps is 6 kB a step: the hidden rows of a batch, if they were kept, would be 20 kB."""
    (tmp_path / "weighed.py").write_text(WEIGHED)
    sizes = {"hidden_size": 64, "intermediate_size": 64, "head_dim": 16, "num_hidden_layers": 1}
    small = LlamaConfig.from_pretrained(tiny / "model", **sizes)
    LlamaForCausalLM(small).save_pretrained(tmp_path / "model")
    AutoTokenizer.from_pretrained(tiny / "model").save_pretrained(tmp_path / "model")
    write_pairs(tmp_path / "pairs.jsonl", 1000, seed=0, longest=40)
    run = launch(
        config(
            loss="weighed:Weighed",
            sparsepo=None,
            options=config()["sparsepo"],
            model={"model_name_or_path": str(tmp_path / "model")},
            data={"dataset": str(tmp_path / "pairs.jsonl"), "max_len": 64},
            train={"batch_size": 2, "micro_batch_size": 2, "max_epochs": STEPS // 500},
            ds={"packing_samples": True},
            logger={"logging_steps": EVERY},
        ),
        path=tmp_path,
    )
    assert run.code == 0, run.output[-4000:]
    resident = run.scalars("train/resident")
    assert len(resident) == STEPS // EVERY
    warm, late = mean(resident[200 // EVERY : 400 // EVERY]), mean(resident[-200 // EVERY :])
    assert abs(late / warm - 1) < 0.02, resident
