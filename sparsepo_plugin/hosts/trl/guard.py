"""The guard of Hugging Face's own loop, where no DeepSpeed engine makes the updates."""

from typing import Any

from ...faults import GradientWatch
from ..guard import Guard, all_finite, gradient_of, on_all_ranks


class LoopGuard(Guard):
    """An update is left out by dropping the gradients; the learning rate's schedule does not go on either."""

    def check_gradients(self, trainer: Any, watch: GradientWatch) -> None:
        """Look at the gradients of a step before they update anything.

        Args:
            trainer: After the last backward of a step.
            watch: What the step kept of its gradients.

        Raises:
            NonFinite: one is not finite, and such steps are not skipped, or too many in a row were; on all ranks.
        """
        accelerator, optimizer = trainer.accelerator, trainer.optimizer
        gradients = map(gradient_of, trainer.model.parameters())
        finite = on_all_ranks(all_finite(gradients), accelerator.device)
        scales = accelerator.scaler is not None and accelerator.scaler.get_scale() > 1
        self.judge(finite, trainer.state.global_step + 1, watch, scales=scales, gradient=gradient_of)
        if accelerator.scaler is None:  # else it leaves the update out itself
            optimizer._is_overflow = not finite
            if not finite:
                optimizer.zero_grad()
