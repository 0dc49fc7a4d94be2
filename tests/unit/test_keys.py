"""Refusals of the core, with the flags of OpenRLHF that decide what they are about."""

import pytest
import torch
from tiny import TWO_PAIRS, Pairs, decoder, make_step

from sparsepo_plugin import ReferenceFeatures, SparsePOError
from sparsepo_plugin.hosts.openrlhf.keys import naming_flags
from sparsepo_plugin.masks.selected import SelectedMask


def ranked_in_parts():
    tokens = Pairs(TWO_PAIRS).tokens.shard(0, 3, group=object())
    logps = torch.zeros(len(tokens))
    SelectedMask(oracle="a")(ReferenceFeatures(logps=logps, oracle_logps=logps), tokens)


@pytest.mark.parametrize(
    ("refused", "flags"),
    [
        (lambda: make_step({}, decoder(), decoder(vocab_size=38)), "ref.model_name_or_path"),
        (lambda: make_step({}, decoder(), None), "ref.share and ds.lora.rank"),
        (ranked_in_parts, "ds.ring_attn_size"),
    ],
    ids=["another vocabulary", "no reference", "parts of sequences"],
)
def test_the_flags_follow_the_line(refused, flags):
    with pytest.raises(SparsePOError) as caught, naming_flags():
        refused()
    line = str(caught.value)
    assert line.endswith(f" ({flags})") and "\n" not in line
    with pytest.raises(SparsePOError) as plain:
        refused()
    assert line == f"{plain.value} ({flags})"


def test_a_line_that_names_its_key_stays_as_it_is():
    with (
        pytest.raises(SparsePOError, match=r"^sparsepo\.layers: \[9\], allowed are all, last, or a list"),
        naming_flags(),
    ):
        make_step({"layers": [9]}, decoder(), decoder())
