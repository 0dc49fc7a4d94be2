"""The masked policy as OpenRLHF's strategy sees it: optimizer groups, answers, export."""

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from tiny import TWO_PAIRS, Pairs, decoder, describe, runner
from transformers import AutoModelForCausalLM

from sparsepo_plugin import OBJECTIVES, LossConfig, MaskedPolicy, load_masks
from sparsepo_plugin.checkpoint import load_description
from sparsepo_plugin.hosts.openrlhf.policy import HostedPolicy
from sparsepo_plugin.reference import collect_features

SECTION = {"mask": "learned", "shared": False, "l1_reward": 1e-3, "l1_kl": 2e-3}
PAIRS = Pairs(TWO_PAIRS)
REFERENCE = decoder("llama", seed=1)


def wrap(section=SECTION, policy=None, reference=REFERENCE, loss="sparsepo") -> HostedPolicy:
    policy = policy or decoder("llama")
    config = LossConfig.from_section(section, loss, beta=0.1, label_smoothing=0.0)
    wrapped = HostedPolicy(policy, reference, config)
    wrapped.description = describe(config)
    return wrapped


def features_of(wrapped):
    return collect_features(runner(REFERENCE, PAIRS.inputs), PAIRS.tokens, wrapped.request)


def lora(model):
    """A LoRA policy whose adapter already does something."""
    policy = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM"))
    for name, parameter in policy.named_parameters():
        if "lora_B" in name:
            parameter.data = 0.3 * torch.randn_like(parameter)
    return policy


def host_groups(wrapped):
    """As OpenRLHF makes them: with decay, and without on biases and norms."""
    named = [(n, p) for n, p in wrapped.named_parameters() if p.requires_grad]
    bare = [p for n, p in named if "bias" in n or "norm" in n]
    rest = [p for n, p in named if not ("bias" in n or "norm" in n)]
    return [{"params": rest, "weight_decay": 0.1, "lr": 1e-5}, {"params": bare, "weight_decay": 0.0, "lr": 1e-5}]


def test_masks_have_an_optimizer_group_of_their_own():
    wrapped = wrap({**SECTION, "mask_lr": 0.02, "mask_weight_decay": 0.3})
    given = host_groups(wrapped)
    before = [len(group["params"]) for group in given]
    groups = wrapped.optimizer_groups(given)
    *rest, own = groups
    assert {id(p) for p in own["params"]} == {id(p) for p in wrapped.masks.parameters()}
    assert (own["lr"], own["weight_decay"]) == (0.02, 0.3)
    assert [(group["lr"], group["weight_decay"]) for group in rest] == [(1e-5, 0.1), (1e-5, 0.0)]
    everything = [id(p) for group in groups for p in group["params"]]
    assert sorted(everything) == sorted(id(p) for p in wrapped.parameters())
    assert [len(group["params"]) for group in given] == before, "the host's own groups are left alone"
    optimizer = torch.optim.AdamW(groups, lr=7.0)
    assert [group["lr"] for group in optimizer.param_groups] == [1e-5, 1e-5, 0.02]


def test_mask_lr_of_the_policy():
    wrapped = wrap({**SECTION, "mask_lr": "policy"})
    own = wrapped.optimizer_groups(host_groups(wrapped))[-1]
    assert "lr" not in own
    assert own["weight_decay"] == 0.01


def test_groups_stay_where_there_is_nothing_to_move():
    wrapped = wrap({"mask": "uniform"})
    groups = host_groups(wrapped)
    assert wrapped.optimizer_groups(groups) is groups
    flat = list(wrap().parameters())
    assert wrap().optimizer_groups(flat) is flat


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_export_loads_without_the_plugin(name, tmp_path):
    policy = decoder(name)
    wrapped = wrap(policy=policy)
    with torch.no_grad():
        expected = policy(**PAIRS.inputs).logits
    model, state = wrapped.export(wrapped.state_dict(), tmp_path)
    assert model is policy
    assert state.keys() == policy.state_dict().keys()
    model.save_pretrained(tmp_path, state_dict=state)
    assert "sparsepo" not in (tmp_path / "config.json").read_text()
    loaded, info = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert type(loaded.get_output_embeddings()) is torch.nn.Linear
    with torch.no_grad():
        torch.testing.assert_close(loaded(**PAIRS.inputs).logits, expected)
    masks, _ = load_masks(tmp_path)
    for key, value in wrapped.masks.state_dict().items():
        assert torch.equal(masks.state_dict()[key], value)


def test_export_of_a_loss_without_masks(tmp_path):
    """There is nothing to learn, and the run can be asked all the same."""
    wrapped = wrap({}, loss="dpo")
    wrapped.export(wrapped.state_dict(), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["sparsepo.json"]
    assert load_masks(tmp_path) == (None, wrapped.description)


class Counting(OBJECTIVES.get("dpo")):
    """Has a buffer, which the host's checkpoints hold."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("steps", torch.zeros(()))


def test_an_objectives_buffers_are_no_part_of_the_exported_model(tmp_path, monkeypatch):
    monkeypatch.setitem(OBJECTIVES._classes, "counting", Counting)
    wrapped = wrap({}, loss="counting")
    assert "objective.steps" in wrapped.state_dict()
    _, state = wrapped.export(wrapped.state_dict(), tmp_path)
    assert state.keys() == wrapped.policy.state_dict().keys()


def test_the_answer_has_the_key_that_an_actor_casts():
    wrapped = wrap()
    inputs = {**PAIRS.inputs, "tokens": PAIRS.tokens, "features": features_of(wrapped)}
    answer, plain = wrapped(**inputs), MaskedPolicy.forward(wrapped, **inputs)
    assert answer.keys() == {"logits", "masks", "aux_loss"}
    assert HostedPolicy.read(answer).keys() == plain.keys()
    for name, value in HostedPolicy.read(answer).items():
        assert value is None if plain[name] is None else torch.equal(value, plain[name]), name


def test_export_of_an_adapter(tmp_path):
    policy = lora(decoder("llama"))
    wrapped = wrap(policy=policy, reference=None)
    with torch.no_grad():
        expected = policy(**PAIRS.inputs).logits
    model, state = wrapped.export(wrapped.state_dict(), tmp_path)
    model.save_pretrained(tmp_path, state_dict=state)
    loaded = PeftModel.from_pretrained(decoder("llama"), tmp_path)
    with torch.no_grad():
        torch.testing.assert_close(loaded(**PAIRS.inputs).logits, expected)
    assert load_description(tmp_path) == wrapped.description
