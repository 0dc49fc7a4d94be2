"""What a step reports besides its loss."""

import torch
from torch import Tensor

from .divergence import Expectation, TokenStatistics
from .tokens import MaskPair, ResponseTokens


@torch.no_grad()
def token_metrics(
    stats: TokenStatistics, masks: MaskPair, tokens: ResponseTokens, expectation: Expectation = "reference"
) -> dict[str, Tensor]:
    """Sparsity of the masks and token KL, for chosen and rejected responses.

    Args:
        stats: Statistics of the N response tokens.
        masks: Their two weights.
        tokens: Their index.
        expectation: What `stats.expected_log_ratio` was averaged under; decides the sign that makes it a KL.

    Returns:
        Scalars. `sparsity_*`: share of exact zeros, percent. `mask_*_mean`: mean weight. `token_kl_*`: nats a token
        before masking, `masked_kl_*` after. `*_margin`: mean over pairs of |sequence KL of chosen − of rejected|.
    """
    kl = -stats.expected_log_ratio if expectation == "reference" else stats.expected_log_ratio
    columns = {
        "sparsity_reward": 100.0 * (masks.reward == 0),
        "sparsity_kl": 100.0 * (masks.kl == 0),
        "mask_reward_mean": masks.reward,
        "mask_kl_mean": masks.kl,
        "token_kl": kl,
        "masked_kl": masks.kl * kl,
    }
    # One reduction for all columns: under ring attention each one is a round of communication.
    sums = tokens.sum(torch.stack([column.float() for column in columns.values()]))
    counts = tokens.count()
    metrics = {}
    for half, part in (("chosen", slice(None, tokens.num_pairs)), ("rejected", slice(tokens.num_pairs, None))):
        means = sums[:, part].sum(1) / counts[part].sum().clamp(min=1)
        metrics.update({f"{name}_{half}": mean for name, mean in zip(columns, means, strict=True)})
    margins = (sums[:, : tokens.num_pairs] - sums[:, tokens.num_pairs :]).abs().mean(1)
    return {**metrics, "token_kl_margin": margins[-2], "masked_kl_margin": margins[-1]}
