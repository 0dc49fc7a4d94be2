"""For `loss_plugins:`: the same classes under other names, registered when this is imported."""

from sparsepo_plugin import MASKS, OBJECTIVES

from .masks import Opening, Probe
from .objectives import Cautious, Margin, Plain

MASKS.register("registered-opening")(Opening)
MASKS.register("registered-probe")(Probe)
for name, cls in {"margin": Margin, "cautious": Cautious, "plain": Plain}.items():
    OBJECTIVES.register(f"registered-{name}")(cls)
