"""Each mask against a plain loop over layers and tokens, and what it must never see.

Tolerance: the loops run in float32 in another order of summation; values are of order 1, hence 1e-6.
"""

import pytest
import torch
from tiny import LAYERS, TWO_PAIRS, WIDTH, Pairs, decoder, runner

from sparsepo_plugin import LossConfig, MaskPair, ReferenceFeatures, ResponseTokens, SparsePOError
from sparsepo_plugin.decoder import SITES
from sparsepo_plugin.masks import build_masks, refuse_idle_keys
from sparsepo_plugin.masks.activation import ActivationMask
from sparsepo_plugin.masks.learned import LearnedMask
from sparsepo_plugin.masks.random import RandomMask
from sparsepo_plugin.masks.uniform import UniformMask
from sparsepo_plugin.reference import FeatureRequest, collect_features

TOKENS = Pairs(TWO_PAIRS).tokens
N = len(TOKENS)


def features(seed=0, dtype=torch.float32, sites=4):
    g = torch.Generator().manual_seed(seed)
    hidden_states = (3 * torch.randn(LAYERS, N, WIDTH, generator=g) + 1).to(dtype)
    return ReferenceFeatures(hidden_states, torch.randn(sites, N, generator=g), hidden_states[-1])


def build(section=None, seed=0, **keys):
    config = LossConfig.from_section({**(section or {}), **keys})
    masks = build_masks(config, WIDTH, LAYERS, seed)
    refuse_idle_keys(config, masks)
    return masks


def learned(**options):
    torch.manual_seed(0)
    return LearnedMask(WIDTH, LAYERS, **options)


def scatter_weights(mask, seed=3):
    """Weights under which tokens and layers fall on either side of the ReLU."""
    g = torch.Generator().manual_seed(seed)
    for parameter in mask.parameters():
        parameter.data = 0.5 * torch.randn(parameter.shape, generator=g)
    for name, parameter in mask.named_parameters():
        if name.endswith("merge"):
            parameter.data.abs_()
    return mask


def plain_learned(mask, hidden_states, layers, normalise=True):
    """Paper §2.3 token by token: m = ReLU(Σ_l w_o ReLU(LN(h_l)·w_l + b_l)), one layer without the merge."""
    result = []
    for n in range(hidden_states.shape[1]):
        per_layer = []
        for i, layer in enumerate(layers):
            h = hidden_states[layer, n].float()
            if normalise:
                h = (h - h.mean()) / (h.var(unbiased=False) + 1e-5).sqrt()
            if normalise == "affine":
                h = h * mask.norm_weight + mask.norm_bias
            if mask.inner is not None:
                h = h @ mask.inner[i] + mask.inner_bias[i]
            per_layer.append(h @ mask.weight[i] + mask.bias[i])
        if len(layers) == 1:
            result.append(per_layer[0])
        else:
            result.append(sum(w * torch.relu(m) for w, m in zip(mask.merge, per_layer, strict=True)))
    return torch.stack(result)


LAYER_CHOICES = [
    ("all", [0, 1, 2]),
    ("last", [2]),
    ([0], [0]),
    ([2, 0], [0, 2]),
    ([-1], [2]),
    ([-1, -2], [1, 2]),
    ([-3], [0]),
]


@pytest.mark.parametrize(("layers", "read"), LAYER_CHOICES, ids=str)
@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("layer_norm", [True, False, "affine"])
@pytest.mark.parametrize("activation", ["relu", "binary"])
@pytest.mark.parametrize("init", ["positive", "scattered"])
def test_learned_equals_the_loop(layers, read, depth, layer_norm, activation, init):
    mask = learned(layers=layers, depth=depth, layer_norm=layer_norm, activation=activation)
    if init == "scattered":
        scatter_weights(mask)
    before = plain_learned(mask, features().hidden_states, read, layer_norm)
    expected = before.relu() if activation == "relu" else (before > 0).float()
    # The two-layer form's 200 units make values of about 20.
    torch.testing.assert_close(mask(features(), TOKENS), expected, atol=2e-6 if depth == 1 else 1e-4, rtol=1e-5)


def test_learned_needs_only_what_it_reads():
    assert learned(layers="last").needs == learned(layers=[-1]).needs == {"last_hidden"}
    assert learned().needs == learned(layers=[0]).needs == {"hidden_states"}


def test_features_are_not_rounded_to_the_dtype_of_a_learned_mask():
    masks = build(layers="last").to(torch.bfloat16)
    assert torch.equal(masks(features(), TOKENS).reward, masks.reward(features(), TOKENS))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_learned_computes_in_float32(dtype):
    """Features in the model's dtype, and parameters too when the engine casts them."""
    mask, low = learned(), features(dtype=dtype)
    upcast = ReferenceFeatures(low.hidden_states.float(), None, low.last_hidden.float())
    assert torch.equal(mask(low, TOKENS), mask(upcast, TOKENS))
    assert mask(low, TOKENS).dtype == mask.to(dtype)(low, TOKENS).dtype == torch.float32


def test_no_layers_normalised_rows_wait_for_the_backward():
    """Of all layers in float32 they would be twice what the features are; the rows themselves are there anyway."""
    saved, given = [], features()
    with torch.autograd.graph.saved_tensors_hooks(lambda x: (saved.append(x), x)[1], lambda x: x):
        learned()(given, TOKENS)
    rows = given.hidden_states.untyped_storage().data_ptr()
    assert not [x for x in saved if x.shape == (N, WIDTH) and x.untyped_storage().data_ptr() != rows]


@pytest.mark.parametrize("layers", ["all", "last"])
def test_learned_gradients(layers):
    """Of every parameter, against autograd of the loop."""
    mask = scatter_weights(learned(layers=layers, depth=2, layer_norm="affine"))
    weights = torch.randn(N, generator=torch.Generator().manual_seed(5))
    parameters = list(mask.parameters())
    grads = torch.autograd.grad(mask(features(), TOKENS) @ weights, parameters)
    read = [0, 1, 2] if layers == "all" else [2]
    loop = plain_learned(mask, features().hidden_states, read, "affine").relu() @ weights
    for got, want in zip(grads, torch.autograd.grad(loop, parameters), strict=True):
        torch.testing.assert_close(got, want, atol=1e-5 * want.abs().max().clamp(min=1).item(), rtol=1e-4)


def test_binary_is_exactly_zero_and_one():
    """Sparsity counts exact zeros, and a one that is 0.9999999 would give m = 1 another loss than DPO's."""
    mask = scatter_weights(learned(layers="last", activation="binary", layer_norm=False))
    mask.weight.data *= 100
    values = mask(features(), TOKENS)
    assert set(values.tolist()) == {0.0, 1.0}


def test_binary_passes_the_gradient_straight_through():
    """The gradient is that of the value before the step, where the mask is zero as well."""
    mask = scatter_weights(learned(layers="last", activation="binary"))
    (grad,) = torch.autograd.grad(mask(features(), TOKENS).sum(), mask.bias)
    assert (mask(features(), TOKENS) == 0).any()
    assert grad.item() == N


def test_floor_and_cap():
    mask = scatter_weights(learned(min=0.2, max=0.7))
    free = scatter_weights(learned())(features(), TOKENS)
    assert (free < 0.2).any()
    assert (free > 0.7).any()
    torch.testing.assert_close(mask(features(), TOKENS), free.clamp(0.2, 0.7))
    assert torch.equal(scatter_weights(learned(max=0.7))(features(), TOKENS), free.clamp(max=0.7))
    assert torch.equal(scatter_weights(learned(min=0.2))(features(), TOKENS), free.clamp(min=0.2))


def test_dropout_only_in_training():
    mask = scatter_weights(learned(dropout=0.5))
    first, second = mask(features(), TOKENS), mask(features(), TOKENS)
    assert not torch.equal(first, second)
    mask.eval()
    assert torch.equal(mask(features(), TOKENS), mask(features(), TOKENS))
    assert torch.equal(mask(features(), TOKENS), scatter_weights(learned())(features(), TOKENS))


@pytest.mark.parametrize("layers", ["all", "last"])
@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("layer_norm", [True, False])
def test_positive_start_is_alive_everywhere(layers, depth, layer_norm):
    """No token starts at zero, for 100 seeds, on hidden states of unit variance."""
    for seed in range(100):
        hidden_states = torch.randn(LAYERS, N, WIDTH, generator=torch.Generator().manual_seed(seed))
        torch.manual_seed(seed)
        mask = LearnedMask(WIDTH, LAYERS, layers=layers, depth=depth, layer_norm=layer_norm)
        values = mask(ReferenceFeatures(hidden_states, None, hidden_states[-1]), TOKENS)
        assert (values > 0).all()
        assert 0.3 < values.mean() < 0.7


def test_normal_start_is_that_of_the_release():
    """Every weight N(0, 0.02²), every bias 0, the norm neutral: as transformers starts linear layers."""
    mask = LearnedMask(1024, 64, init="normal", depth=2, layer_norm="affine")
    assert mask.inner.shape == (64, 1024, 200)
    for weight, within in ((mask.inner, 0.001), (mask.weight, 0.02), (mask.merge, 0.4)):
        assert weight.std().item() == pytest.approx(0.02, rel=within)  # four of its standard errors
        assert abs(weight.mean().item()) < 0.02 * within * 2
    assert not any(bias.any() for bias in (mask.inner_bias, mask.bias, mask.norm_bias))
    assert (mask.norm_weight == 1).all()


def test_linear_start_is_that_of_nn_linear():
    """Bounds of U(-1/√d, 1/√d) for every layer, 1/√L for the merge."""
    mask = LearnedMask(1024, 64, init="linear")
    for parameter, fan_in in ((mask.weight, 1024), (mask.bias, 1024), (mask.merge, 64)):
        bound = fan_in**-0.5
        assert parameter.abs().max() <= bound
        assert parameter.abs().max() > 0.8 * bound
        assert parameter.min() < 0 < parameter.max()


def test_start_depends_on_the_seed_alone():
    torch.manual_seed(1)
    first = build(seed=5)
    state = torch.get_rng_state()
    torch.randn(3)
    second, third = build(seed=5), build(seed=6)
    assert torch.equal(first.reward.weight, second.reward.weight)
    assert not torch.equal(first.reward.weight, third.reward.weight)
    torch.manual_seed(1)
    assert torch.equal(torch.get_rng_state(), state), "building masks must not move the host's generator"


@pytest.mark.parametrize("section", [{"mask": "learned"}, {"mask": "learned", "layers": "last", "depth": 2}], ids=str)
@pytest.mark.parametrize("name", ["llama", "gpt2"])
@pytest.mark.parametrize("layout", ["padded", "packed"])
def test_mask_sees_only_the_tokens_before(section, name, layout):
    """Changing token t of a response changes no weight up to and including token t's."""
    model, mask = decoder(name), scatter_weights(build(section))
    mask.reward.bias.data += 20  # All alive: a zero would hide what the weight depends on.

    def values(pairs):
        tokens, inputs = (
            (pairs.tokens, pairs.inputs) if layout == "padded" else (pairs.packed_tokens, pairs.packed_inputs)
        )
        return mask(collect_features(runner(model, inputs), tokens, mask.request), tokens).reward

    pairs = Pairs(TWO_PAIRS)
    before, tokens = values(pairs), pairs.tokens
    for n in range(N):
        changed = Pairs(TWO_PAIRS)
        sequence, position = tokens.sequence[n], tokens.position[n]
        place = changed.prompt_lens[sequence] + position
        changed.sequences[sequence][place] = (changed.sequences[sequence][place] + 7) % 30 + 3
        changed.input_ids[sequence, place] = changed.sequences[sequence][place]
        after = values(changed)
        later = (tokens.sequence == sequence) & (tokens.position > position)
        # Equal but for rounding at values of about 20; a leak would move them by about 1.
        torch.testing.assert_close(after[~later], before[~later], atol=3e-5, rtol=0)
        if later.any():
            assert (after[later] - before[later]).abs().max() > 1e-3, "a later weight does depend on it"


def plain_activation(activations, minimum, rescale):
    """Paper §2.3, response by response: standardise each site, average the sites, rescale."""
    mask = torch.zeros(N)
    for s in range(TOKENS.num_sequences):
        here = [n for n in range(N) if TOKENS.sequence[n] == s]
        mean = torch.zeros(len(here))
        for site in activations:
            a = site[here]
            std = a.std(unbiased=False)
            a = (a - a.mean()) / (std if std > 0 else 1)
            mean += (to_range(a, minimum) if rescale == "site" else a) / len(activations)
        mask[here] = to_range(mean, minimum) if rescale == "minmax" else mean
    return mask


def to_range(values, minimum):
    """Onto [minimum, 1]; standardised values are of order 1: a spread of 1e-4 is rounding, and says nothing."""
    spread = values.max() - values.min()
    return minimum + (1 - minimum) * (values - values.min()) / spread if spread > 1e-4 else torch.ones(len(values))


@pytest.mark.parametrize(
    ("minimum", "rescale"), [(0.0, "site"), (0.3, "site"), (0.0, "minmax"), (0.3, "minmax"), (0.0, "none")]
)
@pytest.mark.parametrize("sites", [1, 4])
def test_activation_equals_the_loop(minimum, rescale, sites):
    mask = ActivationMask(min=minimum, rescale=rescale)
    values = mask(features(sites=sites), TOKENS)
    torch.testing.assert_close(values, plain_activation(features(sites=sites).activations, minimum, rescale))
    if rescale != "none":
        assert (values >= minimum).all()
        assert (values <= 1).all()


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
def test_activation_does_not_depend_on_the_scale(scale):
    f = features()
    scaled = ReferenceFeatures(None, f.activations * scale, f.last_hidden)
    torch.testing.assert_close(ActivationMask()(scaled, TOKENS), ActivationMask()(f, TOKENS), atol=1e-5, rtol=0)


@pytest.mark.parametrize("rescale", ["site", "minmax", "none"])
def test_activation_of_one_token_responses(rescale):
    """Their standard deviation is zero: weight 1 where a range is given, 0 without, never NaN."""
    tokens = Pairs([(2, 1), (3, 1)]).tokens
    f = ReferenceFeatures(None, torch.tensor([[0.3, -2.0], [5.0, 0.1]]), torch.zeros(2, WIDTH))
    assert ActivationMask(rescale=rescale)(f, tokens).tolist() == ([0.0, 0.0] if rescale == "none" else [1.0, 1.0])


def test_activation_of_a_constant_response():
    f = ReferenceFeatures(None, torch.full((2, N), 0.1), torch.zeros(N, WIDTH))
    assert torch.equal(ActivationMask()(f, TOKENS), torch.ones(N))


def test_activation_of_two_tokens_that_the_sites_disagree_on():
    """Two standardised tokens are ±1 at each site; where as many sites say + as say −, rounding must not decide."""
    tokens = Pairs([(2, 2), (3, 2)]).tokens
    g = torch.Generator().manual_seed(0)
    for _ in range(20):
        a = torch.randn(2, 4, generator=g)
        f = ReferenceFeatures(None, torch.cat([a, 0.7 * a[:, [1, 0, 3, 2]]]), torch.zeros(4, WIDTH))
        assert torch.equal(ActivationMask(rescale="minmax")(f, tokens), torch.ones(4))


def test_activation_without_a_range_may_be_negative():
    values = build(mask="activation", rescale="none")(features(), TOKENS).reward
    assert values.min() < 0 < values.max()


@pytest.mark.parametrize(
    "mask", ["activation", "decay", "diff", "learned", "oracle_reward", "random", "sampled", "selected", "uniform"]
)
def test_tokens_of_no_weight_may_be_left_out(mask):
    """No gradient reaches these masks where they are zero."""
    section = {"mask": mask, "metrics_every": 5, **({"oracle": "a"} if mask in ("selected", "oracle_reward") else {})}
    assert not build(section).need_all_tokens


def test_activation_sites_reach_the_features():
    head = build(mask="activation", sites=["residual", "attention"])
    assert head.request == FeatureRequest({"activations"}, ("residual", "attention"), ())
    assert build(mask="activation").request.sites == SITES
    other = build(reward={"mask": "uniform"}, kl={"mask": "activation", "sites": ["attention"]})
    assert other.request.sites == ("attention",), "of the mask that reads them"


def test_layers_reach_the_features():
    """Those of both masks together; the last one comes from elsewhere when a mask reads nothing else."""
    assert build(mask="learned").request.hidden_layers == (0, 1, 2)
    assert build(mask="learned", layers=[-2]).request.hidden_layers == (1,)
    two = build(mask="learned", shared=False, reward={"layers": [2, 0]}, kl={"layers": [1, 2]})
    assert two.request.hidden_layers == (0, 1, 2)
    assert build(mask="learned", shared=False, reward={"layers": [0]}, kl={"layers": "last"}).request == (
        {"hidden_states", "last_hidden"},
        SITES,
        (0,),
    )


@pytest.mark.parametrize("read", [[0], [1], [0, 2], [1, 2]])
def test_a_mask_of_some_layers_needs_only_their_rows(read):
    mask, whole = learned(layers=read), features()
    some = ReferenceFeatures(whole.hidden_states[read], hidden_layers=tuple(read))
    assert torch.equal(mask(some, TOKENS), mask(whole, TOKENS))


def test_masks_that_need_different_sites_are_refused():
    with pytest.raises(SparsePOError, match=r"sites: \('residual',\) and \('attention',\) differ"):
        build(mask="activation", shared=False, reward={"sites": ["residual"]}, kl={"sites": ["attention"]})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("value", [0.0, 0.3, 1.0, 3.0])
def test_uniform(value, dtype):
    """The value itself, not the model dtype's rounding of it."""
    f = ReferenceFeatures(last_hidden=torch.zeros(N, WIDTH, dtype=dtype))
    assert torch.equal(UniformMask(value=value)(f, TOKENS), torch.full((N,), value))


def test_uniform_reward_and_kl_differ():
    masks = build(mask="uniform", shared=False, kl={"value": 0.0})(features(), TOKENS)
    assert masks.reward.tolist() == [1.0] * N
    assert masks.kl.tolist() == [0.0] * N


def test_random_is_uniform_and_seeded():
    tokens = Pairs([(1, 50)] * 40).tokens
    f = ReferenceFeatures(last_hidden=torch.zeros(len(tokens), WIDTH))
    first, second = RandomMask(7), RandomMask(7)
    draws = [first(f, tokens) for _ in range(3)]
    for draw in draws:
        assert torch.equal(second(f, tokens), draw)
    assert not torch.equal(draws[0], draws[1])
    assert not torch.equal(RandomMask(8)(f, tokens), draws[0])
    # 2000 draws: mean within 4 standard errors of 1/2, and both ends are reached.
    assert abs(draws[0].mean() - 0.5) < 4 * 12**-0.5 / 2000**0.5
    assert 0 <= draws[0].min() < 0.01
    assert 0.99 < draws[0].max() <= 1


@pytest.mark.parametrize("side", ["left", "right"])
def test_random_is_the_same_however_the_batch_lies(side):
    """Each pair packed in a batch of its own, against all padded into one."""
    batch = Pairs([(3, 4), (2, 9), (1, 2), (3, 1), (5, 3), (4, 2)], side=side)
    mask, tokens = RandomMask(7), batch.tokens
    mask.at_step(5)
    together = mask(ReferenceFeatures(), tokens)
    for pair in ([0, 3], [1, 4], [2, 5]):
        ids, prompts = ([part[i] for i in pair] for part in (batch.sequences, batch.prompt_lens))
        mask.at_step(5)
        alone = mask(ReferenceFeatures(), ResponseTokens.from_packed(torch.cat(ids), list(map(len, ids)), prompts))
        assert torch.equal(alone, together[torch.isin(tokens.sequence, torch.tensor(pair))])


def test_random_weighs_all_tokens_apart():
    """Those of equal responses in an index made by hand too, which knows nothing of their prompts."""
    sequence, position = torch.arange(4).repeat_interleave(5), torch.arange(5).repeat(4)
    by_hand = ResponseTokens(torch.zeros(20).long(), torch.arange(20), sequence, position, num_pairs=2)
    for tokens in (Pairs([(2, 30)] * 4).tokens, by_hand):
        assert len(RandomMask(7)(ReferenceFeatures(), tokens).unique()) == len(tokens)


def test_random_goes_on_after_a_checkpoint():
    mask, f = RandomMask(7), features()
    for _ in range(3):
        mask(f, TOKENS)
    resumed = RandomMask(7)
    resumed.load_state_dict(mask.state_dict())
    assert torch.equal(resumed(f, TOKENS), mask(f, TOKENS))


def test_random_evaluation_leaves_the_sequence_alone():
    mask, untouched = RandomMask(7), RandomMask(7)
    mask.eval()
    mask(features(), TOKENS)
    mask.train()
    assert torch.equal(mask(features(), TOKENS), untouched(features(), TOKENS))


def test_random_does_not_touch_the_global_generator():
    state = torch.get_rng_state()
    RandomMask(7)(features(), TOKENS)
    assert torch.equal(torch.get_rng_state(), state)


def test_shared_and_independent():
    shared = build(mask="learned")
    assert shared.kl is None
    masks = shared(features(), TOKENS)
    assert masks.reward is masks.kl
    both = build(mask="learned", shared=False, kl={"layers": "last", "min": 0.5})
    masks = both(features(), TOKENS)
    assert not torch.equal(masks.reward, masks.kl)
    assert both.kl.min == 0.5
    assert both.reward.min == 0.0
    assert both.request.needs == {"hidden_states", "last_hidden"}
    assert isinstance(masks, MaskPair)


@pytest.mark.parametrize("mask", ["learned", "random"])
def test_independent_masks_start_apart(mask):
    masks = build(mask=mask, shared=False)(features(), TOKENS)
    assert not torch.equal(masks.reward, masks.kl)


@pytest.mark.parametrize("key", ["l1_reward", "l1_kl", "mask_lr", "mask_weight_decay", "on_dead_mask"])
@pytest.mark.parametrize("mask", ["uniform", "random", "activation"])
def test_keys_for_learning_without_anything_to_learn_are_refused(key, mask):
    with pytest.raises(SparsePOError, match=rf"sparsepo\.{key} has no effect: mask '{mask}' has nothing to learn"):
        build({"mask": mask, key: "stop" if key == "on_dead_mask" else 0.1})


@pytest.mark.parametrize("role", ["reward", "kl"])
def test_a_norm_of_the_role_that_learns_nothing_is_refused(role):
    other = {"reward": "kl", "kl": "reward"}[role]
    section = {role: {"mask": "uniform"}, other: {"mask": "learned"}}
    with pytest.raises(
        SparsePOError, match=rf"sparsepo\.l1_{role} has no effect: mask 'uniform' has nothing to learn"
    ):
        build(section, **{f"l1_{role}": 0.1})
    build(section, **{f"l1_{other}": 0.1, "mask_lr": 0.1})


@pytest.mark.parametrize("mask", ["uniform", "activation"])
def test_independent_copies_of_the_same_mask_are_refused(mask):
    with pytest.raises(SparsePOError, match=r"sparsepo\.shared: false has no effect"):
        build(mask=mask, shared=False)


def test_activation_floor_without_rescaling_is_refused():
    """`min` is where the range starts; without a range nothing reads it."""
    with pytest.raises(SparsePOError, match=r"sparsepo\.min has no effect"):
        build(mask="activation", rescale="none", min=0.2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers": [3]}, r"^sparsepo\.layers: \[3\], allowed are all, last, or a list from 0 to 2"),
        ({"layers": [-4]}, r"^sparsepo\.layers"),
        ({"layers": []}, r"^sparsepo\.layers"),
        ({"kl": {"layers": [3]}}, r"^sparsepo\.kl\.layers: \[3\]"),
        ({"min": 0.5, "max": 0.5}, r"^sparsepo\.min: 0\.5 must be below max: 0\.5"),
    ],
)
def test_learned_options_out_of_range(options, message):
    with pytest.raises(SparsePOError, match=message):
        build(mask="learned", **options)
