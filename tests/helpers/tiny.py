"""Tiny random models and batches, for every test of the core."""

from functools import partial

import torch
from torch import Tensor, nn
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedModel

from sparsepo_plugin import LossConfig, MaskedPolicy, PreferenceStep, ResponseTokens, RunDescription, Runner
from sparsepo_plugin.texts import Joining

VOCABULARY, WIDTH, LAYERS = 37, 16, 3

_LLAMA = {
    "hidden_size": WIDTH,
    "intermediate_size": 24,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "max_position_embeddings": 64,
}
_GPT = {"n_embd": WIDTH, "n_layer": LAYERS, "n_head": 2, "n_positions": 64, "n_inner": 24}
_NO_DROPOUT = {"attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0}
_EXPERTS = {"num_experts_per_tok": 2, "output_router_logits": True}

ARCHITECTURES = {
    "llama": _LLAMA,
    "gpt2": _GPT | _NO_DROPOUT,
    "gpt_neox": {
        "hidden_size": WIDTH,
        "intermediate_size": 24,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 2,
        "max_position_embeddings": 64,
        "tie_word_embeddings": False,
    },
    "gptj": _GPT | _NO_DROPOUT | {"rotary_dim": 4, "tie_word_embeddings": False},
    "gpt_bigcode": _GPT | _NO_DROPOUT,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
    "mistral": _LLAMA,
    "gemma": _LLAMA,
    "mixtral": _LLAMA | _EXPERTS | {"num_local_experts": 4},
    "qwen2_moe": _LLAMA
    | _EXPERTS
    | {"num_experts": 4, "moe_intermediate_size": 12, "shared_expert_intermediate_size": 12},
}

# Cannot be packed without flash-attention.
_FALCON = {"falcon": {"hidden_size": WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": 2}}


def decoder(name: str = "llama", seed: int = 0, attention: str = "sdpa", **changes: object) -> PreTrainedModel:
    """A random model of the architecture, its weights large enough for logits that differ."""
    config = CONFIG_MAPPING[name](
        **{
            **(ARCHITECTURES | _FALCON).get(name, _LLAMA),
            "vocab_size": VOCABULARY,
            "initializer_range": 0.3,
            "use_cache": False,
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": 2,
            **changes,
        }
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, attn_implementation=attention, dtype=torch.float32)
        for parameter in model.parameters():  # Biases start at zero, and a zero hides mistakes.
            if parameter.dim() == 1:
                parameter.data += 0.2 * torch.randn_like(parameter)
    return model.eval()


class Pairs:
    """P pairs of random tokens with ragged prompts and responses, padded and packed.

    Args:
        lens: (prompt, response) tokens of each of the 2P sequences, chosen first.
        alike: With how many tokens, or all, a rejected sequence begins like its chosen one; of each pair, or of all.
    """

    def __init__(
        self, lens: list[tuple[int, int]], seed: int = 0, side: str = "right", alike: int | list[int] = 0
    ) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.prompt_lens = [prompt for prompt, _ in lens]
        self.sequences = [torch.randint(3, VOCABULARY, (sum(pair),), generator=generator) for pair in lens]
        pairs = len(lens) // 2
        for index, count in enumerate([alike] * pairs if isinstance(alike, int) else alike):
            begins = self.sequences[index][:count]
            self.sequences[pairs + index][: len(begins)] = begins[: len(self.sequences[pairs + index])]
        self.input_ids = torch.nn.utils.rnn.pad_sequence(self.sequences, batch_first=True, padding_side=side)
        ones = [torch.ones_like(sequence) for sequence in self.sequences]
        self.attention_mask = torch.nn.utils.rnn.pad_sequence(ones, batch_first=True, padding_side=side)

    @property
    def tokens(self) -> ResponseTokens:
        return ResponseTokens.from_padded(self.input_ids, self.attention_mask, torch.tensor(self.prompt_lens))

    @property
    def inputs(self) -> dict[str, Tensor]:
        """Padded inputs of a model, positions counted over real tokens."""
        positions = (self.attention_mask.cumsum(-1) - 1).clamp(min=0)
        return {"input_ids": self.input_ids, "attention_mask": self.attention_mask, "position_ids": positions}

    @property
    def packed_tokens(self) -> ResponseTokens:
        lens = torch.tensor([len(sequence) for sequence in self.sequences])
        return ResponseTokens.from_packed(torch.cat(self.sequences), lens, torch.tensor(self.prompt_lens))

    @property
    def packed_inputs(self) -> dict[str, Tensor]:
        """The same sequences in one row, as OpenRLHF gives them to a model: positions restart, no attention mask."""
        positions = torch.cat([torch.arange(len(sequence)) for sequence in self.sequences])
        return {"input_ids": torch.cat(self.sequences)[None], "attention_mask": None, "position_ids": positions[None]}


def make_step(
    section: dict | None,
    policy: nn.Module,
    reference: nn.Module | None,
    *,
    loss: str = "sparsepo",
    beta: float = 0.5,
    label_smoothing: float = 0.0,
    **options: object,
) -> PreferenceStep:
    """The step of a section over two models; `step.policy` is the policy with its masks."""
    config = LossConfig.from_section(section, loss, beta=beta, label_smoothing=label_smoothing)
    return PreferenceStep(MaskedPolicy(policy, reference, config), **options)


def describe(config: LossConfig, **changes: object) -> RunDescription:
    """A description of a run over these models."""
    values = {
        "versions": {"sparsepo-plugin": "0.1.0"},
        "host": "a test",
        "loss": config,
        "base_model": "base",
        "reference": "base",
        "shared_reference": False,
        "dtype": "float32",
        "hidden_size": WIDTH,
        "num_layers": LAYERS,
        "joining": Joining(),
    }
    return RunDescription(**{**values, **changes})


def runner(model: nn.Module | None, inputs: dict[str, Tensor]) -> Runner | None:
    """A frozen model on a batch."""
    return None if model is None else Runner(model, partial(model, **inputs))


TWO_PAIRS = [(3, 4), (2, 1), (3, 2), (2, 6)]


def row_stats(logits: Tensor, tokens: ResponseTokens) -> Tensor:
    """Log-softmax of the rows that predict response tokens. [S, T, V] -> [N, V]."""
    return logits.flatten(0, -2)[tokens.rows].log_softmax(-1)
