"""Mask `column`: its options, and the road of weights through the index of response tokens."""

import pytest
import torch
from tiny import LAYERS, TWO_PAIRS, WIDTH, Pairs, decoder, make_step, runner

from sparsepo_plugin import Batch, LossConfig, ReferenceFeatures, SparsePOError
from sparsepo_plugin.causality import first_leak
from sparsepo_plugin.layout import packed
from sparsepo_plugin.masks import build_masks, refuse_idle_keys
from sparsepo_plugin.rehearsal import rehearse
from sparsepo_plugin.spans import WeightColumn

COLUMN = {"mask": "column"}
DPO = {"reward": COLUMN, "kl": {"mask": "uniform", "value": 0.0}}


def ragged(lens=TWO_PAIRS, extra=0):
    """Weights of each sequence's response tokens, all different."""
    counts = [response + extra for _, response in lens]
    return list((torch.arange(sum(counts)) / 8).split(counts))


def test_weights_lie_in_the_order_of_the_index():
    """Padded on either side, packed, and packed with what a pair begins with once."""
    weights = ragged()
    for side in ("right", "left"):
        pairs = Pairs(TWO_PAIRS, side=side, alike=2)
        for tokens in (pairs.tokens, pairs.packed_tokens):
            assert torch.equal(tokens.weighed(weights).weights, torch.cat(weights))
        layout = packed(Batch(pairs.input_ids, pairs.attention_mask), share=True)
        tokens = layout.index(pairs.tokens.weighed(weights), Batch(pairs.input_ids, pairs.attention_mask))
        assert torch.equal(tokens.weights, torch.cat(weights))


def test_shards_have_their_own_weights():
    tokens = Pairs(TWO_PAIRS).packed_tokens.weighed(ragged())
    halves = [tokens.shard(start, start + 12, None) for start in (0, 12)]
    assert torch.equal(torch.cat([half.weights for half in halves]), tokens.weights)
    assert all(len(half) == len(half.weights) for half in halves)


def test_other_numbers_of_weights_are_refused():
    with pytest.raises(SparsePOError, match=r"responses of \[4, 1, 2, 6\] tokens have \[6, 3, 4, 8\] weights"):
        Pairs(TWO_PAIRS).tokens.weighed(ragged(extra=2))


def build(section):
    config = LossConfig.from_section(section)
    masks = build_masks(config, WIDTH, LAYERS, seed=0)
    refuse_idle_keys(config, masks)
    return config, masks


def test_the_mask_is_the_weights():
    tokens = Pairs(TWO_PAIRS).tokens.weighed(ragged())
    _, masks = build({**DPO, "reward": {**COLUMN, "scale": 0.5}})
    found = masks(ReferenceFeatures(), tokens)
    assert torch.equal(found.reward, 0.5 * torch.cat(ragged())) and found.reward.dtype == torch.float32
    assert masks.request.needs == {"weights"}
    with pytest.raises(SparsePOError, match="reads weights of the data, and this host gives none"):
        masks(ReferenceFeatures(), Pairs(TWO_PAIRS).tokens)


def test_negative_weights_are_weights_of_a_signed_mask():
    tokens = Pairs(TWO_PAIRS).tokens.weighed([-own for own in ragged()])
    _, masks = build({**DPO, "reward": {**COLUMN, "signed": True, "end": -1.0}})
    assert (masks(ReferenceFeatures(), tokens).reward <= 0).all()


def test_the_column_of_both_masks():
    assert LossConfig.from_section({}).column is None
    assert LossConfig.from_section(DPO).column == WeightColumn()
    options = {"suffix": "_w", "default": 0.0, "end": 0.0, "reduce": "max", "signed": True}
    both = LossConfig.from_section({**COLUMN, **options, "reward": {"scale": 2.0}})
    assert both.column == WeightColumn(**options) and set(both.masks) == {"reward", "kl"}
    with pytest.raises(SparsePOError, match="sparsepo: one column serves both masks, which differ in suffix, end"):
        _ = LossConfig.from_section({**COLUMN, "kl": {"end": 0.0, "suffix": "_k"}}).column


REFUSED = {
    "an empty suffix": ({"suffix": ""}, "sparsepo.suffix: string should have at least 1 character"),
    "a negative default": ({"default": -0.5}, "sparsepo.default: -0.5 is below 0, which needs signed: true"),
    "a negative end": ({"end": -1}, "sparsepo.end: -1 is below 0, which needs signed: true"),
    "another rule": ({"reduce": "first"}, "sparsepo.reduce: input should be 'mean', 'max' or 'min', not 'first'"),
    "a negative factor": ({"scale": -1.0}, "sparsepo.scale: input should be greater than or equal to 0"),
    "not a number": ({"default": float("nan")}, "sparsepo.default: input should be a finite number"),
    "what it cannot learn": ({"l1_reward": 0.1}, "sparsepo.l1_reward has no effect: mask 'column' has nothing to le"),
    "the same twice": (
        {"shared": False},
        "sparsepo.shared: false has no effect: both masks would be the same 'column",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_options_that_are_refused(case):
    options, says = REFUSED[case]
    with pytest.raises(SparsePOError) as caught:
        rehearse(LossConfig.from_section({**COLUMN, **options}), WIDTH, LAYERS, seed=0)
    assert says in str(caught.value)


def test_causality_is_not_asked_of_it():
    """Also where the other mask is asked, and both run."""
    _, masks = build({**DPO, "kl": {"mask": "learned", "layers": "last"}})
    pairs = Pairs([(3, 4), (3, 2)])
    assert first_leak(masks.eval(), decoder(), pairs.sequences, pairs.prompt_lens) == {"kl": None}


def test_no_model_is_read_for_it():
    """Weights of the data are no feature: a loss without a reference goes on without one."""
    assert LossConfig.from_section(DPO).needs == frozenset()


def test_weights_of_one_are_dpo_and_zeros_count_nothing():
    """The step's losses are those of `loss: dpo` and of a sum written out; sums of a dozen float32, 1e-5."""
    policy, reference, pairs = decoder(seed=0), decoder(seed=1), Pairs(TWO_PAIRS)

    def loss(section, tokens, name="sparsepo"):
        step = make_step(section, policy, reference, loss=name)
        run = runner(step.policy, pairs.inputs).run
        return step(run, tokens, reference=runner(reference, pairs.inputs))

    ones = loss(DPO, pairs.tokens.weighed([torch.ones(count) for _, count in TWO_PAIRS]))
    plain = loss({}, pairs.tokens, "dpo")
    assert ones.loss.item() == pytest.approx(plain.loss.item(), abs=1e-6)
    weights = ragged()
    found = loss(DPO, pairs.tokens.weighed(weights))
    ratio = plain.statistics.policy_logps - plain.statistics.reference_logps
    rewards = torch.stack([0.5 * part.sum() for part in (torch.cat(weights) * ratio).split([4, 1, 2, 6])])
    assert found.chosen_rewards.tolist() == pytest.approx(rewards[:2].tolist(), abs=1e-5)
    assert found.rejected_rewards.tolist() == pytest.approx(rewards[2:].tolist(), abs=1e-5)
