"""The frozen reference forward, which also yields the rows that masks are computed from."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import count
from typing import Any

import torch
from torch import Tensor, nn

from .divergence import token_statistics
from .errors import SparsePOError
from .head import ResponseHead
from .tokens import ResponseTokens

SITES = ("attention", "feed_forward", "residual")


@dataclass
class ReferenceFeatures:
    """What a mask may read of the reference model; row n belongs to the state that predicts response token n.

    Attributes:
        hidden_states: Output of each decoder layer, the last one after the final norm: what transformers calls
            `hidden_states[1:]`. [L, N, d] in the model's dtype, or None if no mask asked for it. When all masks
            together read some layers only, these alone, in order; `layer` finds them.
        activations: Outputs of the hooked sites, averaged over features. float32 [G, N], or None.
        last_hidden: Input of the vocabulary head. [N, d].
        logps: log π_ref(y_t), if a mask asked for `token_rewards`. float32 [N].
        token_rewards: log π_oracle(y_t) − log π_ref(y_t) of an oracle model, or None. float32 [N].
        hidden_layers: Which layers `hidden_states` holds, counted from 0; None for all.
    """

    hidden_states: Tensor | None = None
    activations: Tensor | None = None
    last_hidden: Tensor | None = None
    logps: Tensor | None = None
    token_rewards: Tensor | None = None
    hidden_layers: tuple[int, ...] | None = None

    def layer(self, index: int) -> Tensor:
        """Hidden states of one decoder layer, counted from 0. [N, d]."""
        return self.hidden_states[index if self.hidden_layers is None else self.hidden_layers.index(index)]


@torch.no_grad()
def collect_features(
    model: nn.Module,
    forward: Callable[[], Any],
    tokens: ResponseTokens,
    needs: frozenset[str] = frozenset(),
    sites: tuple[str, ...] = SITES,
    hidden_layers: tuple[int, ...] | None = None,
    offload: bool = False,
) -> ReferenceFeatures:
    """Run the reference once and keep the rows of response tokens; its vocabulary head never runs.

    Rows are picked inside forward hooks, so no layer's whole-sequence states outlive the layer.

    Args:
        model: The Hugging Face decoder inside, for its layers and its head.
        forward: Runs it, through whatever the host has wrapped around it.
        tokens: Index of the N response tokens.
        needs: What masks ask for; `last_hidden` always comes. `token_rewards` brings `logps` alone, the oracle's
            share is another model's.
        sites: Kinds of site that `activations` covers, one row per kind and layer.
        hidden_layers: Layers that `hidden_states` covers, counted from 0 and in order; None for all.
        offload: Keep `hidden_states` in host memory.

    Raises:
        SparsePOError: the decoder's layers or sites cannot be found, or it has no such layer.
    """
    decoder = decoder_layers(model) if needs & {"hidden_states", "activations"} else []
    read = range(len(decoder)) if hidden_layers is None or "hidden_states" not in needs else hidden_layers
    if any(not 0 <= index < len(decoder) for index in read):
        raise SparsePOError(f"hidden_layers: {tuple(read)}, allowed are 0 to {len(decoder) - 1}")
    activations: list[Tensor] = []
    features = ReferenceFeatures(hidden_layers=hidden_layers)
    rows, place = tokens.rows, count()

    def keep(hidden: Tensor) -> None:
        """Copy one layer's rows to their place; in one allocation, because two of this size might not fit."""
        picked = _pick(hidden, rows)
        if features.hidden_states is None:
            shape, device = (len(read), *picked.shape), "cpu" if offload else picked.device
            features.hidden_states = torch.empty(shape, dtype=picked.dtype, device=device)
        features.hidden_states[next(place)] = picked

    def capture(head: ResponseHead, hidden: Tensor) -> Tensor:
        features.last_hidden = last = _pick(hidden, rows)
        if "hidden_states" in needs and len(decoder) - 1 in read:
            keep(hidden)
        if "token_rewards" in needs:
            own = token_statistics(
                last, head.weight, None, None, tokens.labels, policy_bias=head.bias, expectation=None
            )
            features.logps = own.policy_logps
        return hidden.new_empty(0)

    with ExitStack() as hooks:
        hooks.enter_context(ResponseHead.of(model).serving(capture))
        if "hidden_states" in needs:
            # In place of the last layer's output stands what the head sees, after the final norm.
            inner = [layer for index, layer in enumerate(decoder[:-1]) if index in read]
            hooks.enter_context(_on_output(inner, keep))
        if "activations" in needs:
            modules = activation_sites(decoder, sites)
            average = lambda out: activations.append(_pick(out, rows).float().mean(-1))  # noqa: E731
            hooks.enter_context(_on_output(modules, average))
        forward()
    if "activations" in needs:
        features.activations = torch.stack(activations)
    return features


def decoder_layers(model: nn.Module) -> nn.ModuleList:
    """The layers of any Hugging Face decoder: the outermost list as long as its config says.

    Raises:
        SparsePOError: there is none.
    """
    depth = model.config.get_text_config().num_hidden_layers
    for module in model.modules():
        if isinstance(module, nn.ModuleList) and len(module) == depth:
            return module
    raise SparsePOError(f"{type(model).__name__}: no list of {depth} layers was found to read hidden states from")


def activation_sites(layers: nn.ModuleList, kinds: tuple[str, ...] = SITES) -> list[nn.Module]:
    """Modules whose outputs the activation mask reads (paper §2.3), found without naming architectures.

    `residual` is a layer itself; `attention` and `feed_forward` are the last of its direct children that hold a
    matrix, told apart by whether their name speaks of attention.

    Raises:
        SparsePOError: a layer has nothing of a kind that was asked for.
    """
    sites = []
    for layer in layers:
        children = [(name, child) for name, child in layer.named_children() if _holds_matrix(child)]
        by_kind = {
            "attention": [child for name, child in children if _is_attention(name, child)],
            "feed_forward": [child for name, child in children if not _is_attention(name, child)],
            "residual": [layer],
        }
        for kind in kinds:
            if not by_kind[kind]:
                raise SparsePOError(
                    f"{type(layer).__name__} has no {kind} site among {[name for name, _ in children]}"
                )
            sites.append(by_kind[kind][-1])
    return sites


def _is_attention(name: str, module: nn.Module) -> bool:
    return "att" in name.lower() or "attention" in type(module).__name__.lower()


def _holds_matrix(module: nn.Module) -> bool:
    # Under ZeRO-3 a parameter is an empty stub that remembers its shape.
    return any(len(getattr(p, "ds_shape", p.shape)) > 1 for p in module.parameters())


def _pick(hidden: Tensor, rows: Tensor) -> Tensor:
    return hidden.reshape(-1, hidden.shape[-1])[rows]


@contextmanager
def _on_output(modules: list[nn.Module], use: Callable[[Tensor], None]) -> Iterator[None]:
    """Within the context `use` sees the first output of each module's forward."""

    def hook(module: nn.Module, args: Any, output: Any) -> None:
        use(output[0] if isinstance(output, tuple) else output)

    handles = [module.register_forward_hook(hook) for module in modules]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
