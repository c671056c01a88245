"""Exponential moving average (EMA) of the trained parameters."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..writing import write_bytes

# The parameters as trained, in a checkpoint whose model.safetensors contains the average.
TRAINED_WEIGHTS = "trained_weights.safetensors"


class WeightAverage:
    """The moving average of a model's trainable parameters.

    The decay starts low, at min(decay, (1 + n) / (10 + n)) after n updates, so that the random initialization is soon
    forgotten (as in TensorFlow's ExponentialMovingAverage). Frozen parameters and buffers, such as BatchNorm
    statistics, are not averaged. `AveragedModel` of PyTorch would copy them too, and copies its counter to the device
    at each update, which waits for a GPU.

    Args:
        model: the model.
        decay: weight of the past in each update, between 0 and 1.
        updates: number of updates before, when a run is resumed.
    """

    def __init__(self, model: nn.Module, decay: float, updates: int = 0) -> None:
        trained = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
        self.names, self.weights = list(trained), list(trained.values())
        self.average = [weight.detach().clone() for weight in self.weights]
        self.decay, self.updates = decay, updates

    def update(self) -> None:
        """Update the average after a step."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        get_ema_multi_avg_fn(decay)(self.average, [weight.detach() for weight in self.weights], self.updates)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange the trained parameters in the model and the average."""
        for weight, average in zip(self.weights, self.average, strict=True):
            kept = weight.detach().clone()
            weight.copy_(average)
            average.copy_(kept)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Put the average into the model while the context lasts."""
        self.swap()
        try:
            yield
        finally:
            self.swap()

    def save_trained(self, folder: Path) -> None:
        """Save the trained parameters; called while the average is in the model."""
        # Not save_file, which first writes under a name of its own and leaves that file behind when it is killed.
        tensors = zip(self.names, self.average, strict=True)
        write_bytes(folder / TRAINED_WEIGHTS, save({name: tensor.contiguous() for name, tensor in tensors}))

    @torch.no_grad()
    def load_trained(self, folder: Path) -> None:
        """Restore the trained parameters of a checkpoint into the model.

        Raises:
            OSError: if the checkpoint was saved without an average.
        """
        path = folder / TRAINED_WEIGHTS
        if not path.exists():
            raise OSError(f"{folder} has no {TRAINED_WEIGHTS}: it was trained without ema_decay, resume it without")
        trained = load_file(path)
        for name, weight in zip(self.names, self.weights, strict=True):
            weight.copy_(trained[name])


class WeightAverageCallback(TrainerCallback):
    """Keep the average of a run: evaluate and save it instead of the trained parameters, and leave it in the model.

    Args:
        decay: see [`WeightAverage`].

    Attributes:
        resumed_from: the checkpoint that the run resumes from. Its model.safetensors contains the average.
        average: the average, during training only.
    """

    def __init__(self, decay: float) -> None:
        self.decay = decay
        self.resumed_from: Path | None = None
        self.average: WeightAverage | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **kwargs: Any
    ) -> None:
        """Start the average from the parameters in the model."""
        self.average = WeightAverage(model, self.decay, state.global_step)
        if self.resumed_from is not None:
            self.average.load_trained(self.resumed_from)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Update the average."""
        if self.average is not None:
            self.average.update()

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Leave the average in the model, unless it is in the best checkpoint, which Trainer has just loaded."""
        if self.average is not None and not (args.load_best_model_at_end and state.best_model_checkpoint):
            self.average.swap()
        self.average = None

    @contextmanager
    def applied(self) -> Iterator[WeightAverage | None]:
        """Put the average into the model while the context lasts; outside of training do nothing."""
        if self.average is None:
            yield None
            return
        with self.average.applied():
            yield self.average
