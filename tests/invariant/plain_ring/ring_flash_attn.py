"""A stand-in for the package of this name, whose kernels need CUDA: the same attention over a ring, written plainly.

Each process holds a slice of one packed row. It gathers the keys and values of all slices and lets its own queries
attend to those of their sequence that come before them; in the backward, a slice gets the gradients of all processes.
"""

import torch
import torch.distributed as dist
from torch.distributed.nn.functional import all_reduce
from transformers import PreTrainedModel
from transformers.integrations.sdpa_attention import repeat_kv
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

_bounds = None  # of the row's sequences, from 0 to the padded length


def substitute_hf_flash_attn(group, heads_k_stride):
    """Have transformers compute flash attention by `attend`, and not look for the kernels."""

    def attend(module, query, key, value, attention_mask, scaling=None, **kwargs):
        """Query, key and value are [1, heads, share, d]; the result is [1, share, heads, d]."""
        rank, share = dist.get_rank(group), query.shape[2]
        key, value = (_gather(repeat_kv(part, module.num_key_value_groups), group) for part in (key, value))
        place = torch.arange(key.shape[2])
        sequence = torch.bucketize(place, _bounds, right=True)
        own = slice(rank * share, (rank + 1) * share)
        seen = (sequence[own, None] == sequence) & (place[own, None] >= place)
        scores = (query @ key.transpose(2, 3) * scaling).masked_fill(~seen, -torch.inf)
        return (scores.softmax(-1) @ value).transpose(1, 2).contiguous(), None

    ALL_ATTENTION_FUNCTIONS["flash_attention_2"] = attend
    PreTrainedModel._check_and_adjust_attn_implementation = lambda self, implementation, *_, **__: implementation


def update_ring_flash_attn_params(cu_seqlens, group):
    """The bounds of the sequences in the row that comes next."""
    global _bounds
    _bounds = cu_seqlens.long()


def _gather(part, group):
    """All slices end to end, [1, heads, row, d]."""
    slices = part.new_zeros(dist.get_world_size(group), *part.shape)
    slices[dist.get_rank(group)] = part
    return torch.cat(list(all_reduce(slices, group=group)), dim=2)
