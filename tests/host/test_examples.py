"""Every shipped YAML is accepted by the real parser and by the loss."""

from pathlib import Path

import pytest

from sparsepo_plugin.train import load_host

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").rglob("*.yaml"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example(path):
    stage = "train_sft" if path.stem.endswith("_sft") else "train_dpo"
    host = load_host(stage)
    args = host.parse_args(["--config", str(path)])
    if stage == "train_dpo":
        loss = host.get_loss_class(args.loss, args.loss_plugins)(args)
        assert loss.config.section == args.loss
        assert loss.loads_reference == (args.ds.lora.rank == 0 and args.loss != "simpo")


def test_there_is_one_for_each_road():
    assert {"full_zero3", "lora", "packed_flash"} <= {path.stem for path in EXAMPLES}
