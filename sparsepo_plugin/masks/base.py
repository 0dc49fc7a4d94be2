"""What every mask is."""

from torch import Tensor, nn

from ..decoder import SITES
from ..reference import ReferenceFeatures
from ..tokens import ResponseTokens


class TokenMask(nn.Module):
    """A weight for every response token, read off the reference model's state before that token (paper §2.3).

    A constructor may ask for `hidden_size`, `num_layers` and `seed` by name; its other parameters are the options that
    the YAML may set, checked against their annotations. Parameters are trained, buffers are saved.

    Attributes:
        needs: What of `ReferenceFeatures` the mask reads: any of hidden_states, activations, last_hidden, logps,
            oracle_logps (with an option `oracle`, the model's name), policy_logps and policy_hidden (which come after
            the policy's forward, so that no token is left out of it); and weights, those of `ResponseTokens`, which
            come with the data. A class declares all that it may read; a constructor may set less.
        sites: Kinds of site that `activations` should cover.
        hidden_layers: Layers whose `hidden_states` the mask reads, counted from 0; None for all.
        signed: Whether weights may be negative.
        causal: Whether the weight of a token depends on nothing but the tokens before it. A mask that says no is not
            checked for it.
        zeros_have_gradient: Whether the mask may get a gradient where it is exactly zero, as with a straight-through
            estimator; where it cannot, such tokens may be left out of the vocabulary projections.
        converts_features: Whether the mask brings features to a dtype itself, row by row or layer by layer; else they
            arrive in that of its parameters.
    """

    needs: frozenset[str] = frozenset()
    sites: tuple[str, ...] = SITES
    hidden_layers: tuple[int, ...] | None = None
    signed: bool = False
    causal: bool = True
    zeros_have_gradient: bool = True
    converts_features: bool = False

    def at_step(self, number: int) -> None:
        """What the host's optimizer step is, before each of its training batches; one step may have several."""

    def forward(self, features: ReferenceFeatures, tokens: ResponseTokens) -> Tensor:
        """Weights of the batch's response tokens. Floating [N], not negative unless `signed`."""
        raise NotImplementedError
