"""OpenRLHF's batch of pairs as the inputs of its Actor and the index of its response tokens."""

from typing import Any

import torch.distributed as dist
from torch import Tensor

from ...layout import Batch
from ...tokens import ResponseTokens


def layout(
    trainer: Any, batch: tuple, weights: list[Tensor] | None = None
) -> tuple[dict[str, Any], ResponseTokens, Batch | None]:
    """What the Actor is called with, where the response tokens lie in what its model then sees, and the batch itself.

    Under ring attention no process has a sequence to itself, and there is no batch that could be laid out otherwise.

    Args:
        trainer: The DPOTrainer.
        batch: chosen_ids, c_mask, reject_ids, r_mask and prompt_id_lens, on the device.
        weights: Of the response tokens of each sequence, chosen first, if the data bring them.
    """
    input_ids, attention_mask, prompt_lens = trainer.concatenated_inputs(*batch)
    group = trainer.strategy.ring_attn_group
    inputs = {
        "sequences": input_ids,
        "attention_mask": attention_mask,
        "return_output": True,
        "ring_attn_group": group,
    }
    packed = trainer.packing_samples
    if packed:
        tokens = ResponseTokens.from_packed(input_ids[attention_mask.bool()], attention_mask.sum(-1), prompt_lens)
    else:
        tokens = ResponseTokens.from_padded(input_ids, attention_mask, prompt_lens)
    tokens = tokens if weights is None else tokens.weighed(weights)
    if packed and group is not None:
        return inputs, _shared(tokens, int(attention_mask.sum()), group), None
    return inputs, tokens, Batch(input_ids, attention_mask, packed)


def _shared(tokens: ResponseTokens, length: int, group: dist.ProcessGroup) -> ResponseTokens:
    """This process' share of a packed row under ring attention."""
    share = -(-length // dist.get_world_size(group))
    start = dist.get_rank(group) * share
    return tokens.shard(start, start + share, group)
