"""Which arguments of TRL the core's words stand for."""

from ..naming import FlagNames

_NAMES = FlagNames(
    {
        "policy": "model",
        "reference": "ref_model",
        "dtype": "bf16, fp16, and dtype in model_init_kwargs",
        "shared reference": "peft_config",
        "sharded sequences": "parallelism_config",
        "learning rate": "learning_rate, max_grad_norm",
        "remote code": "trust_remote_code=True",
    }
)

naming_flags, named = _NAMES.naming, _NAMES.named
