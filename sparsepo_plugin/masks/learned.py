"""The learned sparse mask of the paper (§2.3)."""

from typing import Annotated, Literal

import torch
from pydantic import Field, NonNegativeFloat, PositiveFloat
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..errors import SparsePOError
from ..reference import ReferenceFeatures
from ..registry import MASKS
from ..tokens import ResponseTokens
from .base import TokenMask


@MASKS.register("learned")
class LearnedMask(TokenMask):
    """Learned from the reference's hidden states, sparse through its ReLU (paper §2.3, SparsePO).

    Per layer m^(l) = ReLU(H^(l)·w^(l) + b^(l)); several layers are merged as m = ReLU(Σ_l w_o^(l)·m^(l)).

    Args:
        hidden_size: d.
        num_layers: L.
        layers: Layers to read: `all`, `last`, or a list counted from 0 (negative from the end).
        depth: Feed-forward layers of each mask: 2 puts ReLU(H·W) of width d before w (paper Table 7).
        layer_norm: Normalise hidden states first, as the authors' code does; the paper's equation does not.
        activation: `relu`, or `binary`: 1 where positive, with a straight-through gradient (paper Table 9).
        dropout: On hidden states, in training.
        min: Floor ε of the mask.
        max: Cap of the mask.
        init: `positive` (bias 0.5, small w, w_o = 1/L) starts alive; `linear`, nn.Linear's own, may start dead.

    Raises:
        SparsePOError: a layer that the model does not have, or min not below max.
    """

    needs = frozenset({"hidden_states", "last_hidden"})
    converts_features = True  # a layer at a time: all of them in float32 would be twice their size

    def __init__(
        self,
        hidden_size: int,
        num_layers: int,
        *,
        layers: Literal["all", "last"] | list[int] = "all",
        depth: Literal[1, 2] = 1,
        layer_norm: bool = True,
        activation: Literal["relu", "binary"] = "relu",
        dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0,
        min: NonNegativeFloat = 0.0,
        max: PositiveFloat | None = None,
        init: Literal["positive", "linear"] = "positive",
    ) -> None:
        super().__init__()
        if max is not None and min >= max:
            raise SparsePOError(f"min: {min} must be below max: {max}")
        self.hidden_layers = _layer_indices(layers, num_layers)
        self.needs = frozenset({"last_hidden" if self.hidden_layers == (num_layers - 1,) else "hidden_states"})
        self.layer_norm, self.binary, self.min, self.max = layer_norm, activation == "binary", min, max
        self.zeros_have_gradient = self.binary
        self.dropout = nn.Dropout(dropout)
        count = len(self.hidden_layers)
        self.inner = nn.Parameter(torch.empty(count, hidden_size, hidden_size)) if depth == 2 else None
        self.weight = nn.Parameter(torch.empty(count, hidden_size))
        self.bias = nn.Parameter(torch.empty(count))
        self.merge = nn.Parameter(torch.empty(count)) if count > 1 else None
        self._reset(init)

    def _reset(self, init: str) -> None:
        """A mask that starts near zero dies under L1 and stops the policy with it; hence the positive start."""
        count, width = self.weight.shape
        bound = width**-0.5
        if self.inner is not None:
            nn.init.uniform_(self.inner, -bound, bound)
        if init == "linear":
            nn.init.uniform_(self.weight, -bound, bound)
            nn.init.uniform_(self.bias, -bound, bound)
        else:
            nn.init.normal_(self.weight, std=0.1 * bound)
            nn.init.constant_(self.bias, 0.5)
        if self.merge is not None:
            if init == "linear":
                nn.init.uniform_(self.merge, -(count**-0.5), count**-0.5)
            else:
                nn.init.constant_(self.merge, 1 / count)

    def forward(self, features: ReferenceFeatures, tokens: ResponseTokens) -> Tensor:
        """Mask of each response token. float32 [N] (float64 for float64 features)."""
        if self.merge is None:
            hidden = features.last_hidden if "last_hidden" in self.needs else features.layer(self.hidden_layers[0])
            return self._bound(self._activate(self._layer_mask(hidden, 0)))
        total = 0
        for index, layer in enumerate(self.hidden_layers):
            # Checkpointed: else every layer's normalised float32 rows would wait for the backward.
            mask = checkpoint(self._layer_mask, features.layer(layer), index, use_reentrant=False)
            total = total + self.merge[index].to(mask.dtype) * mask.relu()
        return self._bound(self._activate(total))

    def _layer_mask(self, hidden: Tensor, index: int) -> Tensor:
        """H·w + b of one layer, before the ReLU. [N, d] -> [N]."""
        hidden = hidden.to(torch.promote_types(hidden.dtype, torch.float32))
        if self.layer_norm:
            hidden = nn.functional.layer_norm(hidden, hidden.shape[-1:])
        hidden = self.dropout(hidden)
        if self.inner is not None:
            hidden = (hidden @ self.inner[index].to(hidden.dtype)).relu()
        return hidden @ self.weight[index].to(hidden.dtype) + self.bias[index].to(hidden.dtype)

    def _bound(self, mask: Tensor) -> Tensor:
        return mask.clamp(min=self.min, max=self.max) if self.min or self.max else mask

    def _activate(self, mask: Tensor) -> Tensor:
        if not self.binary:
            return mask.relu()
        return mask + ((mask > 0).to(mask.dtype) - mask).detach()


def _layer_indices(layers: str | list[int], num_layers: int) -> tuple[int, ...]:
    if isinstance(layers, str):
        return tuple(range(num_layers)) if layers == "all" else (num_layers - 1,)
    if not layers or any(not -num_layers <= layer < num_layers for layer in layers):
        raise SparsePOError(f"layers: {layers}, allowed are all, last, or a list from 0 to {num_layers - 1}")
    return tuple(sorted({layer % num_layers for layer in layers}))
