"""Any Hugging Face decoder, without naming architectures: its layers, their sites, its vocabulary head."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from .errors import SparsePOError

SITES = ("attention", "feed_forward", "residual")

# Decoders that change the logits after the head: row statistics computed from the head alone would be wrong.
_LOGIT_CHANGES = (
    "final_logit_softcapping",
    "logits_soft_cap",
    "logit_scale",
    "logits_scaling",
    "lm_head_multiplier",
    "output_multiplier",
)


def load_decoder(
    name: str, what: str, *, dtype: torch.dtype, device: str | torch.device, trust_remote_code: bool = False
) -> nn.Module:
    """A causal language model in evaluation mode.

    Args:
        name: Folder or hub name.
        what: Whose model it is, for the error.
        dtype: Of its weights.
        device: Where it goes.
        trust_remote_code: Whether it may bring code of its own.

    Raises:
        SparsePOError: it cannot be loaded.
    """
    from transformers import AutoModelForCausalLM  # here, because loading transformers takes seconds

    with loading(what, name):
        model = AutoModelForCausalLM.from_pretrained(name, dtype=dtype, trust_remote_code=trust_remote_code)
    return model.to(device).eval()


@contextmanager
def loading(what: str, name: str | Path) -> Iterator[None]:
    """Within the context a file that cannot be loaded is one line.

    Args:
        what: Whose file it is.
        name: Folder or hub name.

    Raises:
        SparsePOError: a file is missing, damaged, or holds code.
    """
    try:
        yield
    except UnpicklingError as error:  # torch's own words are about how to run what the file holds
        raise SparsePOError(f"{what}: {name} cannot be loaded: its weights are damaged, or hold code") from error
    except (OSError, ValueError, SafetensorError) as error:
        raise SparsePOError(f"{what}: {name} cannot be loaded: {' '.join(str(error).split())}") from error


def decoder_layers(model: nn.Module) -> nn.ModuleList:
    """The layers of any Hugging Face decoder: the outermost list as long as its config says.

    Raises:
        SparsePOError: there is none.
    """
    depth = model.config.get_text_config().num_hidden_layers
    for module in model.modules():
        if isinstance(module, nn.ModuleList) and len(module) == depth:
            return module
    raise SparsePOError(f"{type(model).__name__}: no list of {depth} layers was found to read hidden states from")


def activation_sites(layers: nn.ModuleList, kinds: tuple[str, ...] = SITES) -> list[nn.Module]:
    """Modules whose outputs the activation mask reads (paper §2.3), one of each kind in every layer.

    `residual` is a layer itself; `attention` and `feed_forward` are the last of its direct children that hold a
    matrix, told apart by whether their name speaks of attention.

    Raises:
        SparsePOError: a layer has nothing of a kind that was asked for.
    """
    sites = []
    for layer in layers:
        children = [(name, child) for name, child in layer.named_children() if _holds_matrix(child)]
        by_kind = {
            "attention": [child for name, child in children if _is_attention(name, child)],
            "feed_forward": [child for name, child in children if not _is_attention(name, child)],
            "residual": [layer],
        }
        for kind in kinds:
            if not by_kind.get(kind):
                raise SparsePOError(
                    f"{type(layer).__name__} has no {kind} site among {[name for name, _ in children]}"
                )
            sites.append(by_kind[kind][-1])
    return sites


def disable_dropout(model: nn.Module) -> None:
    """Turn off the dropout that a model's config brings; a LoRA adapter's, which has a flag of its own, stays."""
    # Some layers read their rate from the config at each call: they get a copy, as the model's own is saved with it.
    quiet = copy.deepcopy(model.config)
    _zero_rates(quiet)
    for name, module in model.named_modules():
        if "lora_dropout" in name:
            continue
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0
        _zero_rates(module)
        if vars(module).get("config") is model.config and not hasattr(module, "save_pretrained"):
            module.config = quiet


def draws(model: nn.Module) -> bool:
    """Whether a forward in training mode is one of chance: some dropout, that of an adapter too, or jitter is on."""
    rates = (
        value
        for module in model.modules()
        for key, value in vars(module).items()
        if "drop" in key or "jitter" in key or (key == "p" and isinstance(module, nn.modules.dropout._DropoutNd))
    )
    return any(isinstance(rate, float) and rate > 0 for rate in rates)


def max_positions(config: Any) -> int | None:
    """How many tokens a model of this config can take: rotary positions have no end, tables of them do."""
    text = config.get_text_config()
    endless = getattr(text, "rope_parameters", None) is not None
    return None if endless else getattr(text, "max_position_embeddings", None)


def vocabulary_head(model: nn.Module) -> nn.Linear:
    """The output embedding of a Hugging Face causal language model, or of a PEFT model around one.

    Raises:
        SparsePOError: the logits are not one plain linear projection of the last hidden state.
    """
    head = model.get_output_embeddings()
    if type(head) is not nn.Linear:
        raise SparsePOError(
            f"the vocabulary head of {type(model).__name__} is {type(head).__name__}, torch.nn.Linear is needed: "
            "a LoRA adapter or a quantised weight on the head cannot be used with token-level losses"
        )
    config = model.config.get_text_config()
    for key in _LOGIT_CHANGES:
        if getattr(config, key, None) not in (None, 1, 1.0):
            raise SparsePOError(
                f"the model's config sets {key}: its logits are not the plain projection of the last hidden state "
                "that token-level losses are computed from"
            )
    return head


@contextmanager
def replaced_forward(head: nn.Linear, forward: Callable[[Tensor], Any]) -> Iterator[None]:
    """Within the context the head returns `forward(hidden)`, hidden being [B, T, d], in place of logits.

    The work happens inside the head's own call because under ZeRO-3 its weight exists only there and in the matching
    backward.
    """
    own = vars(head).get("forward")
    head.forward = forward
    try:
        yield
    finally:
        if own is None:
            del head.forward
        else:
            head.forward = own


def _zero_rates(owner: Any) -> None:
    for key, value in list(vars(owner).items()):
        if "drop" in key and isinstance(value, float):
            setattr(owner, key, 0.0)


def _is_attention(name: str, module: nn.Module) -> bool:
    return "att" in name.lower() or "attention" in type(module).__name__.lower()


def _holds_matrix(module: nn.Module) -> bool:
    # Under ZeRO-3 a parameter is an empty stub that remembers its shape.
    return any(len(getattr(p, "ds_shape", p.shape)) > 1 for p in module.parameters())
