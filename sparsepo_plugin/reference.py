"""The frozen reference forward, which also yields the rows that masks are computed from."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from itertools import count
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .decoder import SITES, activation_sites, decoder_layers, replaced_forward, vocabulary_head
from .divergence import token_statistics
from .errors import SparsePOError
from .tokens import ResponseTokens


class Runner(NamedTuple):
    """A frozen model, reference or oracle, and how to run it on the batch at hand.

    Attributes:
        model: The Hugging Face decoder, for its layers and its vocabulary head.
        run: Its forward on the batch, through whatever the host has wrapped around it.
    """

    model: nn.Module
    run: Callable[[], Any]


class FeatureRequest(NamedTuple):
    """What masks read of a model.

    Attributes:
        needs: Names of the features, any of hidden_states, activations, last_hidden, logps, oracle_logps, policy_logps
            and policy_hidden.
        sites: Kinds of site that `activations` covers, one row per kind and layer.
        hidden_layers: Layers that `hidden_states` covers, counted from 0 and in order; None for all.
    """

    needs: frozenset[str] = frozenset()
    sites: tuple[str, ...] = SITES
    hidden_layers: tuple[int, ...] | None = None


OF_POLICY = frozenset({"policy_logps", "policy_hidden"})
_LOGPS = FeatureRequest(frozenset({"logps"}))


@dataclass
class ReferenceFeatures:
    """What a mask may read, most of it of the reference; row n belongs to the state that predicts response token n.

    A mask with parameters gets them in the dtype of its parameters, one without as the dtypes say here.

    Attributes:
        hidden_states: Output of each decoder layer, the last one after the final norm: what transformers calls
            `hidden_states[1:]`. [L, N, d] in the model's dtype, or None if no mask asked for it. When all masks
            together read some layers only, these alone, in order, and in host memory if the run offloads them; `layer`
            finds them.
        activations: Outputs of the hooked sites, averaged over features. float32 [G, N], or None.
        last_hidden: Input of the vocabulary head. [N, d] in the model's dtype.
        logps: log π_ref(y_t), or None if no mask asked for it. float32 [N].
        oracle_logps: log π_oracle(y_t) of an oracle model, or None. float32 [N].
        policy_hidden: Input of the vocabulary head of the policy that is trained, without gradient, or None if no mask
            asked for it. [N, d'] in the policy's dtype.
        policy_logps: log π(y_t) of the policy that is trained, without gradient, or None if no mask asked for it.
            float32 [N].
        hidden_layers: Which layers `hidden_states` holds, counted from 0; None for all.
    """

    hidden_states: Tensor | None = None
    activations: Tensor | None = None
    last_hidden: Tensor | None = None
    logps: Tensor | None = None
    oracle_logps: Tensor | None = None
    policy_logps: Tensor | None = None
    policy_hidden: Tensor | None = None
    hidden_layers: tuple[int, ...] | None = None

    def layer(self, index: int) -> Tensor:
        """Hidden states of one decoder layer, counted from 0, on the model's device. [N, d]."""
        rows = self.hidden_states[index if self.hidden_layers is None else self.hidden_layers.index(index)]
        return rows if self.last_hidden is None else rows.to(self.last_hidden.device)

    def tensors(self) -> dict[str, Tensor]:
        """The features that are there, by name."""
        return {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}

    def to(self, dtype: torch.dtype) -> "ReferenceFeatures":
        """The same features in another dtype."""
        return replace(self, **{name: value.to(dtype) for name, value in self.tensors().items()})


def read_frozen(
    tokens: ResponseTokens,
    wanted: FeatureRequest,
    reference: Runner | None = None,
    oracle: Runner | None = None,
    offload: bool = False,
) -> ReferenceFeatures:
    """What masks ask of the frozen models that there are; see `collect_features`."""
    features = ReferenceFeatures() if reference is None else collect_features(reference, tokens, wanted, offload)
    if oracle is not None:
        features.oracle_logps = collect_features(oracle, tokens, _LOGPS).logps
    return features


@torch.no_grad()
def collect_features(
    reference: Runner, tokens: ResponseTokens, wanted: FeatureRequest, offload: bool = False
) -> ReferenceFeatures:
    """Run a frozen model once and keep the rows of response tokens; its vocabulary head never runs.

    Rows are picked inside forward hooks, so no layer's whole-sequence states outlive the layer.

    Args:
        reference: The model and its forward.
        tokens: Index of the N response tokens.
        wanted: What masks ask for; `last_hidden` always comes, `oracle_logps` is another model's `logps`, and
            `policy_logps` and `policy_hidden` are the policy's.
        offload: Keep `hidden_states` in host memory.

    Raises:
        SparsePOError: the decoder's layers or sites cannot be found, or it has no such layer.
    """
    layers = decoder_layers(reference.model) if wanted.needs & {"hidden_states", "activations"} else []
    read = _layers_read(wanted, len(layers))
    activations: list[Tensor] = []
    features = ReferenceFeatures(hidden_layers=wanted.hidden_layers)
    place, head = count(), vocabulary_head(reference.model)

    def keep(hidden: Tensor) -> None:
        """Copy one layer's rows to their place; in one allocation, because two of this size might not fit."""
        picked = _pick(hidden, tokens)
        if features.hidden_states is None:
            shape, device = (len(read), *picked.shape), "cpu" if offload else picked.device
            features.hidden_states = torch.empty(shape, dtype=picked.dtype, device=device)
        features.hidden_states[next(place)] = picked

    def average(output: Tensor) -> None:
        activations.append(_pick(output, tokens).float().mean(-1))

    def capture(hidden: Tensor) -> Tensor:
        features.last_hidden = _pick(hidden, tokens)
        # In place of the last layer's output stands what the head sees, after the final norm.
        if len(layers) - 1 in read:
            keep(hidden)
        if "logps" in wanted.needs:
            features.logps = _logps(head, features.last_hidden, tokens)
        return hidden.new_empty(0)

    with ExitStack() as hooks:
        hooks.enter_context(replaced_forward(head, capture))
        hooks.enter_context(_on_output([layers[index] for index in read if index < len(layers) - 1], keep))
        if "activations" in wanted.needs:
            hooks.enter_context(_on_output(activation_sites(layers, wanted.sites), average))
        reference.run()
    if "activations" in wanted.needs:
        features.activations = torch.stack(activations)
    return features


def _layers_read(wanted: FeatureRequest, depth: int) -> tuple[int, ...]:
    """Layers whose hidden states are kept, in order."""
    if "hidden_states" not in wanted.needs:
        return ()
    read = tuple(range(depth)) if wanted.hidden_layers is None else wanted.hidden_layers
    if any(not 0 <= index < depth for index in read):
        raise SparsePOError(f"hidden_layers: {read}, allowed are 0 to {depth - 1}")
    return read


def _logps(head: nn.Linear, hidden: Tensor, tokens: ResponseTokens) -> Tensor:
    """Log-probabilities of the response tokens. float32 [N]."""
    own = token_statistics(hidden, head.weight, None, None, tokens.labels, policy_bias=head.bias, expectation=None)
    return own.policy_logps


def _pick(hidden: Tensor, tokens: ResponseTokens) -> Tensor:
    return hidden.reshape(-1, hidden.shape[-1])[tokens.rows]


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
