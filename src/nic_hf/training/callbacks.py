"""Callbacks of `CaptioningTrainer` for time, data order and checkpoints."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accelerate import PartialState
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..data.torch_datasets import CaptionDataset
from .resume_check import record_files

if TYPE_CHECKING:
    from ..data.stream_loader import StreamLoader


class TrainingClock(TrainerCallback):
    """Measure the time spent on training, without evaluations and including the runs that this one resumes."""

    def __init__(self) -> None:
        self._before = 0.0
        self._since: float | None = None
        self.running = False

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Start where the clock of the checkpoint stopped."""
        self._before = max((line.get("train_seconds", 0.0) for line in state.log_history), default=0.0)
        self._since, self.running = time.monotonic(), True

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Stop."""
        self.running = False

    @property
    def seconds(self) -> float:
        """Seconds of training so far."""
        return self._before + (0.0 if self._since is None else time.monotonic() - self._since)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Do not count what the context does."""
        self._before, self._since = self.seconds, None
        try:
            yield
        finally:
            self._since = time.monotonic()


class EpochViewsCallback(TrainerCallback):
    """Draw other views of the photos in each epoch (see [`CaptionDataset.set_epoch`]).

    Accelerate passes the epoch to a sampler, and to a dataset only if its sampler has no use for it.
    """

    def __init__(self, dataset: CaptionDataset) -> None:
        self.dataset = dataset

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Choose the views of the epoch."""
        self.dataset.set_epoch(int(state.epoch or 0))

    on_evaluate = on_epoch_begin  # an evaluation of the same dataset starts another epoch


class StreamPassesCallback(TrainerCallback):
    """Let `epoch` count passes over a stream; Trainer counts all `max_steps` as one epoch."""

    def __init__(self) -> None:
        self.stream: StreamLoader | None = None

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Set the epoch."""
        if self.stream is not None:
            state.epoch = self.stream.passes()


class CheckpointCallback(TrainerCallback):
    """Record the files of each checkpoint, and do not save again the one that a run resumes from.

    Attributes:
        saving: the checkpoint that is being written, if any.
    """

    def __init__(self) -> None:
        self.saving: Path | None = None
        self._first_step = 0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Note where the run starts."""
        self.saving, self._first_step = None, state.global_step

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Save nothing if nothing was trained: a run that had ended was resumed."""
        if state.global_step and state.global_step == self._first_step:
            control.should_save = False

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Record the files, once every process has written its own."""
        PartialState().wait_for_everyone()
        if args.should_save and self.saving is not None:
            record_files(self.saving)
        self.saving = None
