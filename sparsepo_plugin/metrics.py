"""What a step reports besides its loss."""

import torch
from torch import Tensor

from .divergence import Expectation, TokenStatistics
from .tokens import MaskPair, ResponseTokens


@torch.no_grad()
def token_metrics(
    stats: TokenStatistics,
    masks: MaskPair | None,
    tokens: ResponseTokens,
    expectation: Expectation | None = "reference",
    full_statistics: bool = True,
    independent: bool = False,
) -> dict[str, Tensor]:
    """Sparsity of the masks and token KL, for chosen and rejected responses, as far as the loss has them.

    Args:
        stats: Statistics of the N response tokens.
        masks: Their two weights, or None.
        tokens: Their index.
        expectation: What `stats.expected_log_ratio` was averaged under; decides the sign that makes it a KL.
        full_statistics: Whether `stats` covers every token; if not, the token KL before masking is left out.
        independent: Whether the KL mask is one of its own, which is reported even where no KL is computed.

    Returns:
        Scalars. `sparsity_*`: share of exact zeros, percent. `mask_*_mean`: mean weight. `token_kl_*`: nats a token
        before masking, `masked_kl_*` after. `*_margin`: mean over pairs of |sequence KL of chosen − of rejected|.
    """
    columns = {}
    has_kl = stats.expected_log_ratio is not None
    if masks is not None:
        columns["sparsity_reward"], columns["mask_reward_mean"] = 100.0 * (masks.reward == 0), masks.reward
        if has_kl or independent:
            columns["sparsity_kl"], columns["mask_kl_mean"] = 100.0 * (masks.kl == 0), masks.kl
    if has_kl:
        kl = -stats.expected_log_ratio if expectation == "reference" else stats.expected_log_ratio
        if full_statistics:
            columns["token_kl"] = kl
        if masks is not None:
            columns["masked_kl"] = masks.kl * kl
    if not columns:
        return {}
    # One reduction for all columns: under ring attention each one is a round of communication.
    sums = tokens.sum(torch.stack([column.float() for column in columns.values()]))
    counts = tokens.count()
    metrics = {}
    for half, part in (("chosen", slice(None, tokens.num_pairs)), ("rejected", slice(tokens.num_pairs, None))):
        means = sums[:, part].sum(1) / counts[part].sum().clamp(min=1)
        metrics.update({f"{name}_{half}": mean for name, mean in zip(columns, means, strict=True)})
    margins = (sums[:, : tokens.num_pairs] - sums[:, tokens.num_pairs :]).abs().mean(1)
    named = zip(columns, margins, strict=True)
    return metrics | {f"{name}_margin": margin for name, margin in named if name in ("token_kl", "masked_kl")}
