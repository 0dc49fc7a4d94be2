"""The learned sparse mask of the paper (§2.3)."""

from collections.abc import Callable
from typing import Annotated, Literal

import torch
from pydantic import Field, NonNegativeFloat, PositiveFloat
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..errors import SparsePOError, shown
from ..reference import ReferenceFeatures
from ..registry import MASKS
from ..tokens import ResponseTokens
from .base import TokenMask

_INNER_WIDTH = 200  # of the release; the paper does not say


@MASKS.register("learned")
class LearnedMask(TokenMask):
    """Learned from the reference's hidden states, sparse through its ReLU (paper §2.3, SparsePO).

    Per layer m^(l) = ReLU(H^(l)·w^(l) + b^(l)); several layers are merged as m = ReLU(Σ_l w_o^(l)·m^(l)).
    The paper says no more; what the authors' release does beyond it are options.

    Args:
        hidden_size: d.
        num_layers: L.
        layers: Layers to read: `all`, `last`, or a list counted from 0 (negative from the end).
        depth: Feed-forward layers of each mask (paper Table 7): with 2 the release's H·W + c of width 200, without an
            activation, stands in place of H.
        layer_norm: Normalise hidden states first: `affine` with a weight and bias that all layers share, as the
            release does where more than the last layer is read; the paper's equation has `false`.
        activation: `relu`, or `binary`: 1 where positive, with a straight-through gradient (paper Table 9).
        dropout: On hidden states, in training.
        min: Floor ε of the mask.
        max: Cap of the mask.
        init: `positive` (bias 0.5, small w, w_o = 1/L) starts without zeros; `normal`, weights N(0, 0.02²) and no
            bias, is the release's and starts sparse; `linear` is nn.Linear's own. The last two may start dead.

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
        layer_norm: bool | Literal["affine"] = True,
        activation: Literal["relu", "binary"] = "relu",
        dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0,
        min: NonNegativeFloat = 0.0,
        max: PositiveFloat | None = None,
        init: Literal["positive", "linear", "normal"] = "positive",
    ) -> None:
        super().__init__()
        if max is not None and min >= max:
            raise SparsePOError(f"min: {min} must be below max: {max}")
        self.hidden_layers = _layer_indices(layers, num_layers)
        self.needs = frozenset({"last_hidden" if self.hidden_layers == (num_layers - 1,) else "hidden_states"})
        self.normalises, self.binary, self.min, self.max = bool(layer_norm), activation == "binary", min, max
        self.zeros_have_gradient = self.binary
        self.dropout = nn.Dropout(dropout)
        count, width = len(self.hidden_layers), hidden_size if depth == 1 else _INNER_WIDTH
        affine = layer_norm == "affine"
        self.norm_weight = nn.Parameter(torch.ones(hidden_size)) if affine else None
        self.norm_bias = nn.Parameter(torch.zeros(hidden_size)) if affine else None
        self.inner = nn.Parameter(torch.empty(count, hidden_size, width)) if depth == 2 else None
        self.inner_bias = nn.Parameter(torch.empty(count, width)) if depth == 2 else None
        self.weight = nn.Parameter(torch.empty(count, width))
        self.bias = nn.Parameter(torch.empty(count))
        self.merge = nn.Parameter(torch.empty(count)) if count > 1 else None
        self._reset(init, hidden_size)

    def _reset(self, init: str, hidden_size: int) -> None:
        """Start all parameters but the norm's."""
        if init == "normal":
            _draw(nn.init.normal_, self.inner, self.weight, self.merge, std=0.02)
            _draw(nn.init.zeros_, self.inner_bias, self.bias)
            return
        count, width = self.weight.shape
        _linear(hidden_size, self.inner, self.inner_bias)
        if init == "linear":
            _linear(width, self.weight, self.bias)
            _linear(count, self.merge)
            return
        # A mask that starts near zero may die under L1, and stops the policy with it.
        _draw(nn.init.normal_, self.weight, std=0.1 * width**-0.5)
        _draw(nn.init.constant_, self.bias, val=0.5)
        _draw(nn.init.constant_, self.merge, val=1 / count)

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
        if self.normalises:
            norm = [p if p is None else p.to(hidden.dtype) for p in (self.norm_weight, self.norm_bias)]
            hidden = nn.functional.layer_norm(hidden, hidden.shape[-1:], *norm)
        hidden = self.dropout(hidden)
        if self.inner is not None:
            hidden = hidden @ self.inner[index].to(hidden.dtype) + self.inner_bias[index].to(hidden.dtype)
        return hidden @ self.weight[index].to(hidden.dtype) + self.bias[index].to(hidden.dtype)

    def _bound(self, mask: Tensor) -> Tensor:
        return mask.clamp(min=self.min, max=self.max) if self.min or self.max else mask

    def _activate(self, mask: Tensor) -> Tensor:
        if not self.binary:
            return mask.relu()
        return mask + ((mask > 0).to(mask.dtype) - mask).detach()


def _draw(start: Callable[..., Tensor], *parameters: nn.Parameter | None, **values: float) -> None:
    for parameter in parameters:
        if parameter is not None:
            start(parameter, **values)


def _linear(inputs: int, *parameters: nn.Parameter | None) -> None:
    """As nn.Linear starts its weight and bias."""
    _draw(nn.init.uniform_, *parameters, a=-(inputs**-0.5), b=inputs**-0.5)


def _layer_indices(layers: str | list[int], num_layers: int) -> tuple[int, ...]:
    if isinstance(layers, str):
        return tuple(range(num_layers)) if layers == "all" else (num_layers - 1,)
    if not layers or any(not -num_layers <= layer < num_layers for layer in layers):
        raise SparsePOError(f"layers: {shown(layers)}, allowed are all, last, or a list from 0 to {num_layers - 1}")
    return tuple(sorted({layer % num_layers for layer in layers}))
