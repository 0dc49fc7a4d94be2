"""OpenRLHF's batch of pairs as the inputs of its Actor and the index of its response tokens."""

from typing import Any

import torch.distributed as dist
from torch import Tensor

from ...layout import Batch
from ...tokens import ResponseTokens


def layout(trainer: Any, batch: tuple) -> tuple[dict[str, Any], ResponseTokens, Batch | None]:
    """What the Actor is called with, where the response tokens lie in what its model then sees, and the batch itself.

    Under ring attention no process has a sequence to itself, and there is no batch that could be laid out otherwise.

    Args:
        trainer: The DPOTrainer.
        batch: chosen_ids, c_mask, reject_ids, r_mask and prompt_id_lens, on the device.
    """
    input_ids, attention_mask, prompt_lens = trainer.concatenated_inputs(*batch)
    group = trainer.strategy.ring_attn_group
    inputs = {
        "sequences": input_ids,
        "attention_mask": attention_mask,
        "return_output": True,
        "ring_attn_group": group,
    }
    if not trainer.packing_samples:
        tokens = ResponseTokens.from_padded(input_ids, attention_mask, prompt_lens)
        return inputs, tokens, Batch(input_ids, attention_mask)
    tokens = _packed(input_ids, attention_mask, prompt_lens, group)
    return inputs, tokens, Batch(input_ids, attention_mask, packed=True) if group is None else None


def _packed(
    input_ids: Tensor, attention_mask: Tensor, prompt_lens: list[int], group: dist.ProcessGroup | None
) -> ResponseTokens:
    """Index of the row that the Actor packs a batch into, or of this process' share of it under ring attention."""
    packed = input_ids[attention_mask.bool()]
    tokens = ResponseTokens.from_packed(packed, attention_mask.sum(-1), prompt_lens)
    if group is None:
        return tokens
    share = -(-len(packed) // dist.get_world_size(group))
    start = dist.get_rank(group) * share
    return tokens.shard(start, start + share, group)
