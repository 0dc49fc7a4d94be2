"""Spans of a file: what is refused, and the weights that they give the tokens of several kinds of tokenizer.

Weights are means of a few float64 numbers: 1e-12.
"""

import random
import re
from itertools import pairwise

import pytest
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from sparsepo_plugin import SparsePOError
from sparsepo_plugin.spans import WeightColumn, read_spans, spans_of_tokens, weigh_tokens
from sparsepo_plugin.texts import Joining, content_of

TEXTS = [
    "It opened in 1889.  It is 500 m tall.",
    "naïve café — 東京 タワー\n\n\tthe end",
    "  one 🙂🙃 two👩‍🚀three  ",
    "a" * 40 + " émigré, 1/2 ½",
]


def gpt_2():
    """Its offsets leave the space before a word out."""
    tokenizer = byte_level()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    return tokenizer


def llama_3():
    """Words that are tokens are not merged, and runs of line feeds are words."""
    cut = pre_tokenizers.Split(Regex(r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+|\s+"), "isolated")
    bytes_of = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return byte_level(models.BPE(ignore_merges=True), pre_tokenizers.Sequence([cut, bytes_of]))


def byte_level(model=None, pre_tokenizer=None):
    tokenizer = Tokenizer(model or models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizer or pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, special_tokens=["</s>"])
    tokenizer.train_from_iterator(["the end one two three café opened in It is tall"] * 4, trainer)
    return tokenizer


def sentence_piece():
    """As Llama 2's: a mark for spaces, also before the text, and bytes for characters that it does not know."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    special = ["<unk>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=330, special_tokens=special)
    tokenizer.train_from_iterator(["the end one two three opened in It is tall m"] * 4, trainer)
    return tokenizer


def words():
    vocabulary = {word: number for number, word in enumerate(["<unk>", "</s>"])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return tokenizer


KINDS = (byte_level, gpt_2, llama_3, sentence_piece, words)


@pytest.fixture(scope="module", params=KINDS, ids=lambda made: made.__name__)
def tokenizer(request):
    return PreTrainedTokenizerFast(tokenizer_object=request.param(), eos_token="</s>", unk_token=None)


def weigh(tokenizer, response, spans, prompt="Q: ", **options):
    """Characters, weight of each response token of a sequence as OpenRLHF makes it."""
    column = WeightColumn(**options)
    joining = Joining()
    ids, weights = joining.weigh(tokenizer, prompt, response, spans, column)
    text = joining.joined(tokenizer, prompt, response)
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    assert ids == encoded["input_ids"] and len(weights) == len(ids)
    return [(max(a, len(prompt)), b, w) for (a, b), w in zip(encoded["offset_mapping"], weights, strict=True)][
        len(tokenizer(prompt, add_special_tokens=False)["input_ids"]) :
    ]


def plain(text, start, end, base, response, weights):
    """The mean over the characters that a token shares with the response, its white space aside, written out.

    A token of white space has no character where offsets leave that out; the one before it is its last.
    """
    stop = len(response.rstrip("\n"))
    if start == end and 0 < start - base < stop:
        return weights[start - base - 1]
    own = [place - base for place in range(start, end) if 0 <= place - base < stop]
    visible = [place for place in own if not response[place].isspace()]
    inner = [place for place in own if visible and visible[0] <= place <= visible[-1]] or own
    return sum(weights[place] for place in inner) / len(inner) if inner else 1.0


@pytest.mark.parametrize("response", TEXTS)
def test_tokens_get_the_mean_of_their_characters(tokenizer, response):
    rng = random.Random(0)
    cuts = sorted(rng.sample(range(len(response) + 1), 8))
    spans = [{"start": a, "end": b, "weight": rng.random()} for a, b in zip(cuts[::2], cuts[1::2], strict=True)]
    characters = [1.0] * len(response)
    for span in spans:
        characters[span["start"] : span["end"]] = [span["weight"]] * (span["end"] - span["start"])
    found = weigh(tokenizer, response, spans)
    text = f"Q: {response} </s>"
    expected = [plain(text, start, end, 3, response, characters) for start, end, _ in found]
    assert [weight for _, _, weight in found] == pytest.approx(expected, abs=1e-12)
    assert len({round(weight, 6) for weight in expected}) > 2


@pytest.mark.parametrize("response", TEXTS)
def test_weights_of_tokens_come_back_from_their_spans(tokenizer, response):
    """But for tokens that share a character, which have their mean."""
    rng = random.Random(1)
    *tokens, _ = [token for token in weigh(tokenizer, response, None) if token[0] < token[1]]
    offsets = [(start - 3, min(end - 3, len(response))) for start, end, _ in tokens if start - 3 < len(response)]
    weights = [float(rng.randrange(3)) for _ in offsets]
    spans = spans_of_tokens(offsets, weights)
    found = {
        (start - 3, min(end - 3, len(response))): weight for start, end, weight in weigh(tokenizer, response, spans)
    }
    for offset in offsets:
        same = [weight for other, weight in zip(offsets, weights, strict=True) if other == offset]
        overlaps = [other for other in offsets if other != offset and other[0] < offset[1] and offset[0] < other[1]]
        assert overlaps or found[offset] == pytest.approx(sum(same) / len(same), abs=1e-12)
    assert all(before["end"] <= after["start"] for before, after in pairwise(spans))
    read_spans(spans, response)


def test_spans_of_tokens_merges_equal_neighbours():
    offsets, weights = [(0, 2), (2, 5), (5, 5), (6, 8), (8, 9), (8, 9)], [1, 1, 3, 1, 2, 4]
    assert spans_of_tokens(offsets, weights) == [
        {"start": 0, "end": 5, "weight": 1.0},
        {"start": 6, "end": 8, "weight": 1.0},
        {"start": 8, "end": 9, "weight": 3.0},
    ]
    assert spans_of_tokens([], []) == []
    for bad in (([(0, 1)], []), ([(2, 1)], [1.0]), ([(0, 1)], [float("nan")])):
        with pytest.raises(SparsePOError):
            spans_of_tokens(*bad)


REDUCED = {"mean": (0.5 * 2 + 2 * 1) / 3, "max": 2.0, "min": 0.5}


@pytest.mark.parametrize("reduce", REDUCED)
def test_a_token_on_a_border(reduce):
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words(), eos_token="</s>", unk_token=None)
    spans = [{"start": 0, "end": 2, "weight": 0.5}, {"start": 2, "end": 6, "weight": 2.0}]
    found = weigh(tokenizer, "abc de f", spans, reduce=reduce, end=7.0)
    assert [weight for _, _, weight in found] == pytest.approx([REDUCED[reduce], 2.0, 1.0, 7.0])


ENDS = {  # the response, and the weights of words after one of weight 0.5
    "its end after a space": ("a b", [1.0, 9.0]),
    "white space behind it": ("a b\n \n", [1.0, 9.0]),
    "its own end": ("a b </s>", [1.0, 9.0]),
    "its own end and a line feed": ("a b </s>\n", [1.0, 9.0]),
    "white space before it": ("  a b", [1.0, 9.0]),
}


@pytest.mark.parametrize("case", ENDS)
def test_the_end_is_not_of_the_response(case):
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words(), eos_token="</s>", unk_token=None)
    response, after = ENDS[case]
    start = response.index("a")
    found = weigh(tokenizer, response, [{"start": start, "end": start + 1, "weight": 0.5}], end=9.0)
    assert [weight for _, _, weight in found] == [0.5, *after]


def test_what_a_template_puts_around_a_response():
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words(), eos_token="</s>", unk_token=None)
    spans = read_spans([{"start": 1, "end": 2, "weight": 0.5}], " a b ")
    for text, expected in (("q <a>  a b  <e>", [0.5, 1.0, 9.0]), ("q <a> so a b <e>", [9.0, 0.5, 1.0, 9.0])):
        _, weights = weigh_tokens(tokenizer, text, 5, " a b ", spans, WeightColumn(end=9.0))
        assert weights[2:] == expected
    _, weights = weigh_tokens(tokenizer, "q x", 2, "x", [], WeightColumn(default=0.25))
    assert weights[1:] == [0.25]
    with pytest.raises(SparsePOError, match="does not have the response as it stands in the file"):
        weigh_tokens(tokenizer, "q <a> A B <e>", 5, " a b ", spans, WeightColumn())


def test_a_slow_tokenizer_is_refused():
    with pytest.raises(SparsePOError, match="mask 'column' needs a fast tokenizer"):
        weigh_tokens(object(), "a", 0, "a", [], WeightColumn())


def test_spans_of_messages_are_of_the_last_content():
    assert content_of([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]) == "b"
    with pytest.raises(SparsePOError, match="the last message has no text"):
        content_of([{"role": "assistant", "content": [{"type": "text", "text": "b"}]}])


ONE = {"start": 0, "end": 2, "weight": 1}
WRONG = {
    "no list": ("x", "str is no list of spans"),
    "an object": (ONE, "dict is no list of spans"),
    "a list": ([[0, 2, 1.0]], "span 1 is list, an object"),
    "null": ([None], "span 1 is null"),
    "no weight": ([{"start": 0, "end": 2}], "span 1 has no weight"),
    "null in place of it": ([{**ONE, "weight": None}], "span 1 has no weight"),
    "another key": ([{**ONE, "token": 3}], "span 1 has 'token', which is none of start, end, weight, text"),
    "a fraction": ([{**ONE, "end": 1.5}], "span 1 has end 1.5, a whole number is needed"),
    "text for a place": ([{**ONE, "start": "0"}], "span 1 has start '0', a whole number"),
    "true for a place": ([{**ONE, "start": False}], "span 1 has start False, a whole number"),
    "past the end": ([{**ONE, "end": 6}], "span 1 is from 0 to 6, 0 ≤ start < end ≤ 5 is needed"),
    "before the start": ([{**ONE, "start": -1}], "span 1 is from -1 to 2"),
    "empty": ([{**ONE, "start": 2}], "span 1 is from 2 to 2"),
    "not a number": ([{**ONE, "weight": float("nan")}], "span 1 has weight nan, a finite number is needed"),
    "infinite": ([{**ONE, "weight": float("inf")}], "span 1 has weight inf, a finite"),
    "infinite in 32 bits": ([{**ONE, "weight": 1e39}], "span 1 has weight 1e+39, a finite"),
    "text for a weight": ([{**ONE, "weight": "1"}], "span 1 has weight '1', a finite"),
    "true for a weight": ([{**ONE, "weight": True}], "span 1 has weight True, a finite"),
    "negative": ([{**ONE, "weight": -0.5}], "span 1 has weight -0.5, below 0 only with signed: true"),
    "another text": ([{**ONE, "text": "ba"}], "span 1 has text 'ba', from 0 to 2 is 'ab'"),
    "an overlap": ([ONE, {**ONE, "start": 1, "end": 3}], "span 2 starts at 1, before span 1 ends at 2"),
    "unsorted": ([{**ONE, "start": 3, "end": 4}, ONE], "span 2 starts at 0, before span 1 ends at 4"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_refused(case):
    value, says = WRONG[case]
    with pytest.raises(SparsePOError, match=re.escape(says)):
        read_spans(value, "ab cd")


def test_what_is_read():
    """Whole numbers that Arrow has made floats, and null where it has put a key, are as they were."""
    whole = {"start": 0.0, "end": 2.0, "weight": 1, "text": None}
    given = [whole, {"start": 2, "end": 5, "weight": -2, "text": " cd"}]
    assert read_spans(given, "ab cd", signed=True) == [(0, 2, 1.0), (2, 5, -2.0)]
    assert read_spans(None, "ab") == read_spans([], "ab") == []
