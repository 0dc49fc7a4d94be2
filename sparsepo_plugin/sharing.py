"""Whether a run's models may run once over what the sequences of a pair have in common: asked on real batches.

No list of architectures can say it. So the first batch is run padded and as it would be shared, and the hidden rows
that reach the vocabulary heads are compared; again when a batch is the first to pass a window of the model's. A host
that packs without flash-attention has its packed rows judged in the same way.
"""

import inspect
import sys
from collections.abc import Callable
from contextlib import ExitStack
from enum import Enum

import torch
import torch.distributed as dist
from torch import Tensor, nn

from .decoder import decoder_layers, draws, vocabulary_head
from .errors import SparsePOError, first_line
from .layout import ATTENTION, Batch, Layout, packed, padded
from .policy import MaskedPolicy, evaluating
from .tokens import ResponseTokens

# Largest distance of a hidden row from the plain one, relative to its length. Other kernels and shapes make 4e-7 in
# float32 and 1e-2 in 16 bits; a token that sees what it must not, or does not see what it must, 0.2.
_TOLERANCE, _TOLERANCE_16_BIT = 1e-3, 5e-2


class Road(Enum):
    """How a batch may be run."""

    SHARED = "packed, with what a pair begins with once"
    PACKED = "packed, with attention sequence by sequence"
    OWN = "as the host lays it out"


class Sharing:
    """The layout of each batch of a run.

    Args:
        policy: Of the run; its section says whether to share.
    """

    def __init__(self, policy: MaskedPolicy) -> None:
        self.policy = policy
        self.wanted = policy.loss_config.share_prefix
        self.key = f"{policy.loss_config.section}.share_prefix"
        self._roads: list[Road] = []
        self._trusted = False  # the host's own layout, if that is what is left
        self._told = False
        # The longest sequence with which the first of the roads has passed, by whether something was shared.
        self._passed = {False: 0, True: 0}

    def choose(
        self, batch: Batch | None, models: list[nn.Module], run: Callable[[Layout | None], ResponseTokens]
    ) -> Layout | None:
        """The layout of a batch; None is the host's own.

        Args:
            batch: The pairs; None where the host shares its sequences over processes.
            models: The Hugging Face models of the step, the policy last.
            run: Runs all of them in a layout, and returns the response tokens as they lie in it.

        Raises:
            SparsePOError: the section asks for what the models do not allow, or the host's packing would mix
                sequences.
        """
        if batch is None:
            if self.wanted is True:
                raise self._refusal("sequences are shared over processes")
            return None
        if not self._roads:
            self._find_roads(batch, models)
        while self._roads[0] is not Road.OWN or not self._trusted:
            road = self._roads[0]
            layout = None if road is Road.OWN else packed(batch, share=road is Road.SHARED)
            reason = self._fault(layout, batch, models, run)
            if reason is None:
                return layout if layout is not None and (batch.packed or layout.shares) else None
            self._give_up(reason, models)
        return None

    def _find_roads(self, batch: Batch, models: list[nn.Module]) -> None:
        """All roads that there may be, the best first."""
        kinds = {model.config.get_text_config()._attn_implementation for model in models}
        self._roads = [Road.OWN]
        self._trusted = not batch.packed or not kinds & {"sdpa", "eager"}
        if not self._trusted and kinds == {"sdpa"}:
            self._roads.insert(0, Road.PACKED)
        if self.wanted is not False:
            self._roads.insert(0, Road.SHARED)
            if reason := self._known_fault(models):
                self._give_up(reason, models)

    def _known_fault(self, models: list[nn.Module]) -> str | None:
        """What forbids sharing whatever the batch."""
        if not self.policy.loss_config.disable_dropout or draws(self.policy.policy):
            return "the policy trains with dropout or jitter, which would be drawn once for both sequences"
        for model in models:
            config = model.config.get_text_config()
            kind, attention = config.model_type, config._attn_implementation
            if attention not in ATTENTION:
                return f"the attention of {kind} is {attention}, needed is {' or '.join(ATTENTION)}"
            if "chunked_attention" in (getattr(config, "layer_types", None) or ()):
                return f"{kind} has chunked attention"
            bare = model.get_base_model() if hasattr(model, "get_base_model") else model
            parameters = inspect.signature(type(bare).forward).parameters.values()
            if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
                return f"{kind} hands on no keywords to its attention"
        return None

    def _fault(self, layout: Layout | None, batch: Batch, models: list[nn.Module], run: Callable) -> str | None:
        """Why the first road cannot be taken with this batch, on any rank; None if it can."""
        if not self._pending(models):
            return None
        longest, shares = _greatest(
            batch.input_ids.device, batch.attention_mask.sum(-1).max().item(), layout is not None and layout.shares
        )
        passed = self._passed[bool(shares)]
        # Every rank takes part or none does: a forward may need all of them.
        due = not passed or any(passed < window <= longest for window in _windows(models))
        if not due or not (shares or batch.packed):
            return None
        reason = self._difference(layout, batch, models, run)
        (failed,) = _greatest(batch.input_ids.device, reason is not None)
        if failed:
            return reason or "it differs on another process"
        self._passed[bool(shares)] = int(longest)
        if shares and not self._told:
            self._told = True
            _tell(f"{self.key}: what chosen and rejected begin with is computed once")
        return None

    def _pending(self, models: list[nn.Module]) -> bool:
        """Whether batches to come may have to be looked at; the same on all ranks."""
        passed = self._passed[self._roads[0] is Road.SHARED]
        return not passed or any(window > passed for window in _windows(models))

    # In evaluation mode, which draws nothing and in which masks that count their calls do not.
    @torch.no_grad()
    def _difference(self, layout: Layout | None, batch: Batch, models: list[nn.Module], run: Callable) -> str | None:
        """How the hidden rows of a batch differ from those of its padded sequences, if they do."""
        device = batch.input_ids.device
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), evaluating(self.policy):
            plain = _rows(models, run, padded(batch))
            try:
                rows = _rows(models, run, layout)
            except Exception as error:  # whatever a model makes of it, which the plain batch did not raise
                return f"{models[-1].config.model_type} cannot be run so: {first_line(error)}"
        for model in models if layout is not None else ():
            unread = sum(layout.readers.isdisjoint(layer.modules()) for layer in decoder_layers(model))
            if unread:
                kind = model.config.get_text_config().model_type
                return f"{unread} layers of {kind} have no attention that can be told which tokens it may see"
        for one, other in zip(plain, rows, strict=True):
            if (distance := _distance(one, other)) > (tolerance := _tolerance(one)):
                return f"hidden states differ by {distance:.2g} of their length, at most {tolerance:g} is rounding"
        return None

    def _give_up(self, reason: str, models: list[nn.Module]) -> None:
        """Leave the first road.

        Raises:
            SparsePOError: the section insists on it, or there is no other.
        """
        road = self._roads.pop(0)
        self._passed = {False: 0, True: 0}
        if road is Road.SHARED and self.wanted is True:
            raise self._refusal(reason)
        if road is Road.SHARED:
            _tell(f"{self.key}: prompts are computed twice: {reason}")
        if not self._roads:
            text = models[-1].config.get_text_config()
            raise _met_by_all(
                f"packed with {text._attn_implementation} attention a {text.model_type} model would mix samples "
                f"({reason}): use flash_attention_2, or turn packing off",
                about="packing",
            )

    def _refusal(self, reason: str) -> SparsePOError:
        return _met_by_all(f"{self.key}: true is not possible: {reason}")


def _met_by_all(message: str, about: str | None = None) -> SparsePOError:
    error = SparsePOError(message, about)
    error.met_by_all = True
    return error


def _rows(models: list[nn.Module], run: Callable, layout: Layout | None) -> list[Tensor]:
    """The hidden rows of response tokens that reach the vocabulary heads, in the order in which they do. [N, d]."""
    found: list[Tensor] = []

    def keep(head: nn.Module, args: tuple[Tensor]) -> None:
        hidden, kind = args[0], args[0].device.type
        found.append(hidden.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else hidden)

    with ExitStack() as hooks:
        for head in {vocabulary_head(model) for model in models}:
            hooks.callback(head.register_forward_pre_hook(keep).remove)
        tokens = run(layout)
    return [hidden.flatten(0, -2)[tokens.rows] for hidden in found]


def _distance(plain: Tensor, other: Tensor) -> float:
    """How far a row is from the plain one at most, relative to its length; rows that are not finite say nothing."""
    plain, other = plain.float(), other.float()
    distances = (plain - other).norm(dim=-1) / plain.norm(dim=-1).clamp(min=torch.finfo(torch.float32).tiny)
    distances = distances[plain.isfinite().all(-1)].nan_to_num(nan=torch.inf)
    return distances.max().item() if len(distances) else 0.0


def _tolerance(rows: Tensor) -> float:
    return _TOLERANCE if rows.dtype in (torch.float32, torch.float64) else _TOLERANCE_16_BIT


def _windows(models: list[nn.Module]) -> list[int]:
    """Lengths from which on attention may follow another rule."""
    configs = [model.config.get_text_config().to_dict() for model in models]
    settings = [
        (key, value) for config in configs for key, value in config.items() if "window" in key or "chunk" in key
    ]
    return [value for key, value in settings if isinstance(value, int) and value > 0]


def _greatest(device: torch.device, *values: float) -> list[float]:
    """The greatest of each value on any rank."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return list(values)
    everywhere = torch.tensor(values, dtype=torch.float64, device=device)
    dist.all_reduce(everywhere, op=dist.ReduceOp.MAX)
    return everywhere.tolist()


def _tell(line: str) -> None:
    if not dist.is_initialized() or dist.get_rank() == 0:
        print(line, file=sys.stderr)
