"""Which flags of OpenRLHF the core's words stand for."""

from ..naming import FlagNames

_NAMES = FlagNames(
    {
        "policy": "model.model_name_or_path",
        "reference": "ref.model_name_or_path",
        "dtype": "ds.param_dtype",
        "shared reference": "ref.share and ds.lora.rank",
        "sharded sequences": "ds.ring_attn_size",
        "learning rate": "adam.lr, max_norm",
        "packing": "ds.packing_samples",
        "remote code": "model.trust_remote_code: true",
    }
)

naming_flags, named = _NAMES.naming, _NAMES.named
