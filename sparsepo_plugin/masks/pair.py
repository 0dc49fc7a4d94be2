"""The masks of a run: m_u and m_d, made from a config, looked at on their first batch."""

import inspect

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from ..config import FROM_RUN, LossConfig, mask_class, objective_class
from ..errors import SparsePOError, naming_faults
from ..options import construct, parameters
from ..reference import OF_POLICY, FeatureRequest, ReferenceFeatures
from ..tokens import MaskPair, ResponseTokens
from .base import TokenMask

_FEATURES = ("hidden_states", "activations", "last_hidden", "logps", "oracle_logps", *sorted(OF_POLICY), "weights")


class Masks(nn.Module):
    """m_u and m_d of a run: one mask for both, or two, which may be of different kinds (paper §2.3).

    Args:
        reward: m_u.
        kl: m_d; None where it is m_u.
        names: What messages call them, by role.

    Raises:
        SparsePOError: both read activations, of different sites.
    """

    def __init__(self, reward: TokenMask, kl: TokenMask | None = None, names: dict[str, str] | None = None) -> None:
        super().__init__()
        self.reward = reward
        self.kl = kl
        self.names = names or {role: f"the {role} mask" for role in ("reward", "kl")}
        self._looked_at: set[str] = set()
        hooked = {mask.sites for mask in self.children() if "activations" in mask.needs}
        if len(hooked) > 1:
            raise SparsePOError(f"sites: {reward.sites} and {kl.sites} differ, both masks must read the same ones")

    @property
    def request(self) -> FeatureRequest:
        """What the masks read, together."""
        masks = list(self.children())
        needs = frozenset().union(*(mask.needs for mask in masks))
        sites = next((mask.sites for mask in masks if "activations" in mask.needs), self.reward.sites)
        layers = [mask.hidden_layers for mask in masks if "hidden_states" in mask.needs]
        some = None if None in layers else tuple(sorted({index for read in layers for index in read}))
        return FeatureRequest(needs, sites, some)

    @property
    def follow_policy(self) -> bool:
        """Whether either mask reads the policy itself, and so comes after its forward."""
        return bool(self.request.needs & OF_POLICY)

    @property
    def need_all_tokens(self) -> bool:
        """Whether tokens whose masks are zero must be computed too."""
        return self.follow_policy or any(mask.zeros_have_gradient for mask in self.children())

    def of(self, role: str) -> TokenMask:
        """The mask of a role, `reward` or `kl`; a shared one has both."""
        return self.reward if self.kl is None else getattr(self, role)

    def at_step(self, number: int) -> None:
        """Tell both masks the host's optimizer step."""
        for mask in self.children():
            mask.at_step(number)

    def forward(self, features: ReferenceFeatures, tokens: ResponseTokens) -> MaskPair:
        """Both masks, float32 (float64 where a mask's are) [N] each.

        Raises:
            SparsePOError: on the first batch a mask fails, or returns what cannot be used; the line names it.
        """
        reward = self._weigh("reward", features, tokens)
        return MaskPair(reward, self._weigh("kl", features, tokens) if self.kl else reward)

    def _weigh(self, role: str, features: ReferenceFeatures, tokens: ResponseTokens) -> Tensor:
        mask = getattr(self, role)
        dtype = next((p.dtype for p in mask.parameters() if p.is_floating_point()), None)
        if dtype is not None and not mask.converts_features:
            features = features.to(dtype)
        if role in self._looked_at:
            weights = mask(features, tokens)
        else:
            weights = _first_look(mask, features, tokens, self.names[role])
            self._looked_at.add(role)
        return weights.to(torch.promote_types(weights.dtype, torch.float32))


def build_masks(config: LossConfig, hidden_size: int, num_layers: int, seed: int) -> Masks | None:
    """The masks that a config describes; None for a loss without any.

    Args:
        config: The loss.
        hidden_size: d of the reference model.
        num_layers: L of the reference model.
        seed: The host's seed; the second of two masks gets the next one.

    Raises:
        SparsePOError: a constructor refuses an option or fails; the line names the option, or the place of the fault.
    """
    if config.reward is None:
        return None
    given = dict(zip(FROM_RUN, (hidden_size, num_layers, seed), strict=True))
    # The start depends on the seed alone, and not on what the host drew before.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        masks = {}
        for role in config.masks:
            masks[role] = _build_mask(config, role, given)
            given["seed"] += 1
    names = {role: f"{role} mask {mask.mask!r}" for role, mask in config.masks.items()}
    return Masks(**masks, names=names)


def learns(mask: nn.Module) -> bool:
    """Whether there is anything to train."""
    return any(parameter.requires_grad for parameter in mask.parameters())


def refuse_idle_keys(config: LossConfig, masks: Masks | None) -> None:
    """Refuse what would have no effect with these masks.

    Raises:
        SparsePOError: names the key.
    """
    if masks is None:
        return
    idle = {}
    if config.offload_features and "hidden_states" not in masks.request.needs:
        idle["offload_features"] = "no mask reads hidden states"
    if "metrics_every" in config.model_fields_set and masks.need_all_tokens:
        idle["metrics_every"] = "tokens of these masks are never left out"
    for role, key in objective_class(config.loss).regularises.items():
        mask = config.masks.get(role, config.reward).mask
        if config.objective.get(key) and not learns(masks.of(role)):
            idle[key] = f"mask {mask!r} has nothing to learn"
    if not learns(masks):
        for key in {"mask_lr", "mask_weight_decay", "on_dead_mask"} & config.model_fields_set:
            idle[key] = f"mask {config.reward.mask!r} has nothing to learn"
        seeded = any("seed" in parameters(type(mask)) for mask in masks.children())
        if config.kl == config.reward and not seeded:
            idle["shared: false"] = (
                f"both masks would be the same {config.kl.mask!r}; give them different options under reward and kl"
            )
    for key, reason in idle.items():
        raise SparsePOError(f"{config.section}.{key} has no effect: {reason}")


def _build_mask(config: LossConfig, role: str, given: dict[str, int]) -> TokenMask:
    name, options = config.masks[role].mask, config.masks[role].options
    apart = config.kl is not None and config.kl != config.reward
    cls = mask_class(name, f"{config.section}.mask")
    asked = {key: value for key, value in given.items() if key in parameters(cls)}
    where = f"{config.section}.{role}" if apart else config.section
    mask = construct(cls, {**asked, **options}, f"mask {name!r}", where)
    if any(map(is_lazy, mask.parameters())):
        raise SparsePOError(
            f"mask {name!r} has parameters that a first batch would shape (lazy modules); give their sizes"
        )
    undeclared = mask.needs - (cls.needs & set(_FEATURES))
    if undeclared:
        raise SparsePOError(
            f"mask {name!r} needs {', '.join(sorted(undeclared))}: its class must declare all of its `needs`, "
            f"of {', '.join(_FEATURES)}"
        )
    if "oracle_logps" in mask.needs and config.oracle is None:
        raise SparsePOError(f"mask {name!r} needs oracle_logps and has no option `oracle` that names the model")
    return mask


def _first_look(mask: TokenMask, features: ReferenceFeatures, tokens: ResponseTokens, name: str) -> Tensor:
    """The result of a mask's first call, after a look at it and at what it was given."""
    before = _fingerprints(features, tokens)
    with naming_faults(f"{name} failed", inspect.getsourcefile(type(mask))):
        try:
            weights = mask(features, tokens)
        except SparsePOError as error:
            raise SparsePOError(f"{name}: {error}", error.about) from error
    if problem := _problem(weights, tokens, mask.signed):
        raise SparsePOError(f"{name} {problem}")
    # Where what it reads is not finite the step finds out why.
    if not weights.isfinite().all() and all(value.isfinite().all() for value in features.tensors().values()):
        raise SparsePOError(f"{name} returns weights that are not finite, though all that it reads is")
    after = _fingerprints(features, tokens)
    if changed := [key for key in before if after.get(key) != before[key]]:
        raise SparsePOError(f"{name} changes {', '.join(changed)}, which masks may only read")
    return weights


def _problem(weights: object, tokens: ResponseTokens, signed: bool) -> str | None:
    """What is wrong with a mask's result, if anything."""
    needed = f"one floating weight for each of the {len(tokens)} response tokens is needed"
    if not isinstance(weights, Tensor):
        return f"returns {type(weights).__name__}, {needed}"
    if weights.shape != tokens.labels.shape:
        return f"returns shape {list(weights.shape)}, {needed}"
    if not weights.is_floating_point():
        return f"returns {weights.dtype}, {needed}"
    if weights.device != tokens.labels.device:
        return f"returns weights on {weights.device}, the tokens are on {tokens.labels.device}"
    if not signed and (weights < 0).any():
        return (
            f"returns a negative weight ({weights.min().item():.3g}); a class whose weights may be says signed = True"
        )
    return None


def _fingerprints(features: ReferenceFeatures, tokens: ResponseTokens) -> dict[str, tuple]:
    """What tells whether a tensor is still the same one with the same values, without a copy of it."""
    index = {name: value for name, value in vars(tokens).items() if isinstance(value, Tensor)}
    named = {f"tokens.{name}": value for name, value in index.items()}
    named |= {f"features.{name}": value for name, value in features.tensors().items()}
    return {name: (id(t), t._version, repr(t.sum(dtype=torch.float64).item())) for name, t in named.items()}
