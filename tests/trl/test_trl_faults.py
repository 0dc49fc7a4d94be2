"""Numbers that are not finite, and masks that die, in TRL's loop. The faults are put in by masks and hooks."""

import pytest
import torch
import trl_runs
from host_runs import difference_of_weights

from sparsepo_plugin import MASKS, SparsePOError, TokenMask


@pytest.fixture(autouse=True)
def broken(monkeypatch):
    """The mask `broken`, whose weights are infinite from the step `at` on for `steps` steps."""
    MASKS.names()  # which loads our own
    monkeypatch.setattr(MASKS, "_classes", dict(MASKS._classes))

    @MASKS.register("broken")
    class Broken(TokenMask):
        def __init__(self, *, at: int = 4, steps: int = 1):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(()))
            self.bad, self.now = range(at, at + steps), False

        def at_step(self, number):
            self.now = number in self.bad

        def forward(self, features, tokens):
            weights = self.weight.abs().expand(len(tokens))
            return weights * float("inf") if self.now and torch.is_grad_enabled() else weights

    return Broken


def broken_run(**options):
    return {"loss_options": {**dict.fromkeys(trl_runs.BASE["loss_options"]), "mask": "broken", **options}}


def weights(trainer) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in trainer.model.parameters()]).clone()


def test_a_loss_that_is_not_finite_updates_nothing(make, tmp_path):
    trainer = make(**broken_run(), save_strategy="steps", save_steps=3)
    seen = {}
    trainer.optimizer = None
    create = trainer.create_optimizer

    def watched(model=None):
        optimizer = create(model)
        optimizer.register_step_post_hook(lambda *_: seen.update(weights=weights(trainer)))
        return optimizer

    trainer.create_optimizer = watched
    with pytest.raises(SparsePOError, match=r"not finite at step 4: weights of reward mask 'broken', pairs \[0, 1, 2"):
        trainer.train()
    assert torch.equal(weights(trainer), seen["weights"]) and weights(trainer).isfinite().all()
    assert trainer.state.global_step == 3


@pytest.mark.parametrize("accumulated", [1, 2])
def test_a_skipped_step_changes_nothing(accumulated, tiny, tmp_path):
    """It is left out of updates and of the schedule: the nine others follow each other as if it had not been."""
    steps = {"per_device_train_batch_size": 8 // accumulated, "gradient_accumulation_steps": accumulated}
    run = trl_runs.train(tmp_path / "skips", tiny, **broken_run(on_nonfinite="skip"), **steps, max_steps=10)
    assert run.scalars("skipped_steps") == [0.0] * 3 + [1.0] * 7
    order = [row for row in range(80) if not 24 <= row < 32]
    nine = {**steps, "order": order, "lr_scheduler_type": "constant", "lr_scheduler_kwargs": None, "warmup_steps": 0}
    sparing = trl_runs.train(tmp_path / "nine", tiny, **broken_run(at=100), **nine)
    constant = {**nine, "order": None, "max_steps": 10}
    skipping = trl_runs.train(tmp_path / "ten", tiny, **broken_run(on_nonfinite="skip"), **constant)
    assert difference_of_weights(skipping, sparing) == 0.0


def test_ten_in_a_row_end_a_run_that_skips(make):
    trainer = make(**broken_run(on_nonfinite="skip", at=2, steps=100), num_train_epochs=2)
    with pytest.raises(SparsePOError, match="updates left out in a row: 10"):
        trainer.train()


def test_a_gradient_alone(make):
    """The loss is finite, the gradient of a weight is not: it is named, and nothing is updated."""
    trainer = make()
    name, parameter = next((n, p) for n, p in trainer.model.named_parameters() if "q_proj" in n)
    before = weights(trainer)
    parameter.register_hook(lambda gradient: gradient * float("nan"))
    with pytest.raises(SparsePOError, match=rf"not finite at step 1: gradient of {name} of the policy"):
        trainer.train()
    assert torch.equal(weights(trainer), before)


def test_weights_that_are_not_finite_are_not_saved(make, tmp_path):
    trainer = make()
    next(trainer.masked.masks.parameters()).data.fill_(float("nan"))
    with pytest.raises(SparsePOError, match=r"not finite at step 0: weight \S+ of the masks"):
        trainer.save_model()
    assert not (tmp_path / "out" / "model.safetensors").exists()


def test_evaluation_stops_too(make):
    trainer = make(evaluated=8)
    next(trainer.model.parameters()).data.fill_(float("nan"))
    with pytest.raises(SparsePOError, match="log-probabilities of the policy"):
        trainer.evaluate()


def test_a_mask_that_stays_dead(make, tiny):
    """Its one bias is far below zero; `stop` ends the run after ten such steps."""
    dead = {"mask": "learned", "shared": True, "on_dead_mask": "stop", "mask_lr": 1e-6}
    trainer = make(loss_options=dead, num_train_epochs=2)
    for parameter in trainer.masked.masks.parameters():
        parameter.data.fill_(-1.0)
    with pytest.raises(
        SparsePOError, match="the last of 10 in a row: the reward mask is zero on every response token"
    ):
        trainer.train()
    assert trainer.state.global_step == 9
