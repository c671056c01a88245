"""An exponential moving average of weights, kept beside those that are trained."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import load_file, save
from torch import nn

from ..writing import write_bytes

# The weights as trained, in a checkpoint whose model.safetensors holds the average.
TRAINED_WEIGHTS = "trained_weights.safetensors"


class WeightAverage:
    """The moving average of a model's trainable weights.

    The decay starts low, min(decay, (1 + n) / (10 + n)) after n updates, so that the random start is soon forgotten
    (as in TensorFlow's ExponentialMovingAverage). What is not trained, BatchNorm's statistics among it, is left alone.

    Args:
        model: the model.
        decay: weight of the past at each update, between 0 and 1.
        updates: number of updates made before, where a run is resumed.
    """

    def __init__(self, model: nn.Module, decay: float, updates: int = 0) -> None:
        self.weights = [weight for weight in model.parameters() if weight.requires_grad]
        self.names = [name for name, weight in model.named_parameters() if weight.requires_grad]
        self.average = [weight.detach().clone() for weight in self.weights]
        self.decay, self.updates = decay, updates

    @torch.no_grad()
    def update(self) -> None:
        """Take in the weights after a step."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        torch._foreach_lerp_(self.average, [weight.detach() for weight in self.weights], 1 - decay)

    @torch.no_grad()
    def swap(self) -> None:
        """Put the average into the model and keep the trained weights, or the reverse."""
        for weight, average in zip(self.weights, self.average, strict=True):
            kept = weight.detach().clone()
            weight.copy_(average)
            average.copy_(kept)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The model with averaged weights, as long as the context lasts."""
        self.swap()
        try:
            yield
        finally:
            self.swap()

    def save_trained(self, folder: Path) -> None:
        """Save the weights as trained; called while the average is in the model."""
        # Not save_file, which writes under a name of its own first, and leaves that file where it is killed.
        weights = {name: tensor.contiguous() for name, tensor in zip(self.names, self.average, strict=True)}
        write_bytes(folder / TRAINED_WEIGHTS, save(weights))

    @torch.no_grad()
    def load_trained(self, folder: Path) -> None:
        """Go on from a checkpoint that holds the average: it stays the average, the trained weights come back.

        Raises:
            OSError: where the checkpoint was saved without an average.
        """
        path = folder / TRAINED_WEIGHTS
        if not path.exists():
            raise OSError(f"{folder} holds no {TRAINED_WEIGHTS}: it was trained without ema_decay, resume it without")
        trained = load_file(path)
        for name, weight in zip(self.names, self.weights, strict=True):
            weight.copy_(trained[name])
