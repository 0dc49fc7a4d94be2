"""Ten steps on text that nobody wrote for this project: a smoke test.

Every interpreter brings some, the manual that `help()` shows. Real preference pairs lie beside the repository, in
../shared/data, and are not part of it; without them their tests are skipped.
"""

import gzip
import json
import math
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from pydoc_data.topics import topics

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

DATA = Path(__file__).parents[3] / "shared" / "data"
FILES = {"imdb": "odpo_imdb_train", "hh": "hh_helpful_single_turn", "chat": "dpo_en_demo"}
MAX_LEN, STEPS, BATCH = 640, 10, 4

TEMPLATE = (
    "{% for message in messages %}<|{{ message.role }}|>\n{{ message.content }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)

beside = pytest.mark.skipif(not DATA.is_dir(), reason="no real pairs in ../shared/data")
every_set = pytest.mark.parametrize("name", ["manual", *(pytest.param(name, marks=beside) for name in FILES)])


@pytest.fixture(scope="session")
def real(tmp_path_factory) -> Path:
    """Folder with `model/`, a tiny Llama and a byte-level BPE of the manual, and a file of each set that is there."""
    folder = tmp_path_factory.mktemp("real")
    rows = {"manual": manual()}
    if DATA.is_dir():
        rows |= {name: [as_openrlhf_reads_it(name, row) for row in read(file)] for name, file in FILES.items()}
    tokenizer = train_tokenizer(row["chosen"] for row in rows["manual"])
    tokenizer.save_pretrained(folder / "model")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=MAX_LEN,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        initializer_range=0.1,
    )
    LlamaForCausalLM(config).save_pretrained(folder / "model")
    for name in rows:
        # A response beyond data.max_len is refused by design, so pairs that long stay out.
        fitting = [row for row in rows[name] if longest(row, tokenizer) <= MAX_LEN][: STEPS * BATCH]
        assert len(fitting) == STEPS * BATCH
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in fitting))
    return folder


def manual() -> list[dict]:
    """Paragraphs of Python's manual: the first half of each, how it goes on, and how the next one does."""
    paragraphs = [text for page in topics.values() for text in page.split("\n\n") if len(text) > 80]
    cuts = [text.find(" ", len(text) // 2) for text in paragraphs]
    halves = [(text[:cut], text[cut:]) for text, cut in zip(paragraphs, cuts, strict=True)]
    return [{"prompt": start, "chosen": end, "rejected": other} for (start, end), (_, other) in pairwise(halves)]


def read(name: str) -> list[dict]:
    with gzip.open(DATA / f"{name}.jsonl.gz", "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines][:400]


def as_openrlhf_reads_it(name: str, row: dict) -> dict:
    prompt, chosen, rejected = row["prompt"], row["chosen"], row["rejected"]
    if name == "chat":  # OpenRLHF joins two lists of messages and applies the template
        chosen, rejected = ([{"role": "assistant", "content": text}] for text in (chosen, rejected))
    elif name == "imdb":  # completions come without the space that parts them from the prompt
        chosen, rejected = f" {chosen}", f" {rejected}"
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}


def train_tokenizer(texts: Iterator[str]):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=1000,
        special_tokens=["<pad>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", chat_template=TEMPLATE
    )


def longest(row: dict, tokenizer) -> int:
    """Tokens of the longer of the pair's two sequences, the end-of-sequence token included."""
    lengths = []
    for response in (row["chosen"], row["rejected"]):
        joined = row["prompt"] + response
        text = joined + " </s>" if isinstance(joined, str) else tokenizer.apply_chat_template(joined, tokenize=False)
        lengths.append(len(tokenizer(text)["input_ids"]))
    return max(lengths)


@pytest.fixture
def run(real, train):
    """Ten steps of a loss on one of the sets."""

    def run(loss: str, name: str, section: dict):
        model = {"model_name_or_path": str(real / "model"), **({"beta": None} if loss == "simpo" else {})}
        data = {"dataset": str(real / f"{name}.jsonl"), "max_len": MAX_LEN, "apply_chat_template": name == "chat"}
        batches = {"batch_size": BATCH, "micro_batch_size": BATCH}
        return train(**{"model": model, "data": data, "train": batches, "loss": loss, "sparsepo": None, loss: section})

    return run


@every_set
def test_sparsepo(name, run):
    finished = run("sparsepo", name, {"mask": "learned", "l1_reward": 1e-4, "l1_kl": 1e-4, "metrics_every": 1})
    assert_trained(finished)
    assert_left_the_reference(finished)
    means = torch.tensor(finished.scalars("train/mask_reward_mean_chosen"))
    assert means.min() > 0 and means[0] != means[-1]


@every_set
def test_tdpo(name, run):
    finished = run("tdpo", name, {})
    assert_trained(finished)
    assert_left_the_reference(finished)
    assert finished.losses[0].item() == pytest.approx(math.log(2), abs=1e-5)  # the policy still is the reference


@every_set
def test_simpo(name, run, real):
    finished = run("simpo", name, {})
    assert_trained(finished)
    # Mean log-probabilities of a random model: near those of a uniform one over its thousand tokens.
    rewards = finished.scalars("train/chosen_reward") + finished.scalars("train/reject_reward")
    assert all(-3.0 * math.log(1000) < reward < 0 for reward in rewards)


def assert_trained(finished):
    losses = finished.losses
    assert len(losses) == STEPS and torch.isfinite(losses).all()
    assert (losses - losses[0]).abs().max() > 1e-3


def assert_left_the_reference(finished):
    for side in ("chosen", "rejected"):
        first, *_, last = finished.scalars(f"train/token_kl_{side}")
        assert abs(first) < 1e-6 < 1e-4 < last
