"""The vocabulary head of a Hugging Face decoder, taught to serve response rows only."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch import Tensor, nn

from .errors import SparsePOError

# Decoders that change the logits after the head: row statistics computed from the head alone would be wrong.
_LOGIT_CHANGES = (
    "final_logit_softcapping",
    "logits_soft_cap",
    "logit_scale",
    "logits_scaling",
    "lm_head_multiplier",
    "output_multiplier",
)


class ResponseHead(nn.Linear):
    """An `nn.Linear` vocabulary head whose forward can be borrowed for the length of one model call.

    The work happens inside the head's own forward because under ZeRO-3 its weight exists only there and in the
    matching backward. State-dict keys and weight tying stay what they were.
    """

    serve: Callable[["ResponseHead", Tensor], Tensor] | None = None

    @classmethod
    def of(cls, model: nn.Module) -> "ResponseHead":
        """The output embedding of `model`, made a `ResponseHead` in place.

        Args:
            model: A Hugging Face causal language model, or a PEFT model around one.

        Raises:
            SparsePOError: the logits are not one plain linear projection of the last hidden state.
        """
        head = model.get_output_embeddings()
        if type(head) is nn.Linear:
            _check_logits(model.config)
            head.__class__ = cls
        if type(head) is not cls:
            raise SparsePOError(
                f"the vocabulary head of {type(model).__name__} is {type(head).__name__}, torch.nn.Linear is needed: "
                "a LoRA adapter or a quantised weight on the head cannot be used with token-level losses"
            )
        return head

    @contextmanager
    def serving(self, serve: Callable[["ResponseHead", Tensor], Tensor]) -> Iterator[None]:
        """Within the context the head returns `serve(head, hidden)`, hidden being [B, T, d], in place of logits."""
        self.serve = serve
        try:
            yield
        finally:
            self.serve = None

    def forward(self, hidden: Tensor) -> Tensor:
        """Logits [B, T, V], or what the borrower computes from the hidden states."""
        return super().forward(hidden) if self.serve is None else self.serve(self, hidden)


def _check_logits(config) -> None:
    for key in _LOGIT_CHANGES:
        if getattr(config.get_text_config(), key, None) not in (None, 1, 1.0):
            raise SparsePOError(
                f"the model's config sets {key}: its logits are not the plain projection of the last hidden state "
                "that token-level losses are computed from"
            )
