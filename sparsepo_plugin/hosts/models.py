"""What can be said of a run's models before the weights of any are loaded."""

import os
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..config import LossConfig
from ..decoder import activation_sites, decoder_layers, vocabulary_head
from ..errors import SparsePOError, first_line, one_line
from ..policy import MaskedPolicy
from ..rehearsal import rehearse
from .weights import check_weights

_WANTED = "(a decoder, such as Llama or GPT-2, is needed)"
_NO_DECODERS = ("Classification", "QuestionAnswering", "MaskedLM", "RewardModel")


def read_models(names: dict[str, str], trust_remote_code: bool, quantised: bool = False) -> dict[str, nn.Module]:
    """The models of a run without memory for their weights, whose files are looked at.

    Args:
        names: Folder or hub name by the key of the host's YAML.
        trust_remote_code: Whether models may bring code of their own.
        quantised: Whether they may be, because an adapter alone is trained.

    Returns:
        Hugging Face causal language models on the meta device, by key.

    Raises:
        SparsePOError: a model is missing, broken, an adapter, quantised, or no text decoder; the line names the key.
    """
    models = {key: _read_model(key, name, trust_remote_code, quantised) for key, name in names.items()}
    looked_at = set()  # a folder that is policy and reference has one set of files
    for key, name in names.items():
        if name not in looked_at and os.path.isdir(name) and not _is_quantised(models[key].config):
            check_weights(key, Path(name), trust_remote_code)
        looked_at.add(name)
    return models


def join(policy: nn.Module, reference: nn.Module | None, config: LossConfig, seed: int) -> MaskedPolicy:
    """The policy with the masks of a loss, made from models of `read_models`: what cannot be joined is refused here.

    Args:
        policy: The policy, or a PEFT model around it.
        reference: The reference, unless it is the policy with its adapter off, or is not read.
        config: The loss.
        seed: The host's.

    Raises:
        SparsePOError: a layer or site that masks read is not found, a key of the masks does not fit the reference or
            has no effect, or the code of a mask or objective fails.
    """
    read = reference or policy
    text = read.config.get_text_config()
    masks = rehearse(config, text.hidden_size, text.num_hidden_layers, seed)
    joined = MaskedPolicy(policy, reference, config, seed, masks)
    if joined.request.needs & {"hidden_states", "activations"}:
        layers = decoder_layers(read)
        if "activations" in joined.request.needs:
            activation_sites(layers, joined.request.sites)
    return joined


def check_head(key: str, model: nn.Module) -> None:
    """Refuse a model whose logits are not one plain projection of its last hidden state.

    Raises:
        SparsePOError: names the key.
    """
    try:
        vocabulary_head(model)
    except SparsePOError as error:
        raise SparsePOError(f"{key}: {error}") from error


def check_vocabularies(models: dict[str, nn.Module]) -> None:
    """Refuse models whose vocabularies differ from that of the first.

    Raises:
        SparsePOError: names both keys.
    """
    sizes = {key: model.config.get_text_config().vocab_size for key, model in models.items()}
    first, *others = sizes
    for key in others:
        if sizes[key] != sizes[first]:
            raise SparsePOError(
                f"{key}: its vocabulary has {sizes[key]} entries, {first}'s {sizes[first]}: they must be the same"
            )


def refuse_idle_dropout(model_config: Any, config: LossConfig) -> None:
    """Refuse `disable_dropout: false` for a policy that has no dropout.

    Raises:
        SparsePOError: names the key.
    """
    settings = model_config.get_text_config().to_dict().items()
    # Heads that no language model has may have a rate too: that of Pythia's classifier is 0.1.
    rates = [value for key, value in settings if "drop" in key and not key.startswith(("classifier", "summary"))]
    if not config.disable_dropout and not any(isinstance(rate, float) and rate > 0 for rate in rates):
        kind = model_config.model_type
        raise SparsePOError(f"{config.section}.disable_dropout: false has no effect: {kind} has no dropout here")


def empty_model(config: Any, trust_remote_code: bool, **settings: Any) -> nn.Module:
    """The causal language model of a Hugging Face config, on the meta device."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code, **settings)


def check_generation(key: str, name: str, model: nn.Module) -> None:
    """Refuse settings for generation that transformers loads, and after training does not save.

    Args:
        key: What names the model.
        name: Its folder or hub name.
        model: The model, whose config is asked where there is no file of such settings.

    Raises:
        SparsePOError: names the key and the file.
    """
    from transformers import GenerationConfig

    file = f"generation_config.json of {name}"
    try:
        settings = GenerationConfig.from_pretrained(name)
    except OSError:  # there is none, or it is not JSON: transformers goes without
        settings, file = model.generation_config, f"config.json of {name}"
    except Exception as error:  # whatever is made of wrong values
        raise SparsePOError(f"{key}: {file} cannot be read: {first_line(error)}") from error
    try:
        settings.validate(strict=True)
    except Exception as error:
        reason = one_line(error, 300)
        raise SparsePOError(f"{key}: {file} could not be saved with the trained model; mend it: {reason}") from error


def _read_model(key: str, name: str, trust_remote_code: bool, quantised: bool) -> nn.Module:
    from transformers import AutoConfig

    if os.path.isfile(os.path.join(name, "adapter_config.json")):
        raise SparsePOError(f"{key}: {name} is a LoRA adapter; merge it into its model first")
    # Whatever is wrong with the files, and with the code that they may bring, comes out of these two calls.
    try:
        config = AutoConfig.from_pretrained(name, trust_remote_code=trust_remote_code)
        refuse_kind(key, config, quantised)
        model = empty_model(config, trust_remote_code)
    except SparsePOError:
        raise
    except (Exception, SystemExit) as error:
        if not trust_remote_code and "trust_remote_code" in str(error):
            raise SparsePOError(
                f"{key}: {name} brings code of its own, which runs only where the run says so", about="remote code"
            ) from error
        raise SparsePOError(f"{key}: {name} cannot be loaded: {first_line(error)}") from error
    if _is_bidirectional(model):
        raise SparsePOError(f"{key}: {config.model_type} is bidirectional, its tokens see those after them {_WANTED}")
    return model


def _is_quantised(config: Any) -> bool:
    return getattr(config, "quantization_config", None) is not None


def refuse_kind(key: str, config: Any, quantised: bool = False) -> None:
    """Refuse by its config what transformers would load as a causal language model, or fail to load, in vain.

    Args:
        key: What names the model.
        config: Its Hugging Face config.
        quantised: Whether it may be.

    Raises:
        SparsePOError: names the key.
    """
    kind, made_for = config.model_type, " ".join(getattr(config, "architectures", None) or ())
    reasons = {
        f"is a vision model {_WANTED}": hasattr(config, "vision_config"),
        f"is an audio model {_WANTED}": hasattr(config, "audio_config"),
        f"is an encoder-decoder {_WANTED}": getattr(config, "is_encoder_decoder", False),
        f"was made as {made_for}, without a vocabulary head that was trained {_WANTED}": any(
            word in made_for for word in _NO_DECODERS
        ),
        "is quantised: its weights cannot be trained, give the model that it was made from": (
            not quantised and _is_quantised(config)
        ),
    }
    for reason, applies in reasons.items():
        if applies:
            raise SparsePOError(f"{key}: {kind} {reason}")


def _is_bidirectional(model: nn.Module) -> bool:
    """Whether a token sees those after it, as far as modules and configs say so."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES as MASKED

    config = model.config.get_text_config()
    causal = {module.is_causal for module in model.modules() if hasattr(module, "is_causal")}
    return (
        causal == {False}
        or bool(getattr(config, "use_bidirectional_attention", False))
        or (config.model_type in MASKED and not getattr(config, "is_decoder", False))
    )
