"""The README's mask works as printed."""

import re
import sys
from pathlib import Path

import torch
import yaml

from sparsepo_plugin import MASKS, ReferenceFeatures, ResponseTokens, SparsePOConfig
from sparsepo_plugin.masks import build_masks

README = (Path(__file__).parents[2] / "README.md").read_text()


def test_mask_of_your_own(tmp_path, monkeypatch):
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len([line for line in code.splitlines() if line.strip()]) <= 11
    (tmp_path / "my_masks.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(MASKS, "_classes", dict(MASKS._classes))
    (written,) = re.findall(r"`sparsepo: (\{plugins.*?\})`", README)
    config = SparsePOConfig.from_section(yaml.safe_load(written))
    tokens = ResponseTokens.from_packed(torch.arange(24), [12, 12], [2, 1])
    masks = build_masks(config, hidden_size=4, num_layers=2, seed=0)(ReferenceFeatures(), tokens)
    assert masks.reward.tolist() == [1.0] * 8 + [0.0] * 2 + [1.0] * 8 + [0.0] * 3
    sys.modules.pop("my_masks")


def test_the_yaml_is_valid_and_names_every_key():
    (text,) = re.findall(r"```yaml\n(.*?)```", README, re.DOTALL)
    SparsePOConfig.from_section(yaml.safe_load(text)["sparsepo"])
    table = set(
        re.findall(r"`(\w+)`", "\n".join(line.split("|")[1] for line in README.splitlines() if line.startswith("| `")))
    )
    assert table == set(SparsePOConfig.model_fields) - {"options", "objective", "loss"}
