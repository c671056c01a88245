"""Show training progress: a progress bar on terminals, and readable lines on standard error."""

import sys
import time
from typing import Any

from tqdm.auto import tqdm
from transformers import PrinterCallback, ProgressCallback, Trainer, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import has_length

from ..evaluation.score_names import SCORES, percent
from ..progress_bar import progress_bar, seconds_a_line

# Values that Trainer logs but that are not useful during training.
_LEFT_OUT = ("epoch", "total_flos", "train_loss")
_LEFT_OUT_ENDINGS = ("_runtime", "_per_second", "_seconds")


def show_progress(trainer: Trainer) -> None:
    """Report progress with [`TrainingProgress`] instead of Trainer's bar and dictionaries on standard output."""
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    trainer.add_callback(TrainingProgress)


class TrainingProgress(ProgressCallback):
    """Trainer's progress bar, with log entries as lines on standard error.

    Standard output is left to results. If no bar is shown, the lines contain the remaining time, and `nic` writes one
    at least every half minute.
    """

    def __init__(self) -> None:
        super().__init__()
        self._begun = self._said = 0.0
        self._first_step = 0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Show the bar unless bars are disabled."""
        self._begun = self._said = time.monotonic()
        self._first_step = state.global_step
        super().on_train_begin(args, state, control, **kwargs)
        if args.disable_tqdm and self.training_bar is not None:
            self.training_bar.disable = True

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Update the bar; where lines stand for it, write one if there was none for long."""
        super().on_step_end(args, state, control, **kwargs)
        seconds = seconds_a_line()
        if seconds and time.monotonic() - self._said >= seconds and not args.disable_tqdm:
            self._say("training", state)

    def on_prediction_step(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        eval_dataloader: Any = None,
        **kwargs: Any,
    ) -> None:
        """Update the bar of an evaluation."""
        if args.disable_tqdm:
            return
        if (
            seconds_a_line()
            and self.prediction_bar is None
            and state.is_world_process_zero
            and has_length(eval_dataloader)
        ):
            self.prediction_bar = progress_bar(total=len(eval_dataloader), desc="Evaluating")
        super().on_prediction_step(args, state, control, eval_dataloader=eval_dataloader, **kwargs)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Write a log entry as a line."""
        shown = {name: value for name, value in (logs or {}).items() if not _is_left_out(name)}
        if shown:
            self._say(", ".join(f"{name} {_short(name, value)}" for name, value in shown.items()), state)

    def _say(self, text: str, state: TrainerState) -> None:
        if not state.is_world_process_zero:
            return
        self._said = time.monotonic()
        line = f"step {state.global_step:,} of {state.max_steps:,}, epoch {state.epoch or 0:.2f}: {text}"
        if self.training_bar is None or self.training_bar.disable:
            line += self._time_left(state)
        tqdm.write(line, file=sys.stderr)  # print() would break the bar

    def _time_left(self, state: TrainerState) -> str:
        done, left = state.global_step - self._first_step, state.max_steps - state.global_step
        if done < 1 or left < 1:
            return ""
        return f"; {tqdm.format_interval((time.monotonic() - self._begun) / done * left)} left"


def _is_left_out(name: str) -> bool:
    return name in _LEFT_OUT or name.endswith(_LEFT_OUT_ENDINGS)


def _short(name: str, value: Any) -> str:
    if isinstance(value, float) and name.removeprefix("eval_").removesuffix("_smoothed") in SCORES:
        return f"{percent(value, 2)} %"  # as results and model cards have it; the log keeps the fraction
    return f"{value:.4g}" if isinstance(value, float) else str(value)
