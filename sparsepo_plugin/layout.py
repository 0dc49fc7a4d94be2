"""How a batch of pairs lies in what a model runs over: padded, packed, or packed with each pair's common prefix once.

Laid end to end, the S sequences of a batch have M tokens; `Layout.rows` says for each of them which row of the model's
hidden states is its. Padded, that leaves out padding; packed, it is the identity; with the prefix once, the first
tokens of a rejected sequence are rows of the chosen one, and rows repeat: gathers add up in the backward.

A packed layout travels through the model as the keyword `layout` of its forward, so that checkpoints that compute a
layer again see it, down to the attention functions below, which are registered over transformers' own.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from .tokens import ResponseTokens


class Batch(NamedTuple):
    """P pairs as a host has them, chosen sequences first.

    Attributes:
        input_ids: int64 [2P, T], padded on either side.
        attention_mask: [2P, T], 1 on real tokens.
        packed: Whether the host gives its models one row of the sequences laid end to end, in place of this.
    """

    input_ids: Tensor
    attention_mask: Tensor
    packed: bool = False

    def places(self, rows: Tensor) -> Tensor:
        """Which tokens of the sequences laid end to end lie in rows of what the host gives its models. int64 [N]."""
        return rows if self.packed else (self.attention_mask.flatten().long().cumsum(0) - 1)[rows]


@dataclass(frozen=True, eq=False)
class Layout:
    """What a model is given of a batch, and where in it the M tokens of the sequences laid end to end lie.

    Attributes:
        input_ids: int64 [B, K].
        position_ids: Place of each token in its sequence. int64 [B, K].
        attention_mask: How many of the M tokens lie in a row, 0 for padding: a mixture's balancing loss weighs by it.
            int64 [B, K].
        rows: Row of the hidden states flattened to [B·K, d] for each of the M tokens. int64 [M].
        lens: Tokens of each sequence. Empty where padded, which transformers' own attention understands.
        prefixes: How many of each sequence's first tokens lie in its pair's chosen one; 0 for chosen sequences.
        readers: The attention modules that have read the layout.
    """

    input_ids: Tensor
    position_ids: Tensor
    attention_mask: Tensor
    rows: Tensor
    lens: list[int] = field(default_factory=list)
    prefixes: list[int] = field(default_factory=list)
    readers: set[nn.Module] = field(default_factory=set)

    @property
    def inputs(self) -> dict[str, Any]:
        """Keywords of a Hugging Face decoder's forward."""
        names = ("input_ids", "position_ids", "attention_mask")
        return {name: getattr(self, name) for name in names} | ({"layout": self} if self.lens else {})

    @property
    def shares(self) -> bool:
        """Whether some row is that of two sequences."""
        return any(self.prefixes)

    @cached_property
    def own(self) -> list[int]:
        """How many rows of each sequence lie there as its own, one after the other. [S]."""
        return [length - prefix for length, prefix in zip(self.lens, self.prefixes, strict=True)]

    @cached_property
    def varlen(self) -> dict[str, Any]:
        """Keywords of one varlen call, whose queries are the rows and whose keys are all M tokens."""
        starts = [
            torch.tensor([0, *lens]).cumsum(0).to(self.rows.device, torch.int32) for lens in (self.own, self.lens)
        ]
        return {
            "cu_seq_lens_q": starts[0],
            "cu_seq_lens_k": starts[1],
            "max_length_q": max(self.own),
            "max_length_k": max(self.lens),
        }

    def index(self, tokens: ResponseTokens, batch: Batch) -> ResponseTokens:
        """The same response tokens, whose rows count into what the host lays out, with rows of this layout."""
        return replace(tokens, rows=self.rows[batch.places(tokens.rows)])

    def mask(self, sequence: int, window: int | None) -> Tensor | None:
        """Which keys each of a sequence's own rows sees, the last of both being the same token; None is plain causal.

        Args:
            sequence: Its index.
            window: How many keys a row sees at most, itself among them.

        Returns:
            bool [1, 1, own, length], made once for all layers.
        """
        own, length = self.own[sequence], self.lens[sequence]
        window = window if window and window < length else None
        if window is None and own in (1, length):
            return None
        if (own, length, window) not in self._masks:
            seen = torch.ones(1, 1, own, length, dtype=torch.bool, device=self.rows.device).tril(length - own)
            self._masks[own, length, window] = seen if window is None else seen.triu(length - own - window + 1)
        return self._masks[own, length, window]

    @cached_property
    def _masks(self) -> dict[tuple[int, int, int | None], Tensor]:
        return {}


def padded(batch: Batch) -> Layout:
    """The batch as it is."""
    ids, mask = batch.input_ids, batch.attention_mask.long()
    return Layout(ids, (mask.cumsum(-1) - 1).clamp(min=0), mask, mask.flatten().nonzero().squeeze(-1))


def packed(batch: Batch, share: bool) -> Layout:
    """One row: the chosen sequences, then the rejected ones.

    Args:
        batch: The pairs.
        share: Whether a rejected sequence leaves out what it has in common with the start of its chosen one, prompt or
            not, all but its last token.
    """
    real = batch.attention_mask.bool()
    ends, lens = batch.input_ids[real], real.sum(-1)
    prefixes = torch.zeros_like(lens)
    if share:
        prefixes[len(lens) // 2 :] = _common_prefixes(ends, lens)
    lengths, left_out = torch.stack([lens, prefixes]).tolist()
    sequence = torch.arange(len(lens), device=ends.device).repeat_interleave(lens, output_size=len(ends))
    starts = lens.cumsum(0) - lens
    place = torch.arange(len(ends), device=ends.device) - starts[sequence]
    kept = place >= prefixes[sequence]
    chosen = starts[sequence % (len(lens) // 2)] + place
    rows = torch.where(kept, kept.cumsum(0) - 1, chosen)
    return Layout(
        input_ids=ends[kept][None],
        position_ids=place[kept][None],
        attention_mask=rows.bincount()[None],
        rows=rows,
        lens=lengths,
        prefixes=left_out,
    )


def _common_prefixes(ends: Tensor, lens: Tensor) -> Tensor:
    """Tokens that the sequences of each pair begin with alike, less than either has. int64 [P]."""
    chosen, rejected = pad_sequence(ends.split(lens.tolist()), batch_first=True).chunk(2)
    alike = (chosen == rejected).cumprod(-1).sum(-1)
    return alike.minimum(lens.view(2, -1).amin(0) - 1)


@contextmanager
def laid_out(layout: Layout, models: Iterable[nn.Module]) -> Iterator[None]:
    """Within the context Hugging Face models run over a layout, whatever the host gives them."""
    _register()

    def give(model: nn.Module, args: tuple, inputs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        return (), inputs | layout.inputs

    handles = [model.register_forward_pre_hook(give, with_kwargs=True) for model in models]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _sdpa(
    plain: Callable, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Any, **kwargs: Any
) -> tuple[Tensor, None]:
    """One call a sequence: its own rows see the shared ones before them, and no [ΣT]² mask is needed."""
    layout = kwargs.pop("layout", None)
    if layout is None or kwargs.get("position_bias") is not None:
        return plain(module, query, key, value, mask, **kwargs)
    layout.readers.add(module)
    outputs, window = [], kwargs.get("sliding_window")
    queries, keys, values = (each.split(layout.own, dim=2) for each in (query, key, value))
    for index, prefix in enumerate(layout.prefixes):
        sees = [keys[index], values[index]]
        if prefix:
            shared = (each[index - len(layout.lens) // 2][:, :, :prefix] for each in (keys, values))
            sees = [torch.cat(parts, dim=2) for parts in zip(shared, sees, strict=True)]
        outputs.append(plain(module, queries[index], *sees, layout.mask(index, window), **kwargs)[0])
    return torch.cat(outputs, dim=1), None


def _flash(
    plain: Callable, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Any, **kwargs: Any
) -> tuple[Tensor, None]:
    """One varlen call, which aligns causality to the last of queries and keys."""
    layout = kwargs.pop("layout", None)
    if layout is None:
        return plain(module, query, key, value, mask, **kwargs)
    layout.readers.add(module)
    return plain(module, query, key[:, :, layout.rows], value[:, :, layout.rows], None, **kwargs | layout.varlen)


# Under transformers' own names: it looks for the package of flash-attention by the name of the implementation.
ATTENTION = {"sdpa": _sdpa, "flash_attention_2": _flash}
_registered: dict[str, Callable] = {}


def _register() -> None:
    """Put the functions over those that there are, which run as before where there is no layout."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    for name, function in ATTENTION.items():
        there = ALL_ATTENTION_FUNCTIONS[name]
        if there is not _registered.get(name):
            _registered[name] = partial(function, there)
            ALL_ATTENTION_FUNCTIONS.register(name, _registered[name])
