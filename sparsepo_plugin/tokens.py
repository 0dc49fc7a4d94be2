"""Which hidden states predict response tokens: a flat, ragged index over a batch, padded or packed alike."""

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.nn.functional import all_reduce

from .errors import SparsePOError


class MaskPair(NamedTuple):
    """The two weights of each token: its masked advantage is m_u·r − m_d·e (paper Eq. 7 and 8).

    Attributes:
        reward: m_u, weight of each token's log-ratio. float [N].
        kl: m_d, weight of each token's expected log-ratio. float [N].
    """

    reward: Tensor
    kl: Tensor


@dataclass(frozen=True)
class ResponseTokens:
    """The N response tokens of a batch of P pairs (S = 2P sequences, chosen 0…P-1, rejected P…2P-1).

    Attributes:
        labels: The token that was written. int64 [N].
        rows: Row of the flattened hidden states that predicts it, one position before the token. int64 [N].
        sequence: Index of its sequence, ascending. int64 [N].
        position: Place inside its response, from 0. int64 [N].
        num_pairs: P.
        group: Ring-attention group over which the sequences are sharded; per-sequence reductions cross it.
        context: A fingerprint of all that comes before the token, prompt included, the same however the batch lies;
            None in an index made by hand. int64 [N].
        weights: What the data say each token weighs, where a mask reads it. float32 [N], or None.
    """

    labels: Tensor
    rows: Tensor
    sequence: Tensor
    position: Tensor
    num_pairs: int
    group: dist.ProcessGroup | None = None
    context: Tensor | None = None
    weights: Tensor | None = None

    @classmethod
    def from_mask(
        cls, input_ids: Tensor, response_mask: Tensor, attention_mask: Tensor | None = None
    ) -> "ResponseTokens":
        """Index a batch whose response tokens are marked; `rows` count into the hidden states flattened to [S·T, d].

        Args:
            input_ids: int64 [S, T], padded anywhere.
            response_mask: [S, T], 1 on response tokens. A row's first token is none: nothing predicts it.
            attention_mask: [S, T], 1 on real tokens. Without it nobody knows which of the other tokens are padding,
                and `context` is of response tokens alone.

        Raises:
            SparsePOError: S is odd or the shapes disagree.
        """
        _check_shapes(input_ids, response_mask, "response_mask")
        response = response_mask.bool().clone()
        response[:, :1] = False
        if attention_mask is None:
            return cls._from_marked(input_ids, response, response)
        _check_shapes(input_ids, attention_mask, "attention_mask")
        real = attention_mask.bool()
        return cls._from_marked(input_ids, response & (real.cumsum(-1) > 1), real)

    @classmethod
    def from_padded(cls, input_ids: Tensor, attention_mask: Tensor, prompt_lens: Tensor) -> "ResponseTokens":
        """Index a padded batch; `rows` count into the hidden states flattened to [S·T, d].

        Args:
            input_ids: int64 [S, T], padded on either side.
            attention_mask: [S, T], 1 on real tokens.
            prompt_lens: Prompt tokens of each sequence, [S] or a list.

        Raises:
            SparsePOError: S is odd or the shapes disagree.

        Examples:
            A pair, chosen first, after a prompt of one token:

            >>> ids = torch.tensor([[5, 6, 7, 0], [5, 8, 9, 9]])
            >>> tokens = ResponseTokens.from_padded(ids, attention_mask=(ids > 0).long(), prompt_lens=[1, 1])
            >>> tokens.labels.tolist(), tokens.position.tolist()
            ([6, 7, 8, 9, 9], [0, 1, 0, 1, 2])
            >>> tokens.rows.tolist()
            [0, 1, 4, 5, 6]
            >>> tokens.sum(torch.ones(5)).tolist()
            [2.0, 3.0]
        """
        _check_shapes(input_ids, attention_mask, "attention_mask")
        prompt_lens = _prompt_lens(prompt_lens, input_ids)
        # The first token of a sequence has no predicting row, also when its prompt is empty.
        real, place = attention_mask.bool(), attention_mask.long().cumsum(-1) - 1
        return cls._from_marked(input_ids, real & (place >= prompt_lens.clamp(min=1)[:, None]), real)

    @classmethod
    def _from_marked(cls, input_ids: Tensor, response: Tensor, real: Tensor) -> "ResponseTokens":
        """Index the `response` tokens of a batch, in which they are preceded by the `real` ones; bool [S, T] both."""
        sequence, column = response.nonzero(as_tuple=True)
        place = (real.cumsum(-1) - 1)[real]
        return cls(
            labels=input_ids[sequence, column],
            rows=sequence * input_ids.shape[1] + column - 1,
            sequence=sequence,
            position=(response.cumsum(-1) - 1)[sequence, column],
            num_pairs=len(input_ids) // 2,
            context=_contexts(input_ids[real], place)[response[real]],
        )

    @classmethod
    def from_packed(cls, input_ids: Tensor, sequence_lens: Tensor, prompt_lens: Tensor) -> "ResponseTokens":
        """Index one flat packed row, the S sequences laid end to end; `rows` count into its hidden states [T, d].

        Args:
            input_ids: int64 [T] or [1, T]; what follows the last sequence is padding.
            sequence_lens: Tokens of each sequence, [S] or a list.
            prompt_lens: Prompt tokens of each sequence, [S] or a list.

        Raises:
            SparsePOError: S is odd, or the sequences are longer than the row.
        """
        flat = input_ids.reshape(-1)
        lens = torch.as_tensor(sequence_lens, device=flat.device)
        prompt_lens = _prompt_lens(prompt_lens, lens)
        total = int(lens.sum())
        if total > len(flat):
            raise SparsePOError(f"sequence_lens add up to {total}, the packed row has {len(flat)} tokens")
        sequence = torch.arange(len(lens), device=flat.device).repeat_interleave(lens)
        place = torch.arange(total, device=flat.device) - (lens.cumsum(0) - lens)[sequence]
        position = place - prompt_lens.clamp(min=1)[sequence]
        index = (position >= 0).nonzero().squeeze(-1)
        return cls(
            labels=flat[index],
            rows=index - 1,
            sequence=sequence[index],
            position=position[index],
            num_pairs=len(lens) // 2,
            context=_contexts(flat[:total], place)[index],
        )

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def num_sequences(self) -> int:
        """S = 2P."""
        return 2 * self.num_pairs

    @property
    def chosen(self) -> Tensor:
        """True on the tokens of chosen responses. bool [N]."""
        return self.sequence < self.num_pairs

    def shard(self, start: int, end: int, group: dist.ProcessGroup) -> "ResponseTokens":
        """The tokens whose rows lie in [start, end) of a packed row that `group` shares, rows counted from `start`."""
        here = (self.rows >= start) & (self.rows < end)
        return replace(
            self,
            labels=self.labels[here],
            rows=self.rows[here] - start,
            sequence=self.sequence[here],
            position=self.position[here],
            group=group,
            context=None if self.context is None else self.context[here],
            weights=None if self.weights is None else self.weights[here],
        )

    def weighed(self, weights: list[Tensor]) -> "ResponseTokens":
        """The same tokens with weights that come with the data.

        Args:
            weights: Of the response tokens of each of the S sequences, chosen first, on any device.

        Raises:
            SparsePOError: a sequence has not as many weights as tokens.
        """
        counts, given = self.sequence.bincount(minlength=self.num_sequences).tolist(), [len(own) for own in weights]
        if given != counts:
            raise SparsePOError(f"responses of {counts} tokens have {given} weights")
        return replace(self, weights=torch.cat(weights).to(self.labels.device, torch.float32))

    def sum(self, values: Tensor) -> Tensor:
        """Per-sequence sum, differentiable, over the ring-attention group if there is one. [..., N] -> [..., S]."""
        total = values.new_zeros(*values.shape[:-1], self.num_sequences).index_add(-1, self.sequence, values)
        # The backward of this all_reduce sums over the group too, which DeepSpeed's mean over all ranks divides out.
        return total if self.group is None else all_reduce(total, group=self.group)

    def count(self) -> Tensor:
        """Response tokens of each sequence. float32 [S]."""
        return self.sum(torch.ones(len(self), device=self.labels.device))

    def mean(self, values: Tensor) -> Tensor:
        """Per-sequence mean, 0 for a sequence without response tokens. [..., N] -> [..., S]."""
        return self.sum(values) / self.count().clamp(min=1).to(values.dtype)

    def extremes(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Per-sequence minimum and maximum, without gradient; ±inf where there are no tokens. [..., N] -> [..., S]."""
        values, sequence = values.detach(), self.sequence.expand_as(values)
        low = values.new_full((*values.shape[:-1], self.num_sequences), torch.inf)
        high = (-low).scatter_reduce(-1, sequence, values, "amax")
        low = low.scatter_reduce(-1, sequence, values, "amin")
        if self.group is not None:
            dist.all_reduce(low, op=dist.ReduceOp.MIN, group=self.group)
            dist.all_reduce(high, op=dist.ReduceOp.MAX, group=self.group)
        return low, high

    def refuse_shards(self, what: str) -> None:
        """Refuse sequences of which no process has the whole.

        Args:
            what: What is done with whole responses, for the error.

        Raises:
            SparsePOError: under ring attention.
        """
        if self.group is not None:
            raise SparsePOError(f"{what}, which must not be sharded over processes", about="sharded sequences")

    def rank(self, values: Tensor) -> Tensor:
        """Place of each token in its response by rising value, from 0; of equal ones the earlier first. int64 [N].

        Raises:
            SparsePOError: under ring attention, where no process sees a whole response.
        """
        self.refuse_shards("the tokens of whole responses are ranked")
        # Sorted by value, then by sequence; both sorts are stable.
        order = values.argsort(stable=True)
        order = order[self.sequence[order].argsort(stable=True)]
        counts = self.count().long()
        place = torch.arange(len(self), device=order.device) - (counts.cumsum(0) - counts)[self.sequence]
        return torch.empty_like(order).scatter_(0, order, place)


def scramble(values: Tensor) -> Tensor:
    """A pseudo-random number below 2³² for each integer, the same on any device. int64."""
    for factor in (0x7FEB352D, 0x846CA68B):
        values = values & 0xFFFFFFFF
        values = (values ^ (values >> 16)) * factor
    values = values & 0xFFFFFFFF
    return values ^ (values >> 15)


def _contexts(input_ids: Tensor, place: Tensor) -> Tensor:
    """Fingerprint of what comes before each token in its sequence, of sequences laid end to end. int64 [T].

    Args:
        input_ids: [T].
        place: Where in its sequence each token stands, from 0. [T].
    """
    terms = scramble(scramble(input_ids) + place)
    before = terms.cumsum(0) - terms
    return before - before[torch.arange(len(place), device=place.device) - place]


def _check_shapes(input_ids: Tensor, mask: Tensor, name: str) -> None:
    if mask.shape != input_ids.shape or input_ids.dim() != 2 or len(input_ids) % 2:
        raise SparsePOError(
            f"input_ids {tuple(input_ids.shape)} and {name} {tuple(mask.shape)} must agree, "
            "and an even number is needed of their rows, chosen first"
        )


def _prompt_lens(prompt_lens: Tensor, sequences: Tensor) -> Tensor:
    """Prompt lengths as a tensor beside `sequences`, after checking that there is one for each of 2P sequences."""
    prompt_lens = torch.as_tensor(prompt_lens, device=sequences.device)
    if len(sequences) % 2 or prompt_lens.shape != (len(sequences),):
        raise SparsePOError(
            f"{len(sequences)} sequences with {tuple(prompt_lens.shape)} prompt_lens: "
            "an even number is needed, chosen first, and one prompt length for each"
        )
    return prompt_lens
