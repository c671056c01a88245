"""Training that ended in numbers that are none."""

import math
from collections.abc import Iterable

import torch

from .arguments import CaptioningTrainingArguments
from .checkpoint_integrity import last_checkpoint


class TrainingDivergedError(ValueError):
    """Loss, gradient or weights became infinite or NaN; the message names the step and the last checkpoint."""


class FiniteNumbers:
    """Watches losses and gradients without waiting for a GPU at each step.

    What was seen stays on the device until `check` reads it: at a line of the log, and before a checkpoint. On a CPU
    there is nothing to wait for, and what is no number is found at once.
    """

    def __init__(self, args: CaptioningTrainingArguments) -> None:
        self.args = args
        self._seen: dict[str, torch.Tensor] = {}  # step and value: the first that was no number, or the last

    def watch(self, what: str, value: torch.Tensor, step: int) -> None:
        """Look at a number of a step.

        Raises:
            TrainingDivergedError: where it is none, and at hand.
        """
        value = value.detach().float()
        now, before = torch.stack([torch.full_like(value, step), value]), self._seen.get(what)
        self._seen[what] = now if before is None else torch.where(torch.isfinite(before[1]), now, before)
        if at_hand(value):
            self.check()

    def check(self) -> None:
        """Wait for the device.

        Raises:
            TrainingDivergedError: naming the first number that was none, and its step.
        """
        seen = [(*numbers.tolist(), what) for what, numbers in self._seen.items()]
        self._seen = {}
        wrong = [(step, what, value) for step, value, what in seen if not math.isfinite(value)]
        if wrong:
            step, what, value = min(wrong, key=lambda found: found[0])
            raise self._diverged(f"{what} is {value}", int(step))

    def check_weights(self, weights: Iterable[tuple[str, torch.nn.Parameter]], step: int) -> None:
        """Look at all trained weights.

        Raises:
            TrainingDivergedError: naming the first that are no numbers.
        """
        for name, weight in weights:
            if weight.requires_grad and not torch.isfinite(weight).all():
                raise self._diverged(f"the weights {name} are no numbers", step)

    def _diverged(self, what: str, step: int) -> TrainingDivergedError:
        saved = last_checkpoint(self.args.output_dir) if self.args.output_dir else None
        kept = f"the last checkpoint, {saved}, is as it was" if saved else "no checkpoint was saved before"
        return TrainingDivergedError(
            f"{what} at step {step}; {kept}. Lower learning_rate"
            f" ({self.args.learning_rate}) or max_grad_norm ({self.args.max_grad_norm})"
        )


def at_hand(value: torch.Tensor) -> bool:
    """Whether a number can be read without waiting for a device."""
    return value.device.type == "cpu"
