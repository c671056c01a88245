"""Stop training when the loss, gradients or parameters become NaN or Inf."""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch.nn.utils import get_total_norm
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from .checkpoint_integrity import last_checkpoint


class TrainingDivergedError(ValueError):
    """The loss, a gradient or a parameter is NaN or Inf; the message names the step and the last checkpoint."""


class DivergenceCallback(TrainerCallback):
    """Watch the loss and the gradient norm without waiting for a GPU at each step.

    Values stay on the device until `check` reads them, before each log entry and each checkpoint. On a CPU there is
    nothing to wait for: they are checked at once, the gradient before it changes the parameters.
    """

    def __init__(self, args: TrainingArguments) -> None:
        self.args = args
        self._seen: dict[str, torch.Tensor] = {}  # step and value: the first that is not finite, or the last

    def on_pre_optimizer_step(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: Any = None,
        optimizer: Any = None,
        **kwargs: Any,
    ) -> None:
        """Watch the gradient norm. A scaler of float16 meets NaN and Inf now and then, and skips the step itself."""
        if getattr(optimizer, "scaler", None) is None:
            self.watch("the gradient norm", gradient_norm(model), state.global_step + 1)

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Check what was watched."""
        self.check()

    def watch(self, name: str, value: torch.Tensor, step: int) -> None:
        """Watch a value of a step.

        Raises:
            TrainingDivergedError: if it is on the CPU, and NaN or Inf.
        """
        value = value.detach().float()
        now, before = torch.stack([torch.full_like(value, step), value]), self._seen.get(name)
        self._seen[name] = now if before is None else torch.where(torch.isfinite(before[1]), now, before)
        if at_hand(value):
            self.check()

    def check(self) -> None:
        """Check the watched values, which waits for the device.

        Raises:
            TrainingDivergedError: naming the first value that is NaN or Inf, and its step.
        """
        seen = [(*numbers.tolist(), name) for name, numbers in self._seen.items()]
        self._seen = {}
        wrong = [(step, name, value) for step, value, name in seen if not math.isfinite(value)]
        if wrong:
            step, name, value = min(wrong, key=lambda found: found[0])
            raise self._diverged(f"{name} is {value}", int(step))

    def check_parameters(self, parameters: Iterable[tuple[str, torch.nn.Parameter]], step: int) -> None:
        """Check the trained parameters.

        Raises:
            TrainingDivergedError: naming the first parameter with NaN or Inf.
        """
        for name, parameter in parameters:
            if parameter.requires_grad and not torch.isfinite(parameter).all():
                raise self._diverged(f"the parameter {name} contains NaN or Inf", step)

    def _diverged(self, what: str, step: int) -> TrainingDivergedError:
        saved = last_checkpoint(self.args.output_dir) if self.args.output_dir else None
        kept = f"the last checkpoint, {saved}, is intact" if saved else "no checkpoint was saved before"
        return TrainingDivergedError(
            f"{what} at step {step}; {kept}. Lower learning_rate"
            f" ({self.args.learning_rate}) or max_grad_norm ({self.args.max_grad_norm})"
        )


def gradient_norm(model: torch.nn.Module) -> torch.Tensor:
    """The norm of all gradients of a model, on its device."""
    norm: Any = get_total_norm([weight.grad for weight in model.parameters() if weight.grad is not None])
    return norm.full_tensor() if hasattr(norm, "full_tensor") else norm  # sharded by FSDP2


def at_hand(value: torch.Tensor) -> bool:
    """Whether a value can be read without waiting for a device."""
    return value.device.type == "cpu"
