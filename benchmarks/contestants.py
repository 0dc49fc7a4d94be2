"""The steps that `step_cost.py` compares: three hosts' DPO, the authors' arithmetic, and ours, on one batch."""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace

import torch
from shapes import Shape
from torch import Tensor, nn
from torch.profiler import record_function
from transformers import LlamaConfig, LlamaForCausalLM

from sparsepo_plugin import MASKS, LossConfig, PreferenceStep, ReferenceFeatures, ResponseTokens, Runner, TokenMask
from sparsepo_plugin.hosts.openrlhf.policy import HostedPolicy
from sparsepo_plugin.hosts.openrlhf.program import load_program
from sparsepo_plugin.layout import Batch
from sparsepo_plugin.masks.learned import LearnedMask

load_program()

from openrlhf.models import Actor, DPOLoss  # noqa: E402 (from the patched copy, once it is on the path)
from openrlhf.trainer.dpo_trainer import DPOTrainer  # noqa: E402

BETA = 0.1


@dataclass(frozen=True)
class Ours:
    """One of our losses.

    `sparsity` is the share of tokens whose masks are forced to be exactly zero, `shared_prefix` whether the models run
    once over the prompt of a pair.
    """

    objective: str = "sparsepo"
    mask: str = "learned"
    shared: bool = True
    sparsity: float = 0.0
    shared_prefix: bool = True

    @property
    def section(self) -> dict:
        """Its section of the YAML."""
        if self.objective != "sparsepo":
            return {"oracle": "the reference"} if self.objective == "sepo" else {}
        if self.sparsity:
            return {"mask": "pattern", "sparsity": self.sparsity}
        return {"mask": self.mask} if self.shared else {"mask": self.mask, "shared": False}


@MASKS.register("pattern")
class PatternMask(TokenMask):
    """The learned mask, exactly zero on a fixed random share of the tokens.

    Args:
        hidden_size: d.
        num_layers: L.
        sparsity: The share.
    """

    zeros_have_gradient = False
    needs = LearnedMask.needs
    converts_features = True

    def __init__(self, hidden_size: int, num_layers: int, *, sparsity: float) -> None:
        super().__init__()
        self.learned = LearnedMask(hidden_size, num_layers)
        self.needs = self.learned.needs
        self.sparsity = sparsity

    def forward(self, features: ReferenceFeatures, tokens: ResponseTokens) -> Tensor:
        """Weights of the batch's response tokens. float32 [N]."""
        mask = self.learned(features, tokens)
        order = torch.randperm(len(tokens), generator=torch.Generator().manual_seed(0)).to(mask.device)
        return mask.index_fill(0, order[: round(self.sparsity * len(tokens))], 0.0)


class Arena:
    """Two models and one batch; every method returns a function that computes a loss with gradient.

    Args:
        shape: The batch.
        device: `cpu` (float32) or `cuda` (bf16).
    """

    def __init__(self, shape: Shape, device: str) -> None:
        self.shape = shape
        self.policy, self.reference = (_model(shape, device, seed) for seed in (0, 1))
        self.reference.requires_grad_(False)
        if shape.lora:
            from peft import LoraConfig, get_peft_model

            self.policy = get_peft_model(self.policy, LoraConfig(r=16, target_modules="all-linear"))
        generator = torch.Generator().manual_seed(0)
        sequences = (2 * shape.pairs, shape.prompt + shape.response)
        self.ids = torch.randint(3, shape.vocab, sequences, generator=generator).to(device)
        self.ids[shape.pairs :, : shape.prompt] = self.ids[: shape.pairs, : shape.prompt]
        self.attention = torch.ones_like(self.ids)

    def openrlhf_dpo(self) -> Callable[[], Tensor]:
        """OpenRLHF's `DPOTrainer.dpo_step`; its constructor is left out because it wants DeepSpeed engines."""
        trainer = object.__new__(DPOTrainer)
        trainer.model, trainer.ref_model = self._actor(self.policy), self._actor(self.reference)
        trainer.strategy = SimpleNamespace(ring_attn_group=None)
        trainer.tokenizer = SimpleNamespace(pad_token_id=0)
        trainer.args = SimpleNamespace(model=SimpleNamespace(aux_loss_coef=0, nll_loss_coef=0))
        trainer.aux_loss = trainer.nll_loss = False
        trainer.loss_fn = DPOLoss(BETA)
        pairs, prompts = self.shape.pairs, [self.shape.prompt] * self.shape.pairs
        batch = (self.ids[:pairs], self.attention[:pairs], self.ids[pairs:], self.attention[pairs:], prompts)
        return lambda: trainer.dpo_step(batch)[0]

    def trl_dpo(self) -> Callable[[], Tensor]:
        """TRL's `DPOTrainer._compute_loss` with its fused head, metrics included."""
        trainer, inputs = self._trl()
        return lambda: trainer._compute_loss(trainer.model, inputs, return_outputs=False)

    def unshared(self) -> Callable[[], Tensor]:
        """Our step with the learned mask, every sequence with its prompt."""
        return self.ours(Ours(shared_prefix=False))

    def plain(self) -> Callable[[], Tensor]:
        """The authors' arithmetic with masks of 1: softmax and log-softmax of both models over all positions."""
        return partial(_plain_loss, self._logits(self.policy), self._logits(self.reference), self.ids, self.shape)

    def ours(self, ours: Ours, spans: bool = False) -> Callable[[], Tensor]:
        """One of our losses through `PreferenceStep` and OpenRLHF's Actor; `spans` names its parts to a profiler."""
        section = ours.section | {"share_prefix": ours.shared_prefix}
        config = LossConfig.from_section(section, ours.objective, beta=BETA)
        # With LoRA the reference is the policy with its adapter off, as in a run.
        reference = self.reference if config.uses_reference and not self.shape.lora else None
        policy = HostedPolicy(self.policy, reference, config).to(self.ids.device)
        step = PreferenceStep(policy)
        actor = self._actor(policy)
        inputs = {"attention_mask": self.attention, "return_output": True}

        def run_policy(**extra: object) -> dict:
            return HostedPolicy.read(actor(self.ids, **inputs, **extra))

        run_frozen = partial(self._actor(self.reference), self.ids, **inputs)
        if spans:
            run_policy = record_function("policy")(run_policy)
            run_frozen = record_function("reference")(run_frozen)
            policy.masks.forward = record_function("masks")(policy.masks.forward)
        frozen = Runner(self.reference, run_frozen)
        # SePO's oracle is a third model; a second forward of the reference costs the same.
        models = {"reference": frozen if reference else None, "oracle": frozen if config.oracle else None}
        number = 1 if ours.sparsity else 10  # every tenth step has the metrics of all tokens
        batch = Batch(self.ids, self.attention, self.shape.packed)
        return lambda: step(run_policy, self._tokens(), **models, number=number, batch=batch).loss

    def _actor(self, model: nn.Module) -> Actor:
        actor = Actor(model)
        actor.packing_samples = self.shape.packed
        return actor

    def _logits(self, model: nn.Module) -> Callable[[], Tensor]:
        actor = self._actor(model)
        return lambda: actor(self.ids, attention_mask=self.attention, return_output=True)["logits"]

    def _tokens(self) -> ResponseTokens:
        prompts = [self.shape.prompt] * len(self.ids)
        if not self.shape.packed:
            return ResponseTokens.from_padded(self.ids, self.attention, prompts)
        return ResponseTokens.from_packed(self.ids.flatten(), self.attention.sum(-1), prompts)

    def _trl(self) -> tuple:
        """TRL's trainer, its constructor left out too, and its batch."""
        if self.shape.packed:
            raise NotImplementedError("TRL's DPO has no packing")
        from accelerate import Accelerator
        from trl import DPOTrainer as TRLTrainer
        from trl.trainer.utils import add_fused_lm_head

        trainer = object.__new__(TRLTrainer)
        trainer.model, trainer.ref_model = self.policy, None if self.shape.lora else self.reference
        trainer.accelerator = Accelerator(cpu=self.ids.device.type == "cpu")
        trainer.args = SimpleNamespace(gradient_checkpointing_kwargs=None)
        trainer.beta, trainer.label_smoothing, trainer.loss_types, trainer.loss_weights = BETA, 0.0, ["sigmoid"], [1.0]
        trainer.f_divergence_type, trainer.ld_alpha = "reverse_kl", None
        trainer.aux_loss_enabled = trainer.precompute_ref_logps = trainer.use_weighting = trainer._is_vlm = False
        trainer._metrics, trainer._total_train_tokens = {"train": defaultdict(list)}, 0
        trainer._tp_size = 1
        # As its constructor does. Whoever does not ask for it gets the model's own forward.
        of_metrics = ("log_probs", "entropy", "mean_logits", "is_top1")
        add_fused_lm_head(self.policy.get_base_model() if self.shape.lora else self.policy, outputs=of_metrics)
        add_fused_lm_head(self.reference)
        completion = torch.zeros_like(self.ids)
        completion[:, self.shape.prompt :] = 1
        return trainer, {
            "input_ids": self.ids,
            "attention_mask": self.attention,
            "completion_mask": completion,
        }


def _model(shape: Shape, device: str, seed: int) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=shape.vocab,
        hidden_size=shape.size.width,
        intermediate_size=shape.size.inner,
        num_hidden_layers=shape.size.layers,
        num_attention_heads=shape.size.heads,
        tie_word_embeddings=True,
        attn_implementation="sdpa",
        use_cache=False,
    )
    with torch.device(device):
        return LlamaForCausalLM(config).to(torch.bfloat16 if device == "cuda" else torch.float32).train()


def _plain_loss(policy: Callable[[], Tensor], reference: Callable[[], Tensor], ids: Tensor, shape: Shape) -> Tensor:
    """−log σ(β·Σ_t (r_t + KL_t) of chosen − of rejected), as the released code computes it: no token left out."""
    labels = ids[:, 1:]
    with torch.no_grad():
        ref_logits = reference().view(*ids.shape, -1)[:, :-1].float()
        ref_logps, ref_probs = ref_logits.log_softmax(-1), ref_logits.softmax(-1)
    logps = policy().view(*ids.shape, -1)[:, :-1].float().log_softmax(-1)
    kl = (ref_probs * (ref_logps - logps)).sum(-1)
    log_ratio = (logps - ref_logps).gather(2, labels[..., None]).squeeze(2)
    response = torch.arange(labels.shape[1], device=ids.device) >= shape.prompt - 1
    rewards = BETA * ((log_ratio + kl) * response).sum(1)
    return -nn.functional.logsigmoid(rewards[: shape.pairs] - rewards[shape.pairs :]).mean()
