"""A loss and its masks on random numbers: what ours return is accepted, and each mistake of others' is one line."""

import pytest
import torch

from sparsepo_plugin import MASKS, OBJECTIVES, LossConfig, Objective, SparsePOError, TokenMask
from sparsepo_plugin.config import objective_class
from sparsepo_plugin.rehearsal import rehearse

OURS = [name for name in OBJECTIVES.names() if objective_class(name).__module__.startswith("sparsepo_plugin.")]
NEEDED = {"sepo": {"oracle": "some/oracle"}, "weighted_dpo": {"mask": "uniform"}}


@pytest.fixture
def registries(monkeypatch):
    """Forget what is registered here."""
    for registry in (MASKS, OBJECTIVES):
        monkeypatch.setattr(registry, "_classes", dict(registry._classes))


def masks_of(loss, section=None):
    return rehearse(LossConfig.from_section(section or {}, loss, beta=0.1), hidden_size=8, num_layers=2, seed=0)


@pytest.mark.parametrize("loss", OURS)
def test_every_loss_of_ours(loss):
    """Without a change of the random numbers that a run draws."""
    before = torch.get_rng_state()
    masks = masks_of(loss, NEEDED.get(loss))
    objective = objective_class(loss)
    assert (masks is not None) == bool(objective.chooses_mask or objective.mask)
    assert torch.equal(torch.get_rng_state(), before)


def test_masks_of_different_needs():
    section = {"reward": {"mask": "learned", "layers": "last"}, "kl": {"mask": "activation"}}
    assert set(dict(masks_of("sparsepo", section).named_children())) == {"reward", "kl"}


def test_a_mask_that_learns_nothing(registries):
    @MASKS.register("detached")
    class Detached(TokenMask):
        """Its parameter has no part in what it returns."""

        def __init__(self):
            super().__init__()
            self.scale = torch.nn.Parameter(torch.ones(()))

        def forward(self, features, tokens):
            return torch.ones(len(tokens))

    with pytest.raises(SparsePOError, match="has parameters and returns weights without a gradient by them"):
        masks_of("sparsepo", {"mask": "detached"})


def output_of(change):
    """DPO's, changed."""

    def forward(self, stats, masks, tokens):
        output = self.output(tokens.sum(stats.policy_logps))
        return change(output)

    return forward


def with_field(name, value):
    def change(output):
        setattr(output, name, value(getattr(output, name)))
        return output

    return change


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda output: output.loss, "returns Tensor, an ObjectiveOutput is needed"),
        (
            with_field("chosen_rewards", lambda rewards: rewards[:1]),
            r"returns chosen_rewards of shape \[1\], a tensor of",
        ),
        (with_field("loss", float), r"returns loss of float, a tensor of shape \[\] is needed \(2 pairs\)"),
        (with_field("loss", torch.Tensor.detach), "returns a loss without a gradient: nothing would be trained"),
        (with_field("metrics", lambda _: {"mine": torch.ones(2)}), "returns metric 'mine', .*: one number is needed"),
        (lambda output: 1 // 0, "failed: .*ZeroDivisionError|failed.*division"),
    ],
)
def test_an_objective_that_cannot_be_used(change, says, registries):
    OBJECTIVES.register("broken")(type("Broken", (Objective,), {"__doc__": "Broken.", "forward": output_of(change)}))
    with pytest.raises(SparsePOError, match=f"loss 'broken' {says}"):
        masks_of("broken")


def test_metrics_that_are_numbers(registries):
    change = with_field("metrics", lambda _: {"whole": 1, "tensor": torch.ones(1)})
    OBJECTIVES.register("fine")(type("Fine", (Objective,), {"__doc__": "Fine.", "forward": output_of(change)}))
    assert masks_of("fine") is None
