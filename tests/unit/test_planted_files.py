"""Files with code in the folder of a finished run: what `load_run` reads runs none of it.

Each test plants code that leaves a mark, in the form in which a careless reader would run it.
"""

import json
import pickle
import shutil
import sys
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny import LAYERS, VOCABULARY, WIDTH, decoder, describe
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from sparsepo_plugin import LossConfig, SparsePOError, load_run, save_masks
from sparsepo_plugin.data.chat import renderer
from sparsepo_plugin.masks import build_masks

CODE = """
open({mark!r}, "w").close()
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
class Config(LlamaConfig):
    model_type = "planted"
class Model(LlamaForCausalLM):
    config_class = Config
class Fast(PreTrainedTokenizerFast):
    pass
"""
AUTO_MODEL = {"AutoConfig": "planted.Config", "AutoModelForCausalLM": "planted.Model"}
AUTO_TOKENIZER = {"AutoTokenizer": ["planted.Fast", "planted.Fast"]}


class Planted:
    """Leaves its mark when it is unpickled."""

    def __init__(self, mark):
        self.mark = str(mark)

    def __reduce__(self):
        return Path.touch, (Path(self.mark),)


@pytest.fixture
def mark(tmp_path):
    """Where the planted code leaves its mark; a pickle does when it is loaded."""
    mark = tmp_path / "mark"
    pickle.loads(pickle.dumps(Planted(mark)))
    mark.unlink()
    return mark


@pytest.fixture
def left(tmp_path, mark, monkeypatch):
    """The folder of a finished run with `planted.py` in it, which is on the path like the current folder's modules."""

    def left(adapter=False):
        folder = tmp_path / "run"
        reference = decoder("llama", 1)
        reference.save_pretrained(tmp_path / "reference")
        lora = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
        policy = get_peft_model(reference, lora) if adapter else decoder("llama", 0)
        policy.save_pretrained(folder)
        tokenizer().save_pretrained(folder)
        config = LossConfig.from_section({"shared": False}, "sparsepo", beta=0.5, label_smoothing=0.0)
        described = describe(config, **dict.fromkeys(("reference", "base_model"), str(tmp_path / "reference")))
        save_masks(folder, described, build_masks(config, WIDTH, LAYERS, seed=7).state_dict())
        (folder / "planted.py").write_text(CODE.format(mark=str(mark)))
        monkeypatch.syspath_prepend(folder)
        return folder

    yield left
    sys.modules.pop("planted", None)


def tokenizer():
    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(VOCABULARY)}, unk_token="w0"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="w0", eos_token="w2")


def edit(path, **values):
    path.write_text(json.dumps({**(json.loads(path.read_text()) if path.exists() else {}), **values}))


@pytest.mark.parametrize("form", ["zip", "plain"])
@pytest.mark.parametrize(
    ("replaced", "by", "says"),
    [
        ("model.safetensors", "pytorch_model.bin", "the policy"),
        ("adapter_model.safetensors", "adapter_model.bin", "the adapter"),
        ("model.safetensors", "model.safetensors", "the policy"),
        ("mask_head.safetensors", "mask_head.safetensors", "the masks"),
    ],
)
def test_weights(left, mark, replaced, by, says, form):
    """A pickle in the place of weights, under its own name and under that of safetensors."""
    folder = left(adapter=replaced.startswith("adapter"))
    (folder / replaced).unlink()
    torch.save({"weight": Planted(mark)}, folder / by, _use_new_zipfile_serialization=form == "zip")
    with pytest.raises(SparsePOError, match=f"^{says}: {folder}.* cannot be loaded: [^\n]*$"):
        load_run(folder, device="cpu")
    assert not mark.exists()


@pytest.mark.parametrize("name", ["sparsepo.json", "config.json", "tokenizer.json", "tokenizer_config.json"])
def test_a_pickle_in_the_place_of_a_text(left, mark, name):
    folder = left()
    (folder / name).write_bytes(pickle.dumps(Planted(mark)))
    with pytest.raises((SparsePOError, ValueError)):
        load_run(folder, device="cpu")
    assert not mark.exists()


def custom_generate(folder):
    (folder / "custom_generate").mkdir()
    shutil.copy(folder / "planted.py", folder / "custom_generate" / "generate.py")
    edit(folder / "generation_config.json", custom_generate=str(folder), trust_remote_code=True)


IGNORED = {
    "a model's class": lambda folder: edit(folder / "config.json", auto_map=AUTO_MODEL, trust_remote_code=True),
    "generation": custom_generate,
    "an adapter's library": lambda folder: edit(
        folder / "adapter_config.json", auto_mapping={"parent_library": "planted", "base_model_class": "Model"}
    ),
    "pickles beside it": lambda folder: [
        torch.save(Planted(folder.parent / "mark"), folder / name)
        for name in ("training_args.bin", "optimizer.pt", "pytorch_model.bin", "adapter_model.bin", "rng_state.pth")
    ],
}


@pytest.mark.parametrize("kind", IGNORED)
def test_what_is_ignored(left, mark, kind):
    folder = left(adapter="adapter" in kind)
    IGNORED[kind](folder)
    assert len(load_run(folder, device="cpu").tokens(prompt="w1 ", response="w3 w4")) == 3
    assert not mark.exists()


REFUSED = {
    "a model's class": lambda folder: edit(
        folder / "config.json", model_type="planted", auto_map=AUTO_MODEL, trust_remote_code=True
    ),
    "a tokenizer's class": lambda folder: edit(
        folder / "tokenizer_config.json", tokenizer_class="Fast", auto_map=AUTO_TOKENIZER, trust_remote_code=True
    ),
    "a plugin": lambda folder: edit(folder / "sparsepo.json", loss_plugins=["planted"]),
    "an option that is not there": lambda folder: edit(folder / "sparsepo.json", allow_code=True),
}


@pytest.mark.parametrize("plant", REFUSED.values(), ids=REFUSED)
def test_what_is_refused(left, mark, plant):
    folder = left()
    plant(folder)
    with pytest.raises(SparsePOError) as refusal:
        load_run(folder, device="cpu")
    assert len(str(refusal.value).splitlines()) == 1 and not mark.exists()


def test_a_module_that_an_adapter_names(left, mark):
    folder = left(adapter=True)
    edit(folder / "adapter_config.json", megatron_config={"a": 1}, megatron_core="planted")
    with pytest.raises(SparsePOError, match=r"the adapter: .* cannot be loaded"):
        load_run(folder, device="cpu")
    assert not mark.exists()


def test_the_tokenizer_of_a_conversion(left, mark):
    """`sparsepo data chat --tokenizer`: no question at the keyboard either."""
    folder = left()
    REFUSED["a tokenizer's class"](folder)
    with pytest.raises(SparsePOError, match=r"^--tokenizer "):
        renderer(str(folder), None)
    assert not mark.exists()
