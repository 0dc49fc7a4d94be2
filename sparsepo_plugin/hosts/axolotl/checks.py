"""What is said of a configuration of Axolotl before anything is loaded or written; Axolotl itself is not imported."""

from collections.abc import Mapping
from typing import Any

from ...config import LossConfig, objective_class, section_name, taken_from_host
from ...errors import SparsePOError, shown
from ...registry import OBJECTIVES, import_plugins
from ...rehearsal import rehearse
from ..models import check_head, read_models, refuse_idle_dropout
from ..naming import FlagNames

PLUGIN = "sparsepo_plugin.SparsePOPlugin"
TRAINER = "sparsepo_plugin.hosts.axolotl.trainer.AxolotlSparsePOTrainer"

_LISTED = f"plugins: [{PLUGIN}]"
_NAMES = FlagNames({"remote code": "trust_remote_code: true", "reference": "base_model"})
_TEXT_ALONE = "a token-level loss is computed from each token of both responses"


def key_of_ours(cfg: Mapping[str, Any]) -> str | None:
    """The key at the top of a configuration that means a loss of ours, as the user wrote it; None if there is none.

    Axolotl has no such keys, drops what it does not know, and would train its own DPO. A loss that is not registered
    here may be that of another plugin, if one is listed.
    """
    loss, plugins = cfg.get("loss"), cfg.get("plugins") or []
    if loss is not None and (PLUGIN in plugins or not plugins or str(loss) in OBJECTIVES or ":" in str(loss)):
        return f"loss: {loss}"
    if cfg.get("loss_plugins") is not None:
        return "loss_plugins"
    return next((name for name in OBJECTIVES.names() if isinstance(cfg.get(name), Mapping)), None)


def check_run(cfg: Mapping[str, Any]) -> LossConfig | None:
    """Find what is wrong with a configuration and its models, of which only configs are read; see `check_config`."""
    config = check_config(cfg)
    if config is not None and isinstance(cfg.get("base_model"), str):
        with _NAMES.naming():
            _check_models(cfg, config)
    return config


def check_config(cfg: Mapping[str, Any]) -> LossConfig | None:
    """Find what is wrong with a configuration, by its keys alone.

    Args:
        cfg: As the YAML and the command line gave it, not validated.

    Returns:
        The loss, or None for a configuration that neither names one of ours nor lists the plugin.

    Raises:
        SparsePOError: the plugin is not listed, there is no loss, or a key is wrong or cannot be honoured.
    """
    key, listed = key_of_ours(cfg), PLUGIN in (cfg.get("plugins") or [])
    if key is None and not listed:
        return None
    if not listed:
        found = ", ".join(map(str, cfg.get("plugins") or [])) or "none"
        raise SparsePOError(f"{key} needs {_LISTED}, without which Axolotl drops it and trains DPO; listed: {found}")
    loss = cfg.get("loss")
    if loss is None:
        what = _LISTED if key is None else key
        raise SparsePOError(f"{what} has no effect without loss: NAME, such as loss: sparsepo; loss: dpo is plain DPO")
    if not isinstance(loss, str):
        raise SparsePOError(f"loss: the name of a loss is needed, not {shown(loss)}")
    _refuse_keys(cfg, loss)
    return _read_loss(cfg, loss)


def _check_models(cfg: Mapping[str, Any], config: LossConfig) -> None:
    names = {"base_model": cfg["base_model"]}
    if config.oracle is not None:
        names[f"{config.section}.oracle"] = config.oracle
    models = read_models(names, bool(cfg.get("trust_remote_code")), quantised=bool(cfg.get("adapter")))
    for key, model in models.items():
        check_head(key, model)
    policy = models["base_model"]
    _refuse_adapted_head(cfg, policy)
    refuse_idle_dropout(policy.config, config)
    text = policy.config.get_text_config()
    rehearse(config, text.hidden_size, text.num_hidden_layers, seed=0)


def _refuse_adapted_head(cfg: Mapping[str, Any], policy: Any) -> None:
    """An adapter on the vocabulary head, or a copy of it that is trained, is not the head that the loss reads."""
    head = next(name for name, module in policy.named_modules() if module is policy.get_output_embeddings())
    for key in ("lora_target_modules", "lora_modules_to_save"):
        given = cfg.get(key) or []
        if head.rpartition(".")[2] in ([given] if isinstance(given, str) else given):
            raise SparsePOError(f"{key}: {head} is the vocabulary head, which is used row by row and has no adapter")


def loss_arguments(cfg: Mapping[str, Any]) -> dict[str, Any]:
    """What the trainer is told of the loss: its name, its section as YAML gave it, and modules to import."""
    loss = cfg["loss"]
    return {"loss": loss, "loss_options": cfg.get(section_name(loss)), "loss_plugins": cfg.get("loss_plugins")}


def _read_loss(cfg: Mapping[str, Any], loss: str) -> LossConfig:
    plugins = cfg.get("loss_plugins") or []
    if not (isinstance(plugins, list) and all(isinstance(name, str) for name in plugins)):
        raise SparsePOError(f"loss_plugins: a list of modules is needed, not {shown(plugins)}")
    import_plugins(plugins)
    section, taken = section_name(loss), taken_from_host(objective_class(loss))
    for other in OBJECTIVES.names():
        if other != section and isinstance(cfg.get(other), Mapping):
            raise SparsePOError(f"{other} has no effect with loss: {loss}, whose options are those of {section}")
    from_host = {}
    for option, (key, value) in _host_options(cfg).items():
        if option not in taken:
            raise SparsePOError(f"{key} has no effect with loss: {loss}, which does not take it from there")
        from_host[option] = value
    config = LossConfig.from_section(cfg.get(section), loss, **from_host)
    config.build_objective()
    if config.column is not None:
        _refuse_moved_responses(cfg)
    return config


def _refuse_moved_responses(cfg: Mapping[str, Any]) -> None:
    """Refuse keys of Axolotl with which spans of weights would not be of the text that is trained on.

    Raises:
        SparsePOError: names the key.
    """
    if str(cfg.get("excess_length_strategy") or "").lower() == "truncate":
        raise SparsePOError(
            "excess_length_strategy: truncate cuts responses, which mask 'column' has weights of; drop"
        )
    kinds = [{str(each.get("type")) for each in cfg.get(key) or []} for key in ("datasets", "test_datasets")]
    if not kinds[1] <= kinds[0]:
        raise SparsePOError("test_datasets: with mask 'column' their type must be that of datasets")


def _host_options(cfg: Mapping[str, Any]) -> dict[str, tuple[str, float]]:
    """What Axolotl's keys give of a loss's options, with the key, where they are given; it reads the first of β's."""
    found = {}
    keys = {
        "beta": {"trl.beta": (cfg.get("trl") or {}).get("beta"), "rl_beta": cfg.get("rl_beta")},
        "label_smoothing": {"dpo_label_smoothing": cfg.get("dpo_label_smoothing")},
    }
    for option, values in keys.items():
        given = {key: value for key, value in values.items() if value is not None}
        for key, value in given.items():
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise SparsePOError(f"{key}: a number is needed, not {shown(value)}")
            found.setdefault(option, (key, float(value)))
    return found


def _refuse_keys(cfg: Mapping[str, Any], loss: str) -> None:
    """Refuse keys of Axolotl with which it would not train by this loss, or train something else.

    Raises:
        SparsePOError: names the key and the reason.
    """
    if cfg.get("rl") != "dpo":
        found = "it is missing" if cfg.get("rl") is None else f"not {shown(cfg['rl'])}"
        raise SparsePOError(f"rl: loss: {loss} is a loss of preference pairs and needs rl: dpo, {found}")
    losses, liger = cfg.get("dpo_loss_type"), cfg.get("dpo_use_liger_kernel")
    refusals = {
        f"loss_options: the options of a loss stand in the section of its name, {section_name(loss)}": (
            cfg.get("loss_options") is not None
        ),
        f"trainer_cls: loss: {loss} brings its own trainer": cfg.get("trainer_cls") not in (None, TRAINER),
        "sample_packing: must be off, Axolotl packs no preference pairs": cfg.get("sample_packing"),
        "eval_sample_packing: must be off, Axolotl packs no preference pairs": cfg.get("eval_sample_packing"),
        "dpo_padding_free: must be off, TRL has turned it off and pads": cfg.get("dpo_padding_free"),
        f"dpo_use_liger_kernel: must be off, it computes DPO in place of loss: {loss}": liger,
        f"precompute_ref_log_probs: must be off, it keeps one sum a response, {_TEXT_ALONE}": (
            cfg.get("precompute_ref_log_probs")
        ),
        f"dpo_loss_type and dpo_loss_weights have no effect: the loss is that of loss: {loss}": (
            losses not in (None, "sigmoid", ["sigmoid"]) or cfg.get("dpo_loss_weights") is not None
        ),
        f"dpo_use_weighting has no effect: the loss is that of loss: {loss}": cfg.get("dpo_use_weighting"),
        "dpo_beta: is called rl_beta": cfg.get("dpo_beta") is not None,
        "orpo_alpha: Axolotl would take it for β; give rl_beta": cfg.get("orpo_alpha") is not None,
        "rl_adapter_ref_model: must be off, the reference is the model without its adapter": (
            cfg.get("rl_adapter_ref_model")
        ),
        f"context_parallel_size: must be 1, {_TEXT_ALONE}": (cfg.get("context_parallel_size") or 1) > 1,
        "tensor_parallel_size: must be 1, the vocabulary head is used row by row and cannot be split": (
            (cfg.get("tensor_parallel_size") or 1) > 1
        ),
        "fsdp_version: 2 with an adapter is not possible, Axolotl saves the adapter past the trainer, without masks": (
            cfg.get("adapter") and str(cfg.get("fsdp_version")) == "2"
        ),
        "torch_compile: must be off, it compiles the forward that reference hooks read from": cfg.get("torch_compile"),
        "use_ray: must be off, its workers validate the configuration once more, without the loss": cfg.get("use_ray"),
    }
    for reason, applies in refusals.items():
        if applies:
            raise SparsePOError(reason)
