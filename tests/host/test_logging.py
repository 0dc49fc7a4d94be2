"""What a user sees of a run: numbers in tensorboard beside the host's own."""

import math

OURS = {
    *(f"{name}_{side}" for name in ("sparsity_reward", "sparsity_kl", "mask_reward_mean", "mask_kl_mean")
      for side in ("chosen", "rejected")),
    *(f"{name}_{side}" for name in ("token_kl", "masked_kl") for side in ("chosen", "rejected")),
    *("token_kl_margin", "masked_kl_margin", "l1_reward", "l1_kl", "effective_beta"),
}  # fmt: skip
HOST = {"loss", "acc", "chosen_reward", "reject_reward", "lr", "grad_norm", "loss_mean", "acc_mean"}


def test_every_metric_is_logged_at_every_step(train):
    run = train()
    for name in OURS | HOST:
        values = run.scalars(f"train/{name}")
        assert len(values) == 10 and all(map(math.isfinite, values)), name
    # Before the first step the policy is the reference.
    assert abs(run.scalars("train/token_kl_chosen")[0]) < 1e-5
    assert run.scalars("train/token_kl_chosen")[-1] > 1e-4
    assert run.scalars("train/mask_reward_mean_chosen")[0] > 0.1


def test_nll_and_label_smoothing_keep_their_meaning(train):
    """Against the host's own DPO with the same flags."""
    flags = {"nll_loss_coef": 0.2, "label_smoothing": 0.1}
    uniform = {
        "mask": "uniform",
        "shared": False,
        "kl": {"value": 0.0},
        **dict.fromkeys(("l1_reward", "l1_kl", "mask_lr", "metrics_every")),
    }
    ours = train(model=flags, sparsepo=uniform)
    host = train(model=flags, loss=None, sparsepo=None)
    assert (ours.losses - host.losses).abs().max() < 1e-5
    for name in ("train/nll_loss", "train/grad_norm", "train/chosen_reward"):
        pairs = zip(ours.scalars(name), host.scalars(name), strict=True)
        assert max(abs(one - other) for one, other in pairs) < 1e-4, name
