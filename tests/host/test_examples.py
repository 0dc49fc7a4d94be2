"""Every shipped YAML of OpenRLHF is accepted by the real parser and by the loss."""

from pathlib import Path

import pytest

from sparsepo_plugin.hosts.openrlhf.program import load_program

WITHOUT_REFERENCE = {"simpo", "confpo", "alphapo"}
FOLDER = Path(__file__).parents[2] / "examples"
# Those of frontier and localize are parts, which are checked put together.
EXAMPLES = sorted(path for name in ("demo", "openrlhf") for path in (FOLDER / name).rglob("*.yaml"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example(path):
    stage = "train_sft" if path.stem.endswith("_sft") else "train_dpo"
    host = load_program(stage)
    args = host.parse_args(["--config", str(path)])
    if stage == "train_dpo":
        loss = host.get_loss_class(args.loss, args.loss_plugins)(args)
        assert loss.config.section == args.loss
        assert loss.loads_reference == (args.ds.lora.rank == 0 and args.loss not in WITHOUT_REFERENCE)


def test_there_is_one_for_each_road():
    assert {"full_zero3", "lora", "packed_flash"} <= {path.stem for path in EXAMPLES}


@pytest.mark.parametrize("path", [path for path in EXAMPLES if path.stem.endswith("_sft")], ids=lambda path: path.stem)
def test_sft_as_the_paper_has_it(path):
    args = load_program("train_sft").parse_args(["--config", str(path)])
    experiment = path.stem.removesuffix("_sft")
    assert (args.data.input_key, args.data.output_key, args.data.input_template) == ("prompt", "chosen", "{}")
    assert args.train.batch_size == {"hh": 1024, "mix": 128}[experiment]
    assert (args.lr_scheduler, args.lr_warmup_ratio, args.adam.betas) == ("cosine", 0.1, [0.9, 0.999])
    assert (args.eval.dataset, args.eval.split) == (f"data/{experiment}_test.jsonl", "train")
