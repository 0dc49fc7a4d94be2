"""What every mask is, and the pair of them that training uses."""

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from ..config import SparsePOConfig
from ..errors import SparsePOError
from ..reference import SITES, ReferenceFeatures
from ..registry import MASKS
from ..tokens import MaskPair, ResponseTokens


class TokenMask(nn.Module):
    """A weight for every response token, read off the reference model's state before that token (paper §2.3).

    A constructor may ask for `hidden_size`, `num_layers` and `seed` by name; its other parameters are the options that
    the YAML may set, checked against their annotations.

    Attributes:
        needs: What of `ReferenceFeatures` the mask reads: any of hidden_states, activations, last_hidden.
        sites: Kinds of site that `activations` should cover.
        hidden_layers: Layers whose `hidden_states` the mask reads, counted from 0; None for all.
        zeros_have_gradient: Whether the mask may get a gradient where it is exactly zero, as with a straight-through
            estimator; where it cannot, such tokens may be left out of the vocabulary projections.
    """

    needs: frozenset[str] = frozenset()
    sites: tuple[str, ...] = SITES
    hidden_layers: tuple[int, ...] | None = None
    zeros_have_gradient: bool = True

    def forward(self, features: ReferenceFeatures, tokens: ResponseTokens) -> Tensor:
        """Weights of the batch's response tokens. float [N], not negative."""
        raise NotImplementedError


class MaskHead(nn.Module):
    """m_u and m_d of a run: one mask for both, or two (paper §2.3, m_u = m_d and m_u ≠ m_d)."""

    def __init__(self, reward: TokenMask, kl: TokenMask | None = None) -> None:
        super().__init__()
        if kl is not None and kl.sites != reward.sites:
            raise SparsePOError(f"sparsepo.kl.sites: {kl.sites} must be those of the reward mask, {reward.sites}")
        self.reward = reward
        self.kl = kl

    @property
    def needs(self) -> frozenset[str]:
        """What the masks read, together."""
        return self.reward.needs | (self.kl.needs if self.kl else frozenset())

    @property
    def reads(self) -> dict[str, Any]:
        """What the masks read, as arguments of `collect_features`."""
        layers = [head.hidden_layers for head in self.children() if "hidden_states" in head.needs]
        both = None if None in layers else tuple(sorted({index for read in layers for index in read}))
        return {"needs": self.needs, "sites": self.reward.sites, "hidden_layers": both}

    @property
    def zeros_have_gradient(self) -> bool:
        """Whether either mask may."""
        return self.reward.zeros_have_gradient or (self.kl is not None and self.kl.zeros_have_gradient)

    def forward(self, features: ReferenceFeatures, tokens: ResponseTokens) -> MaskPair:
        """Both masks, float [N] each."""
        reward = self.reward(features, tokens)
        return MaskPair(reward, self.kl(features, tokens) if self.kl else reward)


def build_masks(config: SparsePOConfig, hidden_size: int, num_layers: int, seed: int) -> MaskHead | None:
    """The masks that a section describes; None for a loss without any.

    Args:
        config: The section.
        hidden_size: d of the reference model.
        num_layers: L of the reference model.
        seed: The host's seed; the second of two independent masks gets the next one.

    Raises:
        SparsePOError: a key would have no effect with these masks.
    """
    if config.mask is None:
        return None
    cls = MASKS.get(config.mask)
    given = {"hidden_size": hidden_size, "num_layers": num_layers, "seed": seed}
    asked = {name: given[name] for name in inspect.signature(cls).parameters if name in given}
    # The start depends on the seed alone, and not on what the host drew before.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        reward = cls(**asked, **{**config.options, **config.reward})
        if "seed" in asked:
            asked["seed"] += 1
        kl = None if config.shared else cls(**asked, **{**config.options, **config.kl})
        head = MaskHead(reward, kl)
    _refuse_idle_keys(config, head, seeded="seed" in asked)
    return head


def _refuse_idle_keys(config: SparsePOConfig, head: MaskHead, seeded: bool) -> None:
    if config.offload_features and "hidden_states" not in head.needs:
        raise SparsePOError(f"sparsepo.offload_features has no effect: mask {config.mask!r} keeps no hidden states")
    if config.metrics_every and head.zeros_have_gradient:
        raise SparsePOError("sparsepo.metrics_every has no effect: tokens of this mask are never left out")
    if any(True for _ in head.parameters()):
        return
    for key in ("l1_reward", "l1_kl", "l1_reduction", "mask_lr", "mask_weight_decay"):
        if key in config.model_fields_set:
            raise SparsePOError(f"sparsepo.{key} has no effect: mask {config.mask!r} has nothing to learn")
    if not config.shared and not seeded and config.reward == config.kl:
        raise SparsePOError(
            f"sparsepo.shared: false has no effect: both masks would be the same {config.mask!r}; "
            "give them different options under sparsepo.reward and sparsepo.kl"
        )
