"""Sampling against a plain loop: one prompt at a time, no padding, no cache, every probability written out."""

import pytest
import torch
from finished_runs import byte_tokenizer
from numpy.random import default_rng
from tiny import VOCABULARY, decoder
from transformers import GenerationConfig
from words import word_tokenizer

from sparsepo_plugin import SparsePOError
from sparsepo_plugin.generation.prompts import Prompt
from sparsepo_plugin.generation.sampling import Sampler, Sampling, _Draw
from sparsepo_plugin.texts import Joining

PROMPTS = [
    Prompt(text, f"line {n}") for n, text in enumerate(["w1 w2 w3", "w4", "w5 w6 w7 w8 w9 w1", "w2 w2", "w9"], 1)
]
STEPS, END = 6, 2


@pytest.fixture(scope="module")
def tokenizer():
    return word_tokenizer()


def drawn(tokenizer, architecture="llama", joining=None, prompts=PROMPTS, **options):
    """Completions of all prompts, in one list."""
    sampling = Sampling(**{"max_new_tokens": STEPS, **options})
    sampler = Sampler(decoder(architecture), tokenizer, joining or Joining(), sampling)
    return [completion for batch in sampler.batches(prompts, "test") for completion in batch]


def plain(model, ids, uniform, choose):
    """Tokens after `ids`, up to the end: one forward of the whole a step."""
    new = []
    for number in uniform:
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([ids + new])).logits[0, -1]
        new.append(choose(logits, number))
        if new[-1] == END:
            break
    return new


def by_inverse_cdf(probabilities, number):
    """The first token up to which there is more than the number."""
    total = 0.0
    for token, probability in enumerate(probabilities.tolist()):
        total += probability
        if total > number:
            return token


def at_temperature(temperature):
    return lambda logits, number: by_inverse_cdf((logits.double() / temperature).softmax(-1), number)


def in_nucleus(top_p):
    """The likeliest tokens, until together they have `top_p`."""

    def choose(logits, number):
        probabilities = logits.double().softmax(-1)
        kept, total = [], 0.0
        for token in probabilities.argsort(descending=True).tolist():
            kept.append(token)
            total += probabilities[token].item()
            if total >= top_p:
                break
        inside = torch.zeros_like(probabilities)
        inside[kept] = probabilities[kept]
        return by_inverse_cdf(inside / inside.sum(), number)

    return choose


def greedily(logits, number):
    return logits.argmax().item()


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
@pytest.mark.parametrize(
    ("options", "choose"),
    [
        ({"temperature": 1.0}, at_temperature(1.0)),
        ({"temperature": 0.5, "seed": 3}, at_temperature(0.5)),
        ({"top_p": 0.7}, in_nucleus(0.7)),
        ({"temperature": 0.0}, greedily),
    ],
    ids=["temperature 1", "temperature 0.5", "top-p 0.7", "greedy"],
)
def test_tokens_are_those_of_a_plain_loop(architecture, options, choose, tokenizer):
    """Two samples of each prompt, batches of two ragged prompts and of one, padding on the left."""
    model, found = decoder(architecture), drawn(tokenizer, architecture, batch_size=4, count=2, **options)
    assert [(one.prompt_index, one.sample) for one in found] == [(n, s) for n in range(5) for s in range(2)]
    for completion in found:
        ids = tokenizer(completion.prompt)["input_ids"]
        numbers = default_rng([0, options.get("seed", 0), completion.prompt_index]).random((2, STEPS))
        assert completion.prompt_ids == ids
        assert completion.ids == plain(model, ids, numbers[completion.sample], choose)


def test_a_draw_has_the_probabilities():
    """Of a hundred thousand numbers that lie evenly a token gets its share, to one; nothing without probability."""
    logits = torch.tensor([-torch.inf, 0.3, 2.0, -1.0, -torch.inf])
    numbers = (torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000
    scores = _Draw(numbers[:, None])(torch.zeros(len(numbers), 1), logits.expand(len(numbers), -1))
    assert ((scores == 0).sum(-1) == 1).all() and (scores == -torch.inf).sum() == 4 * len(numbers)
    counts = scores.argmax(-1).bincount(minlength=5)
    torch.testing.assert_close(counts.double(), 100_000 * logits.double().softmax(-1), atol=1.0, rtol=0)


@pytest.mark.parametrize("number", [0.0, 1 - 2**-53])
def test_the_ends_of_a_draw(number):
    """Tokens without probability are passed over also before the first and after the last."""
    logits = torch.tensor([[-torch.inf, 0.0, 1.0, -torch.inf]])
    assert _Draw(torch.tensor([[number]], dtype=torch.float64))(None, logits).argmax() == (1 if number == 0 else 2)


@pytest.mark.parametrize("batch_size", [1, 2, 5, 100])
def test_a_prompt_gets_the_same_whatever_its_batch(batch_size, tokenizer):
    found = drawn(tokenizer, count=1, batch_size=batch_size)
    assert [one.ids for one in found] == [one.ids for one in drawn(tokenizer, count=1, batch_size=3)]


def test_more_samples_keep_the_first(tokenizer):
    many = [one.ids for one in drawn(tokenizer, count=4)]
    few = [one.ids for one in drawn(tokenizer, count=1)]
    assert many[::4] == few and many[1::4] != few


def test_another_seed_draws_others(tokenizer):
    assert [one.ids for one in drawn(tokenizer, seed=1)] != [one.ids for one in drawn(tokenizer, seed=2)]


def test_going_on_at_a_later_batch(tokenizer):
    sampler = Sampler(decoder(), tokenizer, Joining(), Sampling(max_new_tokens=STEPS, batch_size=4))
    assert list(sampler.batches(PROMPTS, "test", start=2)) == list(sampler.batches(PROMPTS, "test"))[1:]


def test_what_a_model_says_of_sampling_is_not_used(tokenizer):
    """But for the tokens that end a sequence, of which chat models name more than their tokenizer."""
    model = decoder()
    model.generation_config = GenerationConfig(
        do_sample=True, temperature=0.1, top_k=1, repetition_penalty=5.0, min_new_tokens=5, max_length=4
    )
    sampler = Sampler(model, tokenizer, Joining(), Sampling(max_new_tokens=STEPS))
    assert [one for batch in sampler.batches(PROMPTS, "test") for one in batch] == drawn(tokenizer)
    first = drawn(tokenizer)[0].ids
    model.generation_config.eos_token_id = [first[1], END]
    sampler = Sampler(model, tokenizer, Joining(), Sampling(max_new_tokens=STEPS))
    assert next(sampler.batches(PROMPTS, "test"))[0].ids == first[:2]


@pytest.mark.parametrize("end", ["spaced", "appended"])
def test_training_joins_the_text_to_the_tokens_that_were_drawn(end, tokenizer):
    """With a template around the prompt too; special tokens other than the last have no text."""
    joining = Joining(end=end, input_template="w8 {} w9")
    found = drawn(tokenizer, joining=joining, count=8)
    ended = [one for one in found if one.ids[-1] == END and not {0, 1} & set(one.ids) and len(one.ids) > 1]
    assert len(ended) >= 3
    for completion in ended:
        ids, length = joining.encode(tokenizer, completion.prompt, [completion.text])[0]
        assert (ids, length) == completion.sequence
        assert completion.text.startswith(" w") and not completion.text.endswith(" ")


def test_messages_go_through_the_chat_template(tokenizer):
    talk = [{"role": "user", "content": "w5 w6"}]
    for prompt in (talk, "w5 w6"):
        (completion, _) = drawn(tokenizer, joining=Joining(chat_template=True), prompts=[Prompt(prompt, "line 1")])
        assert tokenizer.decode(completion.prompt_ids) == "w1 w5 w6 </s> w2"


def test_text_of_pieces_that_are_no_characters_alone():
    """The bytes of an emoji, cut between prompt and completion: what is not whole is shown as such."""
    bytes_of = byte_tokenizer()
    sampler = Sampler(decoder(vocab_size=len(bytes_of)), bytes_of, Joining(), Sampling())
    ids = bytes_of(" ab\U0001f600 c", add_special_tokens=False)["input_ids"]
    for place in range(1, len(ids)):
        before, after = ids[:place], ids[place:]
        whole = sampler._text(before, after)
        assert bytes_of.decode(before) + whole == " ab\U0001f600 c" or "�" in bytes_of.decode(before)


@pytest.mark.parametrize(
    ("prompt", "architecture", "says"),
    [
        ("", "llama", "line 7: the prompt has no token to go on from"),
        ("w1 " * 59, "gpt2", "line 7: the prompt has 59 tokens, with --max-new-tokens 6 that is more than the 64"),
        ([{"role": "user", "content": "w1"}], "llama", "line 7: tokens: text is needed"),
    ],
)
def test_prompts_that_cannot_be_completed(prompt, architecture, says, tokenizer):
    """Before the first batch."""
    with pytest.raises(SparsePOError, match=says):
        drawn(tokenizer, architecture, prompts=[*PROMPTS, Prompt(prompt, "line 7")], batch_size=2)


@pytest.mark.parametrize(
    ("option", "value", "says"),
    [
        ("temperature", -0.1, "--temperature is -0.1, 0 or more is needed"),
        ("temperature", float("nan"), "--temperature is nan"),
        ("temperature", float("inf"), "--temperature is inf"),
        ("top_p", 0.0, "--top-p is 0, more than 0 and at most 1 is needed"),
        ("top_p", 1.1, "--top-p is 1.1"),
        ("count", 0, "--count is 0, 1 or more is needed"),
        ("max_new_tokens", 0, "--max-new-tokens is 0, 1 or more"),
        ("seed", -1, "--seed is -1, 0 or more"),
        ("batch_size", 0, "--batch-size is 0, 1 or more"),
    ],
)
def test_options_out_of_range(option, value, says):
    with pytest.raises(SparsePOError, match=says):
        Sampling(**{option: value})


def test_vocabulary_of_the_tests(tokenizer):
    assert len(tokenizer) == VOCABULARY
