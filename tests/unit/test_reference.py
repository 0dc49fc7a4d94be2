"""Rows and statistics of any decoder against what transformers itself returns for the same batch.

Tolerances: hidden rows are the same tensors, so they are equal bit for bit. Statistics and logits of a projection of N
rows instead of S·T differ by float32 rounding of sums of 16 products: 1e-5. Packed and padded rows go through
attention kernels with another length, which for these large random weights costs up to 5e-6; 3e-5 is asked, and
attention across samples would be off by more than 1.
"""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from tiny import ARCHITECTURES, LAYERS, TWO_PAIRS, WIDTH, Pairs, decoder, row_stats, runner

from sparsepo_plugin import LossConfig, MaskedPolicy, ReferenceFeatures, Runner, SparsePOError, token_statistics
from sparsepo_plugin.decoder import SITES, activation_sites, decoder_layers, replaced_forward, vocabulary_head
from sparsepo_plugin.reference import FeatureRequest, collect_features, read_frozen

BOTH = frozenset({"hidden_states", "activations"})
ATTENTION = {"gptj": "eager"}  # transformers has no sdpa for it


@pytest.fixture(params=ARCHITECTURES)
def name(request):
    return request.param


@pytest.fixture
def model(name):
    return decoder(name, attention=ATTENTION.get(name, "sdpa"))


@pytest.fixture(params=["right", "left"])
def pairs(request):
    return Pairs(TWO_PAIRS, side=request.param)


def collect(model, pairs, needs=BOTH, sites=SITES):
    runner = Runner(model, lambda: model(**pairs.inputs))
    return collect_features(runner, pairs.tokens, FeatureRequest(needs, sites))


def rows_of(states, tokens):
    return states.flatten(0, 1)[tokens.rows]


def test_hidden_states_are_those_of_transformers(model, pairs):
    features = collect(model, pairs)
    with torch.no_grad():
        states = model(**pairs.inputs, output_hidden_states=True).hidden_states[1:]
    expected = torch.stack([rows_of(state, pairs.tokens) for state in states])
    assert features.hidden_states.shape == (LAYERS, len(pairs.tokens), WIDTH)
    assert torch.equal(features.hidden_states, expected)
    assert torch.equal(features.last_hidden, expected[-1])
    assert not features.hidden_states.requires_grad


@pytest.mark.parametrize("read", [(0,), (0, LAYERS - 1), (LAYERS - 1,)])
def test_only_layers_that_are_read_are_kept(model, pairs, read):
    whole, runner = collect(model, pairs), Runner(model, lambda: model(**pairs.inputs))
    some = collect_features(runner, pairs.tokens, FeatureRequest(frozenset({"hidden_states"}), hidden_layers=read))
    assert len(some.hidden_states) == len(read)
    for layer in read:
        assert torch.equal(some.layer(layer), whole.layer(layer))


@pytest.mark.parametrize("read", [(-1,), (LAYERS,)])
def test_layers_that_are_not_there_are_refused(read):
    model, pairs = decoder("llama"), Pairs(TWO_PAIRS)
    with pytest.raises(SparsePOError, match=f"allowed are 0 to {LAYERS - 1}"):
        request = FeatureRequest(frozenset({"hidden_states"}), hidden_layers=read)
        collect_features(Runner(model, lambda: 1 / 0), pairs.tokens, request)


def test_head_of_last_hidden_gives_the_logits(model, pairs):
    last_hidden = collect(model, pairs, frozenset()).last_hidden
    head = model.get_output_embeddings()
    with torch.no_grad():
        expected = model(**pairs.inputs).logits.flatten(0, 1)[pairs.tokens.rows]
        torch.testing.assert_close(torch.nn.functional.linear(last_hidden, head.weight, head.bias), expected)


def test_activation_means(model, name, pairs):
    """Against means of outputs that forward hooks recorded whole, site by site, under the architecture's own names."""
    children = {
        "gpt2": ("attn", "mlp"),
        "gptj": ("attn", "mlp"),
        "gpt_bigcode": ("attn", "mlp"),
        "gpt_neox": ("attention", "mlp"),
    }.get(name, ("self_attn", "mlp"))
    recorded = []
    handles = []
    for layer in decoder_layers(model):
        for module in (*(getattr(layer, child) for child in children), layer):
            keep = lambda m, args, out: recorded.append(out[0] if isinstance(out, tuple) else out)  # noqa: E731
            handles.append(module.register_forward_hook(keep))
    with torch.no_grad():
        model(**pairs.inputs)
    for handle in handles:
        handle.remove()
    # By time of their call, as ours: a layer ends after its children, and parallel residuals run both anyhow.
    expected = torch.stack([rows_of(out, pairs.tokens).mean(-1) for out in recorded])
    activations = collect(model, pairs).activations
    assert activations.shape == (3 * LAYERS, len(pairs.tokens))
    assert activations.dtype == torch.float32
    torch.testing.assert_close(activations, expected, atol=1e-6, rtol=1e-5)


def test_rows_are_kept_as_they_are_and_nothing_is_made_of_the_rest():
    """In 16 bits if the model has them; what a host does with the logits costs it nothing."""
    model, pairs, answers = decoder("llama").to(torch.bfloat16), Pairs(TWO_PAIRS), []
    run = Runner(model, lambda: answers.append(model(**pairs.inputs)))
    features = collect_features(run, pairs.tokens, FeatureRequest(frozenset({"hidden_states"})))
    assert features.hidden_states.dtype == features.last_hidden.dtype == torch.bfloat16
    assert answers[0].logits.numel() == 0


@pytest.mark.parametrize("kind", SITES)
def test_one_kind_of_site(kind):
    model, pairs = decoder("llama"), Pairs(TWO_PAIRS)
    assert collect(model, pairs, sites=(kind,)).activations.shape[0] == LAYERS


def test_only_what_is_needed_is_collected():
    model, pairs = decoder("llama"), Pairs(TWO_PAIRS)
    features = collect(model, pairs, frozenset({"last_hidden"}))
    assert features.hidden_states is None
    assert features.activations is None
    assert not any(module._forward_hooks for module in model.modules())


def test_head_never_runs(model, pairs):
    """No operation of the reference forward touches the head's weight, except an embedding look-up when it is tied."""
    weight = model.get_output_embeddings().weight
    used = []

    class Watch(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            if any(arg is weight for arg in args) and func in (torch.nn.functional.linear, torch.matmul, torch.mm):
                used.append(func)
            return func(*args, **(kwargs or {}))

    with torch.no_grad(), Watch():
        model(**pairs.inputs)
        assert len(used) == 1, "the watch must see the head when it does run"
        used.clear()
        collect(model, pairs)
    assert used == []


def test_no_whole_sequence_state_outlives_its_layer():
    """Peak of live [S, T, d] tensors does not grow with depth: each recorded layer output dies with its layer."""
    import weakref

    model, pairs = decoder("llama", num_hidden_layers=6), Pairs(TWO_PAIRS)
    alive: list[int] = []
    outputs: list[weakref.ref] = []

    def hook(module, args, out):
        outputs.append(weakref.ref(out))
        alive.append(sum(ref() is not None for ref in outputs))

    handles = [layer.register_forward_hook(hook) for layer in decoder_layers(model)]
    collect(model, pairs)
    for handle in handles:
        handle.remove()
    assert max(alive) <= 2


def test_hooks_and_head_are_restored_after_an_error():
    model, pairs = decoder("llama"), Pairs(TWO_PAIRS)
    with pytest.raises(ZeroDivisionError):
        collect_features(Runner(model, lambda: 1 / 0), pairs.tokens, FeatureRequest(BOTH))
    assert not any(module._forward_hooks for module in model.modules())
    with torch.no_grad():
        assert model(**pairs.inputs).logits.shape[-1] == model.config.vocab_size


def masked(policy, reference, **section):
    return MaskedPolicy(policy, reference, LossConfig.from_section({"mask": "uniform", **section}))


@pytest.mark.parametrize("expectation", ["reference", "policy"])
def test_statistics_equal_those_of_both_models_logits(name, expectation, pairs):
    attention = ATTENTION.get(name, "sdpa")
    policy, reference = decoder(name, 0, attention), decoder(name, 1, attention)
    tokens = pairs.tokens
    with torch.no_grad():
        logps, ref_logps = (row_stats(m(**pairs.inputs).logits, tokens) for m in (policy, reference))
    index = tokens.labels[:, None]
    over = ref_logps if expectation == "reference" else logps
    expected = [x.gather(1, index)[:, 0] for x in (logps, ref_logps)] + [(over.exp() * (logps - ref_logps)).sum(1)]
    wrapped = masked(policy, reference, expectation=expectation)
    out = wrapped(**pairs.inputs, tokens=tokens, features=collect(reference, pairs))
    torch.testing.assert_close(out["statistics"], torch.stack(expected), atol=1e-5, rtol=1e-5)
    assert out["masks"].shape == (2, len(tokens))


def test_packed_equals_padded(name, pairs):
    """One row, no attention mask, positions that restart: as OpenRLHF packs without flash-attention."""
    attention = ATTENTION.get(name, "sdpa")
    policy, reference = decoder(name, 0, attention), decoder(name, 1, attention)
    wrapped = masked(policy, reference)
    results = []
    for inputs, tokens in ((pairs.inputs, pairs.tokens), (pairs.packed_inputs, pairs.packed_tokens)):
        runner = Runner(reference, lambda x=inputs: reference(**x))
        features = collect_features(runner, tokens, FeatureRequest(BOTH))
        results.append([wrapped(**inputs, tokens=tokens, features=features)["statistics"], features.activations])
    for padded, packed in zip(*results, strict=True):
        torch.testing.assert_close(packed, padded, atol=3e-5, rtol=3e-5)


def test_head_with_bias(pairs):
    """GPT-J is the one here whose head has one; without it in the statistics they would be off by its size."""
    model = decoder("gptj", attention="eager")
    assert model.get_output_embeddings().bias.abs().max() > 0.1


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("gemma2", {"final_logit_softcapping": 30.0}),
        ("cohere", {"logit_scale": 0.0625}),
        ("granite", {"logits_scaling": 8.0}),
        ("recurrent_gemma", {"logits_soft_cap": 30.0}),
    ],
)
def test_logits_changed_after_the_head_are_refused(name, change):
    if name == "recurrent_gemma":
        change |= {"num_key_value_heads": 1, "lru_width": WIDTH, "attention_window_size": 8, "intermediate_size": 48}
    with pytest.raises(SparsePOError, match=next(iter(change))):
        vocabulary_head(decoder(name, attention="eager", **change))


@pytest.mark.parametrize("key", ["logit_scale", "lm_head_multiplier", "output_multiplier"])
def test_logit_changes_of_a_text_config_inside_another_are_refused(key):
    model = decoder("llama")
    model.config.get_text_config = lambda: SimpleNamespace(**{key: 0.5})
    with pytest.raises(SparsePOError, match=f"the model's config sets {key}"):
        vocabulary_head(model)


def test_logit_change_that_changes_nothing_is_allowed():
    vocabulary_head(decoder("granite", logits_scaling=1.0))
    vocabulary_head(decoder("gemma2", attention="eager", final_logit_softcapping=None))


def test_head_that_is_not_linear_is_refused():
    model = decoder("llama")
    model.lm_head = torch.nn.Sequential(model.lm_head)
    with pytest.raises(SparsePOError, match=r"head of LlamaForCausalLM is Sequential, torch\.nn\.Linear is needed"):
        vocabulary_head(model)


def test_head_keeps_state_dict_and_tying():
    model = decoder("gpt2")
    before = list(model.state_dict())
    head = vocabulary_head(model)
    with replaced_forward(head, lambda hidden: hidden.new_zeros(1)):
        assert list(model.state_dict()) == before
        assert head.weight is model.get_input_embeddings().weight
        assert model(**Pairs(TWO_PAIRS).inputs).logits.tolist() == [0.0]
    assert type(head) is torch.nn.Linear
    assert "forward" not in vars(head)


def test_a_forward_that_was_there_before_is_restored():
    """As a host's hooks may have put one on the instance."""
    head = vocabulary_head(decoder("llama"))
    head.forward = own = lambda hidden: hidden
    with replaced_forward(head, lambda hidden: None):
        assert head(torch.ones(1)) is None
    assert head.forward is own


def test_experts_as_many_as_layers_are_not_taken_for_layers():
    layers = decoder_layers(decoder("mixtral", num_local_experts=LAYERS))
    assert {type(layer).__name__ for layer in layers} == {"MixtralDecoderLayer"}


def test_layers_are_found_inside_peft():
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(decoder("llama"), LoraConfig(r=LAYERS, target_modules="all-linear"))
    assert {type(layer).__name__ for layer in decoder_layers(model)} == {"LlamaDecoderLayer"}
    assert len(activation_sites(decoder_layers(model))) == 3 * LAYERS


@pytest.mark.parametrize("name", ["llama", "gptj"])
def test_log_probabilities_are_those_of_the_logits(name):
    """GPT-J's head has a bias, as an oracle's may."""
    model, pairs = decoder(name, attention=ATTENTION.get(name, "sdpa")), Pairs(TWO_PAIRS)
    with torch.no_grad():
        logps = row_stats(model(**pairs.inputs).logits, pairs.tokens)
    found = collect(model, pairs, frozenset({"logps"})).logps
    torch.testing.assert_close(found, logps.gather(1, pairs.tokens.labels[:, None])[:, 0], atol=1e-5, rtol=1e-5)


def test_an_oracle_is_read_for_its_log_probabilities_alone():
    """Whatever else the masks ask of the reference."""
    pairs, models = Pairs(TWO_PAIRS), (decoder("llama"), decoder("llama", seed=1))
    reference, oracle = (runner(model, pairs.inputs) for model in models)
    wanted = FeatureRequest(frozenset({"hidden_states", "oracle_logps"}))
    features = read_frozen(pairs.tokens, wanted, reference, oracle)
    assert torch.equal(features.oracle_logps, collect(models[1], pairs, frozenset({"logps"})).logps)
    assert features.logps is None
    assert torch.equal(features.hidden_states, collect(models[0], pairs).hidden_states)


def test_activation_means_of_a_16_bit_model_are_taken_in_float32():
    """Of the same outputs; a mean of bfloat16 numbers in bfloat16 would be off by up to 0.4 %."""
    model, pairs = decoder("llama").to(torch.bfloat16), Pairs(TWO_PAIRS)
    recorded = []
    for layer in decoder_layers(model):
        layer.register_forward_hook(
            lambda module, args, out: recorded.append(out[0] if isinstance(out, tuple) else out)
        )
    found = collect(model, pairs, sites=("residual",)).activations
    expected = torch.stack([rows_of(out, pairs.tokens).float().mean(-1) for out in recorded])
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)


def test_offloaded_rows_go_to_host_memory():
    """Seen on a device without data: rows stay on it, and copying them to host memory is what it must refuse."""
    pairs = Pairs(TWO_PAIRS)
    model, ids = decoder("llama").to("meta"), pairs.input_ids.to("meta")
    tokens = replace(pairs.tokens, rows=pairs.tokens.rows.to("meta"))
    mask = torch.zeros(len(ids), 1, ids.shape[1], ids.shape[1], device="meta")  # else transformers looks at values
    run = Runner(model, lambda: model(input_ids=ids, attention_mask=mask))
    request = FeatureRequest(frozenset({"hidden_states"}))
    assert collect_features(run, tokens, request).hidden_states.device.type == "meta"
    with pytest.raises(NotImplementedError, match="Cannot copy out of meta tensor"):
        collect_features(run, tokens, request, offload=True)


def test_a_layer_comes_to_the_models_device():
    """From host memory, where the run may have offloaded it."""
    features = ReferenceFeatures(torch.zeros(LAYERS, 2, WIDTH), last_hidden=torch.zeros(2, WIDTH, device="meta"))
    assert features.layer(1).device.type == "meta"


def test_one_site_per_kind_and_layer_when_the_feed_forward_is_not_one_module():
    """OPT's fc1 and fc2 are children of the layer: its feed-forward output is fc2's alone."""
    model = decoder(
        "opt", ffn_dim=24, word_embed_proj_dim=WIDTH, num_attention_heads=2, num_hidden_layers=LAYERS, dropout=0.0
    )
    layers = decoder_layers(model)
    assert activation_sites(layers, ("feed_forward",)) == [layer.fc2 for layer in layers]
    assert activation_sites(layers, ("attention",)) == [layer.self_attn for layer in layers]


class OwnAttention(torch.nn.Linear):
    """Attention by its class, whatever the layer calls it."""


@pytest.mark.parametrize(("name", "kind"), [("mixer", OwnAttention), ("attn", torch.nn.Linear)])
def test_attention_is_known_by_its_name_or_its_class(name, kind):
    attention, dense = kind(2, 2), torch.nn.Linear(2, 2)
    layers = torch.nn.ModuleList([torch.nn.ModuleDict({name: attention, "dense": dense})])
    assert activation_sites(layers, ("attention", "feed_forward")) == [attention, dense]


def test_missing_site_is_named():
    layers = torch.nn.ModuleList([torch.nn.Sequential(torch.nn.Linear(2, 2))])
    with pytest.raises(SparsePOError, match="Sequential has no attention site"):
        activation_sites(layers)


def test_missing_layers_are_named():
    model = decoder("llama")
    model.config.num_hidden_layers = LAYERS + 1
    assert collect(model, Pairs(TWO_PAIRS), frozenset()).last_hidden is not None, "nobody asked for them"
    with pytest.raises(SparsePOError, match="LlamaForCausalLM: no list of 4 layers"):
        decoder_layers(model)


def test_reference_of_another_width():
    policy, reference = decoder("llama"), decoder("gpt2", seed=1, n_embd=24)
    pairs = Pairs(TWO_PAIRS)
    features = collect(reference, pairs)
    out = masked(policy, reference)(**pairs.inputs, tokens=pairs.tokens, features=features)
    with torch.no_grad():
        last = rows_of(policy(**pairs.inputs, output_hidden_states=True).hidden_states[-1], pairs.tokens)
        weights = policy.lm_head.weight, reference.lm_head.weight
        stats = token_statistics(last, weights[0], features.last_hidden, weights[1], pairs.tokens.labels)
    torch.testing.assert_close(out["statistics"], torch.stack(stats))
