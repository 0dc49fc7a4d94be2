"""A finished run asked about texts, against whole logits of its models written out, token by token.

Tolerance: float32 projections of some rows against all of them, 1e-5; masks are the same calls on the same rows, 1e-6.
"""

import json
import shutil
from contextlib import suppress
from functools import partial

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny import LAYERS, VOCABULARY, WIDTH, decoder, describe, make_step, runner
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from sparsepo_plugin import LossConfig, ResponseTokens, Run, SparsePOError, load_run, save_masks
from sparsepo_plugin.masks import build_masks, learns
from sparsepo_plugin.texts import Joining

WORDS = ["<pad>", "<s>", "</s>", *(f"w{i}" for i in range(VOCABULARY - 3))]
PAIR = {"prompt": "w1 w2 w3 ", "chosen": "w4 w5 w6 w7", "rejected": "w8 w9"}
CHOSEN, REJECTED = ["w4", "w5", "w6", "w7", "</s>"], ["w8", "w9", "</s>"]
METHODS = {
    "sparsepo": {"shared": False, "l1_reward": 0.1},
    "dpo": {},
    "tdpo": {"version": 1},
    "dpop": {"lambda": 3},
    "simpo": {},
    "d2po": {"gamma": 0.7},
    "sepo": {"oracle": "oracle", "k": 0.5},
    "confpo": {},
    "selective": {},
    "wpo": {},
}


@pytest.fixture(scope="module")
def tokenizer():
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>")


@pytest.fixture(scope="module")
def models_folder(tmp_path_factory):
    """A policy, a reference and an oracle as folders."""
    folder = tmp_path_factory.mktemp("models")
    for seed, name in enumerate(("policy", "reference", "oracle")):
        decoder("llama", seed).save_pretrained(folder / name)
    return folder


@pytest.fixture
def leave(tmp_path, models_folder, tokenizer):
    """Leave what a run leaves, and return its folder and its masks."""

    def leave(loss="sparsepo", section=None, policy=None, **changes):
        section = METHODS[loss] if section is None else section
        if "oracle" in section:
            section = {**section, "oracle": str(models_folder / "oracle")}
        config = LossConfig.from_section(section, loss, beta=0.5, label_smoothing=0.0)
        folder = tmp_path / "run"
        if policy is None:
            shutil.copytree(models_folder / "policy", folder)
        else:
            policy.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        masks = build_masks(config, WIDTH, LAYERS, seed=7)
        reference = str(models_folder / "reference") if config.uses_reference else None
        save_masks(
            folder,
            describe(config, **{"reference": reference, "base_model": str(models_folder / "reference"), **changes}),
            masks.state_dict() if masks else {},
        )
        return folder, masks and masks.eval()

    return leave


def test_weights_of_a_question(leave):
    """By hand: one of the two characters of w5 weighs 0.5; what is in no span weighs 1, and the end 0."""
    section = {"reward": {"mask": "column", "end": 0.0}, "kl": {"mask": "uniform"}}
    run = load_run(leave(section=section)[0])
    spans = {
        "chosen_weights": [{"start": 4, "end": 8, "weight": 0.5, "text": "5 w6"}],
        "rejected_weights": [{"start": 0, "end": 2, "weight": 0.25}],
    }
    table = run.tokens(**PAIR, **spans)
    assert table.of("chosen").mask_reward.tolist() == [1.0, 0.75, 0.5, 1.0, 0.0]
    assert table.of("rejected").mask_reward.tolist() == [0.25, 1.0, 0.0]
    assert run.tokens(**PAIR).of("rejected").mask_reward.tolist() == [1.0, 1.0, 0.0]
    alone = run.tokens("w1 ", response="w2 w3", response_weights=spans["rejected_weights"])
    assert alone.mask_reward.tolist() == [0.25, 1.0, 0.0]
    with pytest.raises(SparsePOError, match="chosen_weights: span 1 is from 4 to 80"):
        run.tokens(**PAIR, chosen_weights=[{"start": 4, "end": 80, "weight": 0.5}])
    with pytest.raises(SparsePOError, match="tokens: response_weights has no effect without response"):
        run.tokens(**PAIR, response_weights=[])


def test_weights_that_no_mask_reads(leave):
    with pytest.raises(SparsePOError, match="tokens: chosen_weights has no effect, no mask reads weights of the data"):
        load_run(leave("dpo")[0]).tokens(**PAIR, chosen_weights=[])


def logps_of(model, ids):
    """Log-probabilities of every next token. [T-1, V]."""
    with torch.no_grad():
        return model(input_ids=ids[None]).logits[0, :-1].log_softmax(-1)


def expected(policy, reference, tokenizer, words, prompt="w1 w2 w3 "):
    """log π, log π_ref and KL(π_ref‖π) of each response token, from whole logits."""
    ids = torch.tensor(tokenizer(prompt + " ".join(words))["input_ids"])
    start = len(prompt.split()) - 1
    logps, reference_logps = (logps_of(model, ids)[start:] for model in (policy, reference))
    label = ids[start + 1 :, None]
    kl = (reference_logps.exp() * (reference_logps - logps)).sum(-1)
    return logps.gather(1, label)[:, 0], reference_logps.gather(1, label)[:, 0], kl


@pytest.mark.parametrize("loss", METHODS)
def test_every_loss(leave, loss, tokenizer, models_folder):
    """Columns of a pair; a loss that reads no reference has none to show, and KL is shown wherever there is one."""
    folder, masks = leave(loss)
    table = load_run(folder, device="cpu").tokens(**PAIR)
    assert table.text == CHOSEN + REJECTED
    assert table.response == ["chosen"] * 5 + ["rejected"] * 3
    policy, reference = decoder("llama", 0), decoder("llama", 1)
    for side, words in (("chosen", CHOSEN), ("rejected", REJECTED)):
        part = table.of(side)
        logps, reference_logps, kl = expected(policy, reference, tokenizer, words)
        torch.testing.assert_close(part.logps, logps, atol=1e-5, rtol=1e-5)
        if loss in ("simpo", "confpo"):
            assert part.reference_logps is part.log_ratio is part.kl is None
        else:
            torch.testing.assert_close(part.reference_logps, reference_logps, atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(part.log_ratio, logps - reference_logps, atol=2e-5, rtol=1e-5)
            torch.testing.assert_close(part.kl, kl, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(part.advantage, advantage(loss, part, side == "chosen"), atol=1e-5, rtol=1e-5)
    assert (table.mask_reward is None) == (masks is None)


def advantage(loss, part, chosen):
    """a_t of each method from the columns of the table."""
    if loss == "sparsepo":
        return part.mask_reward * part.log_ratio + part.mask_kl * part.kl
    if loss == "selective":
        return part.mask_reward * part.log_ratio
    if loss in ("d2po", "sepo", "confpo"):
        scaled = part.mask_reward * (part.log_ratio if loss == "d2po" else part.logps / part.mask_reward.sum())
        return scaled
    if loss == "simpo":
        return part.logps / len(part)
    if loss == "tdpo":
        return part.log_ratio + part.kl
    if loss == "dpop":
        return part.log_ratio * (4 if chosen and part.log_ratio.sum() < 0 else 1)
    return part.log_ratio


def test_rewards_are_sums_of_the_advantages(leave, models_folder):
    """As the training step has them: β·Σ a_t."""
    folder, _ = leave("dpop")
    table = load_run(folder, device="cpu").tokens(**PAIR)
    policy, reference = decoder("llama", 0), decoder("llama", 1)
    step = make_step(METHODS["dpop"], policy, reference, loss="dpop")
    inputs, tokens = batch()
    output = step(partial(step.policy, **inputs), tokens, runner(reference, inputs))
    for side, reward in (("chosen", output.chosen_rewards), ("rejected", output.rejected_rewards)):
        assert 0.5 * table.of(side).advantage.sum().item() == pytest.approx(reward.item(), rel=1e-5)


def batch():
    """The pair as a training step gets it."""
    rows = [[WORDS.index(word) for word in ("w1", "w2", "w3", *words)] for words in (CHOSEN, REJECTED)]
    ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True)
    mask = torch.nn.utils.rnn.pad_sequence([torch.ones(len(row)).long() for row in rows], batch_first=True)
    return {"input_ids": ids, "attention_mask": mask}, ResponseTokens.from_padded(ids, mask, [3, 3])


@pytest.mark.parametrize(
    "section",
    [{}, {"shared": False}, {"mask": "activation"}, {"mask": "uniform", "value": 0.3}, {"kl": {"mask": "decay"}}],
    ids=str,
)
def test_masks_are_those_of_the_training_step(leave, section):
    folder, masks = leave(section=section)
    table = load_run(folder, device="cpu").tokens(**PAIR)
    reference = decoder("llama", 1)
    step = make_step(section, decoder("llama", 0), reference)
    if learns(masks):
        step.masks.load_state_dict(masks.state_dict())
    inputs, tokens = batch()
    output = step(partial(step.policy, **inputs), tokens, runner(reference, inputs))
    torch.testing.assert_close(table.mask_reward, output.masks.reward, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(table.mask_kl, output.masks.kl, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(table.advantage, output.advantage, atol=1e-5, rtol=1e-5)


def test_one_response_alone(leave):
    run = load_run(leave()[0], device="cpu")
    pair, alone = run.tokens(**PAIR).of("rejected"), run.tokens(prompt=PAIR["prompt"], response=PAIR["rejected"])
    assert (alone.text, alone.response) == (REJECTED, ["response"] * 3)
    for name in ("logps", "kl", "mask_reward", "mask_kl", "advantage"):
        torch.testing.assert_close(getattr(alone, name), getattr(pair, name), atol=1e-5, rtol=1e-5)


def test_an_empty_response_is_its_end(leave):
    assert load_run(leave()[0], device="cpu").tokens(prompt="w1", response="").text == ["</s>"]


def test_asking_draws_nothing_and_keeps_no_graph(leave, tokenizer):
    """Also of models and masks that were given as they trained."""
    section = {"dropout": 0.5}
    _, masks = leave(section=section)
    config = LossConfig.from_section(section, beta=0.5)
    run = Run(decoder("llama").train(), decoder("llama", 1), masks.train(), tokenizer, describe(config))
    graphs = []
    run.policy.register_forward_hook(lambda *_: graphs.append(torch.is_grad_enabled()))
    first, second = run.tokens(**PAIR), run.tokens(**PAIR)
    assert torch.equal(first.mask_reward, second.mask_reward)
    assert graphs == [False, False]


@pytest.mark.parametrize("given", [{}, {"chosen": "w1"}, {"chosen": "w1", "response": "w2"}], ids=str)
def test_a_pair_or_one_response(leave, given):
    with pytest.raises(SparsePOError, match="give chosen and rejected, or response alone"):
        load_run(leave()[0], device="cpu").tokens(prompt="w1", **given)


def test_texts_are_joined_as_the_run_says(leave):
    run = load_run(leave(joining=Joining(input_template="w1 w2 {} "))[0], device="cpu")
    table = run.tokens(prompt="w3", response="w8 w9")
    torch.testing.assert_close(table.logps, expected_rejected(), atol=1e-5, rtol=1e-5)


def expected_rejected():
    ids = torch.tensor([WORDS.index(word) for word in ("w1", "w2", "w3", *REJECTED)])
    return logps_of(decoder("llama", 0), ids)[2:].gather(1, ids[3:, None])[:, 0]


def test_kl_with_the_other_expectation(leave, tokenizer):
    """KL(π‖π_ref), which is e_t itself there."""
    table = load_run(leave(section={"expectation": "policy", "mask": "uniform"})[0], device="cpu").tokens(**PAIR)
    ids = torch.tensor(tokenizer("w1 w2 w3 " + " ".join(CHOSEN))["input_ids"])
    logps, reference_logps = (logps_of(decoder("llama", seed), ids)[2:] for seed in (0, 1))
    kl = (logps.exp() * (logps - reference_logps)).sum(-1)
    torch.testing.assert_close(table.of("chosen").kl, kl, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(table.advantage, table.log_ratio - table.kl, atol=1e-5, rtol=1e-5)


@pytest.fixture
def adapter():
    torch.manual_seed(0)
    policy = get_peft_model(decoder("llama", 1), LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    for name, parameter in policy.named_parameters():
        if "lora_B" in name:
            parameter.data = 0.3 * torch.randn_like(parameter)
    return policy.eval()


@pytest.mark.parametrize("shared", [True, False])
def test_an_adapter(leave, adapter, shared, tokenizer, models_folder):
    """Shared, one copy of the base model's weights is the reference too; else that is another model here."""
    other = {} if shared else {"reference": str(models_folder / "oracle")}
    run = load_run(leave(policy=adapter, shared_reference=shared, **other)[0], device="cpu")
    assert (run.reference is None) == shared
    table = run.tokens(**PAIR).of("chosen")
    reference_logps = table.reference_logps
    logps, reference, kl = expected(adapter, decoder("llama", 1 if shared else 2), tokenizer, CHOSEN)
    torch.testing.assert_close(table.logps, logps, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(reference_logps, reference, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(table.kl, kl, atol=1e-5, rtol=1e-5)
    assert (logps - reference).abs().max() > 0.01
    assert table.mask_reward is not None


@pytest.mark.parametrize("given", ["folder", "model"])
def test_another_reference_can_be_given(leave, given, models_folder, tokenizer):
    """As when the run's own stands elsewhere now; with a loss that reads none there is a KL to show then."""
    folder, _ = leave("simpo")
    other = decoder("llama", 2).train() if given == "model" else str(models_folder / "oracle")
    run = load_run(folder, reference=other, device="cpu")
    assert not run.reference.training
    table = run.tokens(**PAIR).of("chosen")
    _, reference_logps, kl = expected(decoder("llama", 0), decoder("llama", 2), tokenizer, CHOSEN)
    torch.testing.assert_close(table.reference_logps, reference_logps, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(table.kl, kl, atol=1e-5, rtol=1e-5)


def test_a_reference_that_is_not_there(leave):
    folder, _ = leave(reference="/nowhere/reference")
    with pytest.raises(SparsePOError, match=r"the reference .*reference=.*: /nowhere/reference cannot be loaded"):
        load_run(folder, device="cpu")


def test_the_dtype_is_that_of_the_run(leave):
    run = load_run(leave(dtype="bfloat16")[0], device="cpu")
    assert {p.dtype for model in (run.policy, run.reference) for p in model.parameters()} == {torch.bfloat16}
    assert run.tokens(**PAIR).logps.dtype == torch.float32


def test_code_is_not_imported_unasked(leave, tmp_path, monkeypatch):
    (tmp_path / "plugin_of_the_run.py").write_text("ran = True")
    monkeypatch.syspath_prepend(tmp_path)
    folder, _ = leave(loss_plugins=["plugin_of_the_run"])
    with pytest.raises(SparsePOError, match="names code of its own"):
        load_run(folder, device="cpu")
    assert len(load_run(folder, device="cpu", allow_code=True).tokens(**PAIR)) == 8


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("config.json", {"model_type": "own", "auto_map": {"AutoConfig": "own.OwnConfig"}}),
        ("tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["own.OwnTokenizer", None]}}),
    ],
)
def test_code_of_a_model_runs_only_if_the_caller_allows_it(file, content, leave):
    folder, _ = leave()
    saved = json.loads((folder / file).read_text()) if file == "tokenizer_config.json" else {}
    (folder / file).write_text(json.dumps({**saved, **content}))
    (folder / "own.py").write_text("raise RuntimeError('the code of the model ran')")
    with pytest.raises(RuntimeError, match="the code of the model ran"):
        load_run(folder, device="cpu", allow_code=True)
    with suppress(SparsePOError):  # without its code there is no such model, but a tokenizer of the usual kind
        load_run(folder, device="cpu")
