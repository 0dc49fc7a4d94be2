"""Models that can be trained pass the look at their configs and files."""

import pytest
from tiny import ARCHITECTURES, decoder

from sparsepo_plugin.hosts.models import read_models


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_what_transformers_has_saved(kind, tmp_path):
    """Some kinds have other names for weights in files than in modules."""
    decoder(kind, attention="eager").save_pretrained(tmp_path)
    (read,) = read_models({"model": str(tmp_path)}, trust_remote_code=False).values()
    assert read.config.model_type == kind and next(read.parameters()).device.type == "meta"
