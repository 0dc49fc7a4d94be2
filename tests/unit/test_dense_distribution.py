"""The dense mask on a small model that was trained: a distribution around 0.5, as the paper reports it (§C.5).

Real activations, since sites of a random model hardly differ between tokens; a small GPT-2 learns a language of 64
words in which each word says which six may follow.
"""

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from sparsepo_plugin import ResponseTokens, Runner
from sparsepo_plugin.masks.activation import ActivationMask
from sparsepo_plugin.reference import FeatureRequest, collect_features

WORDS, LENGTH, PROMPT = 64, 64, 4


def text(count, generator):
    """Sequences of a random walk, [count, LENGTH]."""
    words = [torch.randint(WORDS, (count,), generator=generator)]
    for _ in range(LENGTH - 1):
        words.append((5 * words[-1] + torch.randint(6, (count,), generator=generator)) % WORDS)
    return torch.stack(words, dim=1)


@pytest.fixture(scope="module")
def read():
    """The features of 32 responses, and the index of their tokens."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=WORDS, n_positions=LENGTH, n_embd=48, n_layer=4, n_head=4))
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    first = None
    for _ in range(50):
        ids = text(8, generator)
        loss = model(input_ids=ids, labels=ids).loss
        first = first or loss.item()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert loss.item() < 0.75 * first, "it has learned something"
    ids = text(32, generator)
    ones = torch.ones_like(ids)
    tokens = ResponseTokens.from_padded(ids, ones, [PROMPT] * len(ids))
    request = FeatureRequest(frozenset({"activations"}), ActivationMask().sites)
    return collect_features(
        Runner(model.eval(), lambda: model(input_ids=ids, attention_mask=ones)), tokens, request
    ), tokens


def test_centred_on_one_half(read):
    """Each site spans [0, 1], and their mean lies around the middle, with far less contrast than one range for all."""
    site, minmax = (ActivationMask(rescale=rescale)(*read) for rescale in ("site", "minmax"))
    assert 0.4 < site.mean() < 0.6
    assert 0.4 < site.median() < 0.6
    assert site.std() < 0.6 * minmax.std()
    assert not (site == 0).any() and not (site == 1).any()
    responses = read[1].num_sequences
    assert (minmax == 0).sum() == (minmax == 1).sum() == responses, "one token of each response is 0 and one is 1"


def test_the_same_order_of_tokens(read):
    """Both rescale the same standardised means, so they nearly agree on which token weighs more."""
    site, minmax, mean = (ActivationMask(rescale=rescale)(*read) for rescale in ("site", "minmax", "none"))
    for other in (minmax, mean):
        assert torch.corrcoef(torch.stack([site, other]))[0, 1] > 0.8
