"""`loss: NAME` for OpenRLHF's DPO trainer: from its batches to the host-neutral step and back."""

from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist
from openrlhf.models.loss_registry import PreferenceLoss
from torch import Tensor

from ...config import SparsePOConfig
from ...step import PreferenceStep
from ...tokens import ResponseTokens
from .checks import check_models, check_pairs, refuse_flags, shares_reference


class TokenLoss(PreferenceLoss):
    """One of our objectives as a loss of OpenRLHF; `section`, its registered name, is also the name of its options.

    Args:
        args: OpenRLHF's arguments; the attribute called `section` is the raw section of the YAML.

    Raises:
        SparsePOError: a key of the section is wrong, or a flag cannot be honoured.
    """

    def __init__(self, args: SimpleNamespace) -> None:
        super().__init__(args)
        self.args = args
        self.config = SparsePOConfig.from_section(getattr(args, self.section), self.section)
        self.preference_step = PreferenceStep(self.config, args.model.beta, args.model.label_smoothing)
        self.oracle: tuple[Any, Any] | None = None
        refuse_flags(args, self.preference_step)

    @property
    def loads_reference(self) -> bool:
        """False when no reference is read, or when it is the policy with its LoRA adapter off."""
        return self.preference_step.reads_reference and not shares_reference(self.args)

    def check(self, strategy: Any) -> None:
        """Refuse what cannot work before any model is loaded.

        Raises:
            SparsePOError: a model, a key of the masks, or a row of the data; the line names it.
        """
        self.strategy = strategy
        check_models(self.args, self.config, self.preference_step.reads_reference)
        check_pairs(self.args, strategy)

    def wrap(self, model: Any, ref_model: Any | None) -> None:
        """Put the mask head into the actor's model, so that both become one DeepSpeed engine.

        Args:
            model: The policy's Actor.
            ref_model: The reference's Actor, or None.
        """
        reference = ref_model.model if ref_model else None
        model.model = self.preference_step.wrap(model.model, reference, self.args.train.seed)
        if self.args.ds.zero_stage == 3:
            _gather_reference_head(model.model)
        if "token_rewards" in model.model.needs:
            self.oracle = _load_oracle(self.config.options["oracle"], self.args, self.strategy)

    def step(self, trainer: Any, batch: tuple) -> tuple[Tensor, Tensor, Tensor, Tensor, dict[str, float]]:
        """One micro-batch of OpenRLHF's trainer.

        Args:
            trainer: The DPOTrainer.
            batch: chosen_ids, c_mask, reject_ids, r_mask and prompt_id_lens, on the device.

        Returns:
            Loss for the backward, preference loss, chosen and rejected rewards [P], and numbers to log.
        """
        input_ids, attention_mask, prompt_lens = trainer.concatenated_inputs(*batch)
        group = trainer.strategy.ring_attn_group
        inputs = {"attention_mask": attention_mask, "return_output": True, "ring_attn_group": group}
        step = trainer.model.model.global_steps + 1
        output = self.preference_step(
            partial(trainer.model, input_ids, **inputs),
            partial(trainer.ref_model, input_ids, **inputs) if trainer.ref_model else None,
            self._tokens(input_ids, attention_mask, prompt_lens, group),
            step=step,
            oracle=self.oracle and (self.oracle[0], partial(self.oracle[1], input_ids, **inputs)),
            every_row=self._wants_every_row(trainer, step),
        )
        loss, logs, flags = output.loss, output.metrics, self.args.model
        if trainer.aux_loss:
            loss = loss + output.aux_loss * flags.aux_loss_coef
        if trainer.nll_loss:
            loss = loss + output.nll_loss * flags.nll_loss_coef
            logs["nll_loss"] = output.nll_loss.item()
        return loss, output.loss, output.chosen_rewards, output.rejected_rewards, logs

    def _wants_every_row(self, trainer: Any, step: int) -> bool:
        """Whether this step's numbers need tokens that the loss could do without."""
        every = self.config.metrics_every or self.args.logger.logging_steps
        return trainer.nll_loss or not torch.is_grad_enabled() or step % every == 0

    def _tokens(
        self, input_ids: Tensor, attention_mask: Tensor, prompt_lens: list[int], group: dist.ProcessGroup | None
    ) -> ResponseTokens:
        """Index of the batch as OpenRLHF's Actor lays it out: padded, packed, or a ring-attention share of that."""
        if not self.args.ds.packing_samples:
            return ResponseTokens.from_padded(input_ids, attention_mask, prompt_lens)
        packed = input_ids[attention_mask.bool()]
        tokens = ResponseTokens.from_packed(packed, attention_mask.sum(-1), prompt_lens)
        if group is None:
            return tokens
        share = -(-len(packed) // dist.get_world_size(group))
        start = dist.get_rank(group) * share
        return tokens.shard(start, start + share, group)


def _loss(name: str) -> type[TokenLoss]:
    return type(name, (TokenLoss,), {"section": name})


# What the entry points name.
sparsepo, dpo, tdpo, dpop, simpo, d2po, sepo = map(_loss, ("sparsepo", "dpo", "tdpo", "dpop", "simpo", "d2po", "sepo"))


def _load_oracle(name: str, args: SimpleNamespace, strategy: Any) -> tuple[Any, Any]:
    """The oracle's Hugging Face model, and its Actor with DeepSpeed's engine around it, loaded like a reference."""
    from openrlhf.cli.train_dpo import load_reference

    ref = SimpleNamespace(**{**vars(args.ref), "model_name_or_path": name})
    actor = load_reference(SimpleNamespace(**{**vars(args), "ref": ref}), strategy)
    model = actor.model
    return model, strategy.prepare(actor).eval()


def _gather_reference_head(policy: Any) -> None:
    """Have ZeRO-3 gather the reference's head together with the policy's, in forward and backward."""
    from deepspeed.runtime.zero import register_external_parameter

    for parameter in policy.reference_parameters():
        register_external_parameter(policy.policy.get_output_embeddings(), parameter)
