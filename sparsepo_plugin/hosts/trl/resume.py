"""Whether a checkpoint is one of the run that wants to go on from it."""

from pathlib import Path
from typing import Any

from ...checkpoint import RunDescription, load_description
from ...config import objective_class, taken_from_host
from ...errors import SparsePOError

_OF_MASK_GROUP = ("mask_lr", "mask_weight_decay")


def refuse_other_run(checkpoint: str | Path, description: RunDescription) -> None:
    """Refuse a checkpoint that was written by a run with another loss, mask, option, β, base model or reference.

    Args:
        checkpoint: Its folder.
        description: Of the run that wants to resume.

    Raises:
        SparsePOError: names the first difference, or what is missing.
    """
    written = load_description(checkpoint)
    if written.loss.loss != description.loss.loss:
        raise _other(checkpoint, "loss", written.loss.loss, description.loss.loss)
    before, now = _options(written), _options(description)
    for key in {**now, **before}:
        if before.get(key) != now.get(key):
            raise _other(checkpoint, key, before.get(key), now.get(key))


def _other(checkpoint: str | Path, key: str, before: Any, now: Any) -> SparsePOError:
    return SparsePOError(f"{checkpoint} was written by a run with {key}: {before}, not {now}")


def _options(description: RunDescription) -> dict[str, Any]:
    """What must be the same, by the name of its argument or key."""
    loss = description.loss
    given = {key: loss.objective[key] for key in sorted(taken_from_host(objective_class(loss.loss)))}
    # The optimizer's options of the masks would be those of the checkpoint whatever is given now.
    of_group = {f"{loss.section}.{key}": getattr(loss, key) for key in _OF_MASK_GROUP} if loss.masks else {}
    models = {
        "model": description.base_model,
        "ref_model": description.reference,
        "a reference shared with the policy": description.shared_reference,
    }
    return {**models, **given, **loss.identity, **of_group}
