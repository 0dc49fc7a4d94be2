"""Rewards against VADER's documentation, transformers' own pipeline, and a head that is applied by hand.

Tolerance: float32 forwards of a padded batch against those of single texts, 1e-5.
"""

import sys

import pytest
import torch
from finished_runs import PLAIN, byte_tokenizer
from tiny import decoder
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
    pipeline,
)
from words import word_tokenizer

from sparsepo_plugin import SparsePOError
from sparsepo_plugin.generation.rewards import load_reward

CPU = torch.device("cpu")
TEXTS = [PLAIN["chosen"], PLAIN["rejected"], " good", PLAIN["chosen"] + PLAIN["rejected"]]
SIZE = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}


@pytest.fixture
def offline(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def scores(name, completions=TEXTS, prompts=None):
    return load_reward(str(name), CPU)(prompts or [PLAIN["prompt"]] * len(completions), completions)


def save(folder, model, tokenizer):
    with torch.random.fork_rng():
        torch.manual_seed(5)
        for parameter in model.parameters():  # large enough for scores that differ
            parameter.data = 0.5 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model.eval()


def classifier(folder, labels, **changes):
    tokenizer = byte_tokenizer()
    config = {"vocab_size": len(tokenizer), "max_position_embeddings": 128, "id2label": dict(enumerate(labels))}
    return save(folder, BertForSequenceClassification(BertConfig(**{**SIZE, **config, **changes})), tokenizer)


def rater(folder, tokenizer, pad):
    config = LlamaConfig(**SIZE, vocab_size=len(tokenizer), num_labels=1, pad_token_id=pad)
    return save(folder, LlamaForSequenceClassification(config), tokenizer)


def test_vader():
    """The numbers of its README."""
    texts = ["VADER is smart, handsome, and funny.", "VADER is not smart, handsome, nor funny.", "The book was good."]
    assert scores("vader", texts) == [0.8316, -0.7424, 0.4404]


@pytest.mark.parametrize("labels", [["NEGATIVE", "POSITIVE"], ["Positive", "Negative"]])
def test_a_classifier_gives_the_probability_of_positive(labels, tmp_path):
    """p if the pipeline says POSITIVE, else 1 − p (paper §3.1), of the completion without its prompt."""
    classifier(tmp_path, labels)
    expected = [
        found["score"] if found["label"].upper() == "POSITIVE" else 1 - found["score"]
        for found in pipeline("text-classification", str(tmp_path), device="cpu")(TEXTS)
    ]
    assert max(expected) - min(expected) > 0.05
    assert scores(tmp_path) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("pad", [0, None], ids=["padded", "no padding token"])
def test_a_scalar_head_gives_its_logit(pad, tmp_path):
    """Of prompt and completion together: the head on the last token's state."""
    tokenizer = byte_tokenizer()
    model = rater(tmp_path, tokenizer, pad)
    expected = [by_hand(model, tokenizer(PLAIN["prompt"] + text)["input_ids"]) for text in TEXTS]
    assert max(expected) - min(expected) > 0.1
    assert scores(tmp_path) == pytest.approx(expected, abs=1e-5)


def by_hand(model, ids):
    with torch.no_grad():
        return (model.model(torch.tensor([ids])).last_hidden_state[0, -1] @ model.score.weight[0]).item()


def test_messages_go_through_the_chat_template(tmp_path):
    tokenizer = word_tokenizer()
    model = rater(tmp_path, tokenizer, 0)
    talk = [{"role": "user", "content": "w5 w6"}, {"role": "assistant", "content": "w7"}]
    expected = by_hand(model, tokenizer("w1 w5 w6 </s> w2 w7 </s> w2 w8 w9 </s>")["input_ids"])
    assert scores(tmp_path, ["w8 w9"], [talk]) == pytest.approx([expected], abs=1e-5)
    tokenizer.chat_template = None
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "chat_template.jinja").unlink()
    with pytest.raises(SparsePOError, match="has no chat template, and prompts are messages"):
        scores(tmp_path, ["w8 w9"], [talk])


def test_a_function(tmp_path, monkeypatch):
    (tmp_path / "lengths_of_a_test.py").write_text(
        "def both(prompts, completions):\n"
        "    return [len(p) + len(c) / 100 for p, c in zip(prompts, completions, strict=True)]\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert scores("lengths_of_a_test:both", ["w2", "w2 w3"], ["a", "bc"]) == [1.02, 2.05]


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("return [1.0]", r"gave \[1.0\], a list of 2 numbers is needed"),
        ("return 1.0", "gave 1.0, a list of 2 numbers is needed"),
        ("return [1.0, float('nan')]", "gave nan for the completion ' b', a finite number is needed"),
        ("return ['1', 2]", "gave '1' for the completion ' a'"),
        ("return [None, 2]", "gave None for the completion ' a'"),
        ("return completions[5]", r"IndexError: list index out of range \(.*faulty_of_a_test.py:2\)"),
        ("raise SystemExit(0)", r"SystemExit: 0 \(.*faulty_of_a_test.py:2\)"),
    ],
)
def test_functions_that_go_wrong(body, says, tmp_path, monkeypatch):
    (tmp_path / "faulty_of_a_test.py").write_text(f"def score(prompts, completions):\n    {body}\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "faulty_of_a_test", raising=False)
    with pytest.raises(SparsePOError, match=f"^--reward faulty_of_a_test:score.*{says}"):
        scores("faulty_of_a_test:score", [" a", " b"])


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("Vader", "--reward: allowed are vader, package.module:function, or the folder or hub name of a classifier"),
        ("no/such/place", "--reward: allowed are vader"),
        ("", "--reward: allowed are vader"),
        ("absent_of_a_test:score", "--reward absent_of_a_test:score cannot be imported: no such module"),
        (":", "--reward : cannot be imported"),
        ("math:absent", "--reward math:absent: math has no function 'absent'; allowed are vader"),
        ("math:pi", "--reward math:pi: math has no function 'pi'"),
    ],
)
def test_names_of_nothing(name, says, offline):
    with pytest.raises(SparsePOError, match=f"^{says}"):
        load_reward(name, CPU)


@pytest.mark.parametrize("labels", [["LABEL_0", "LABEL_1"], ["NEGATIVE", "NEUTRAL", "POSITIVE"]])
def test_other_labels(labels, tmp_path):
    classifier(tmp_path, labels)
    with pytest.raises(SparsePOError, match=f"has the labels {', '.join(labels)}; allowed are vader"):
        load_reward(str(tmp_path), CPU)


def test_a_language_model_has_no_head(tmp_path):
    """transformers would draw one at random."""
    tokenizer = byte_tokenizer()
    decoder(vocab_size=len(tokenizer), id2label={0: "NEGATIVE", 1: "POSITIVE"}).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(SparsePOError, match=r"the model has no weights for score.weight; allowed are vader"):
        load_reward(str(tmp_path), CPU)


def test_a_text_that_is_too_long(tmp_path):
    classifier(tmp_path, ["NEGATIVE", "POSITIVE"], max_position_embeddings=8)
    with pytest.raises(SparsePOError, match=r"takes 1 to 8 tokens, the completion .* makes"):
        scores(tmp_path)


def test_a_model_that_brings_code_is_refused(tmp_path, offline):
    """It is not run, and nobody is asked."""
    (tmp_path / "config.json").write_text(
        '{"model_type": "own", "auto_map": {"AutoConfig": "own.Config", '
        '"AutoModelForSequenceClassification": "own.Model"}}'
    )
    (tmp_path / "own.py").write_text("raise RuntimeError('this ran')")
    with pytest.raises(SparsePOError, match="--reward: allowed are vader") as refused:
        load_reward(str(tmp_path), CPU)
    assert "this ran" not in str(refused.value)
