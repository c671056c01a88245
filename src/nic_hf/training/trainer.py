"""A Trainer whose evaluation captions photos."""

import json
import logging
import time
import traceback
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F
from transformers import (
    EarlyStoppingCallback,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, EvalLoopOutput, TrainOutput

from ..configuration_nic import IGNORED_LABEL
from ..data.length_grouped_sampler import LengthGroupedSampler
from ..data.stream_loader import StreamLoader
from ..data.streaming import StreamingCaptionDataset
from ..data.torch_datasets import CaptionCollator, CaptionDataset, PhotoDataset
from ..dataset_captions import generate_captions
from ..evaluation.scores import score_captions
from ..evaluation.words import caption_length
from ..writing import write_text
from .arguments import CaptioningTrainingArguments
from .checkpoint_integrity import begin_checkpoint, last_checkpoint, read_json, why_unfinished
from .divergence import FiniteNumbers
from .ema import WeightAverage
from .fine_tuning import set_backbone_learning_rate
from .hub_trainer import PublishingTrainer
from .resume_check import ResumeError, check_provenance, describe, save_provenance
from .sample_captions import EpochViewsCallback, SampleCaptionsCallback
from .scheduled_sampling import mixed_inputs

logger = logging.getLogger(__name__)


class CaptioningTrainer(PublishingTrainer):
    """`Trainer`, with captions in its evaluation.

    The loss is taken over every caption of `eval_dataset`, and each photo is captioned once, so that evaluation costs
    what it must and a photo with five captions is not captioned five times. Token ids are all that is kept, so that
    memory stays flat. With several processes each photo counts once.

    Metrics:
        `eval_loss`: the mean over the words of all captions. Trainer's own is a mean of batch means: it gives words
            in batches of short captions more weight, and moves with the batch size.
        `eval_bleu_4`, `eval_cider`: BLEU-4 and CIDEr-D against all captions of each photo, of `score_captions`.
        `eval_distinct`: share of captions that differ from all others. Near 0, the model says the same of every photo.
        `eval_words`: mean number of words.

    Every line of the log, and so of `trainer_state.json` in each checkpoint, has `train_seconds` too: the time spent
    on training up to then, without evaluations, and with that of the runs that this one was resumed from.

    With `ema_decay` the moving average of the weights is what is evaluated, saved and left in the model at the end.
    With `scheduled_sampling` some of the words read are the model's own (see [`mixed_inputs`]), from none at the first
    step to that share at the last.

    The `predictions` of `predict()` are the captions, one a photo.

    A checkpoint says in `provenance.json` what it was trained from, and a run with other words, another backbone or
    other data is not resumed from it. With `resume_from_checkpoint=True` the newest checkpoint that is whole is taken;
    `"last"` does the same, and starts from the beginning where there is none.

    `train_dataset` may be a [`StreamingCaptionDataset`], with `max_steps`: each process and each of its workers reads
    its share, and a checkpoint keeps the position of each. `epoch` in the log then counts passes over the data.

    A model card is written beside each checkpoint; `push_to_hub` pushes the captioner with it (see
    [`PublishingTrainer`]).

    Args:
        *args, **kwargs: as for `Trainer`. `data_collator` is [`nic_hf.data.CaptionCollator`] where it is not given,
            and `processing_class`, the processor, is saved with each checkpoint.
        eval_generate_kwargs: passed to `generate()` in evaluation, such as `{"num_beams": 1}`.

    Raises:
        TrainingDivergedError: from `train()`, where loss, gradient or weights are no numbers any more.
        ResumeError: from `train()`, where the checkpoint is unfinished or damaged, or was trained from something else.
    """

    args: CaptioningTrainingArguments

    def __init__(self, *args: Any, eval_generate_kwargs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        kwargs.setdefault("data_collator", CaptionCollator())
        super().__init__(*args, **kwargs)
        self.eval_generate_kwargs = eval_generate_kwargs or {}
        self._loss_and_words: list[torch.Tensor] | None = None  # of each caption of the evaluation at hand
        self._finite = FiniteNumbers(self.args)
        self._training_since: float | None = None
        self._train_seconds: float | None = None  # before that moment
        self.average: WeightAverage | None = None
        if self.args.ema_decay:
            self.add_callback(_Averaging(self))
        for callback in self.callback_handler.callbacks:
            if isinstance(callback, SampleCaptionsCallback):
                callback.trackers = self.callback_handler.callbacks
        if self.args.early_stopping_patience is not None:
            self.add_callback(EarlyStoppingCallback(self.args.early_stopping_patience))
        self._provenance: dict[str, Any] = {}
        self._checkpoint: Path | None = None  # that this run was resumed from
        self._stream_from: Path | None = None  # the same, where the stream goes on too
        self.stream: StreamLoader | None = None  # where training is on one
        if isinstance(self.train_dataset, StreamingCaptionDataset):
            _check_stream(self.train_dataset, self.args)
            self.add_callback(_Passes(self))
        elif isinstance(self.train_dataset, CaptionDataset):
            self.add_callback(EpochViewsCallback(self.train_dataset))

    def create_optimizer(self, *args: Any, **kwargs: Any) -> torch.optim.Optimizer:
        """Trainer's, with the backbone's weights at `backbone_learning_rate`."""
        is_new = self.optimizer is None
        optimizer = super().create_optimizer(*args, **kwargs)
        if is_new and self.args.backbone_learning_rate is not None:
            model = self.accelerator.unwrap_model(self.model)
            set_backbone_learning_rate(optimizer, model, self.args.backbone_learning_rate)
        return optimizer

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> TrainOutput:
        """Trainer's, timed, and after a look at the checkpoint to go on from."""
        self._provenance = describe(
            self.accelerator.unwrap_model(self.model), self.processing_class, self.train_dataset
        )
        self._provenance["order"] = {
            "samples a step": self._train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size,
            "seed": self.args.seed if self.args.data_seed is None else self.args.data_seed,
        }
        checkpoint = self._checkpoint_to_resume(resume_from_checkpoint)
        self._checkpoint = None if checkpoint is None else Path(checkpoint)
        skip = self.args.ignore_data_skip
        self._stream_from = None if skip else self._checkpoint
        # Trainer would fetch and drop all batches before; a stream knows its position.
        self.args.ignore_data_skip = skip or isinstance(self.train_dataset, StreamingCaptionDataset)
        self._training_since, self._train_seconds = time.monotonic(), None
        try:
            result = super().train(checkpoint, *args, **kwargs)
            if self.average is not None and not (
                self.args.load_best_model_at_end and self.state.best_model_checkpoint
            ):
                self.average.swap()
            return result
        finally:
            self._training_since, self._train_seconds, self.average = None, None, None
            self.args.ignore_data_skip = skip

    def _checkpoint_to_resume(self, asked: str | bool | None) -> str | None:
        """The checkpoint to go on from, checked; None to begin anew."""
        if not asked:
            return None
        folder = self.args.output_dir or "."
        checkpoint = last_checkpoint(folder) if asked is True or asked == "last" else str(asked)
        if checkpoint is None:
            if asked == "last":
                return None
            raise ResumeError(f"{folder} holds no checkpoint to resume from that is whole")
        problem = why_unfinished(checkpoint)
        if problem is not None:
            other = last_checkpoint(Path(checkpoint).parent)
            instead = f"resume from {other}" if other else "no other checkpoint there is whole"
            raise ResumeError(f"{checkpoint} is unfinished or damaged ({problem}); {instead}")
        check_provenance(self._provenance, checkpoint, self.processing_class)
        return checkpoint

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Trainer's, with `train_seconds` while it trains; it stops where loss or gradient are no numbers."""
        self._finite.check()
        if self._training_since is not None or self._train_seconds is not None:
            logs["train_seconds"] = round(self._trained_for(), 3)
        if self.stream is not None and self.stream.skipped():
            logs["skipped"] = self.stream.skipped()  # by this process
        super().log(logs, start_time)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Trainer's, of the averaged weights where there are such; its time is not counted as training."""
        if self._training_since is None:
            return super().evaluate(*args, **kwargs)
        self._train_seconds, self._training_since = self._trained_for(), None
        with nullcontext() if self.average is None else self.average.applied():
            metrics = super().evaluate(*args, **kwargs)
        self._training_since = time.monotonic()
        return metrics

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Trainer's; a checkpoint of a run with averaged weights holds those, and beside them the trained ones."""
        if self.average is None:
            super().save_model(output_dir, _internal_call)
            return
        with self.average.applied():
            super().save_model(output_dir, _internal_call)
            if _internal_call and self.args.should_save and output_dir is not None:
                self.average.save_trained(Path(output_dir))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        if self.args.ema_decay:
            self.average = WeightAverage(self.accelerator.unwrap_model(model or self.model), self.args.ema_decay)
            self.average.load_trained(Path(resume_from_checkpoint))

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, torch.Tensor | Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """Trainer's, after some words read were replaced by the model's own where there is scheduled sampling."""
        if model.training and self.args.scheduled_sampling:
            share = self.args.scheduled_sampling * self.state.global_step / max(1, self.state.max_steps)
            words = mixed_inputs(self.accelerator.unwrap_model(model), inputs, share)
            inputs = {**inputs, "decoder_input_ids": words}
        return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> tuple[list, torch.Tensor | int | None]:
        """Trainer's; nothing where a run that had ended is resumed: Trainer would train it one step further."""
        if self.state.global_step >= self.state.max_steps:
            return [], None
        return super().get_batch_samples(*args, **kwargs)

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Trainer's, which stops where the loss is no number any more."""
        loss = super().training_step(*args, **kwargs)
        self._finite.watch("the loss", loss, self.state.global_step + 1)
        return loss

    def _get_grad_norm(self, model: torch.nn.Module, grad_norm: Any = None) -> Any:
        """Trainer's, which stops where the gradient is no number; on a CPU, before it changes the weights."""
        norm = super()._get_grad_norm(model, grad_norm)
        # A scaler of half precision meets such gradients now and then, and leaves the step out itself.
        if norm is not None and self.accelerator.scaler is None:
            self._finite.watch("the norm of the gradient", torch.as_tensor(norm), self.state.global_step + 1)
        return norm

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        """Trainer's, in an order that a kill at any moment leaves a whole checkpoint: this one or the one before.

        Raises:
            OSError: naming the folder, where it cannot be written or the disk is full.
        """
        self._finite.check()
        weights = self.accelerator.unwrap_model(self.model).named_parameters()
        self._finite.check_weights(weights, self.state.global_step)
        folder = Path(self._get_output_dir(trial)) / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        if self._checkpoint is not None and folder.resolve() == self._checkpoint.resolve():
            return  # nothing was trained since
        if self.args.should_save:
            begin_checkpoint(folder)
        try:
            super()._save_checkpoint(model, trial)
        except (OSError, RuntimeError) as error:
            # PyTorch names no file where a disk is full, and its own writer raises a plain RuntimeError.
            writers = {frame.f_globals.get("__name__") for frame, _ in traceback.walk_tb(error.__traceback__)}
            ours = isinstance(error, OSError) or "torch.serialization" in writers
            if not ours or str(folder) in str(error):
                raise
            reason = error if isinstance(error, OSError) else f"the disk may be full ({error})"
            raise OSError(f"cannot write {folder}: {reason}; go on with a checkpoint before it") from error

    def _save_rng_state(self, output_dir: str) -> None:
        """Trainer's, and the positions in a stream; last before the file that says that the checkpoint is whole."""
        super()._save_rng_state(output_dir)
        folder = Path(output_dir)
        if self.stream is not None:
            write_text(folder / self._stream_file(), json.dumps(self.stream.state_dict()) + "\n")
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            save_provenance(self._provenance, folder)

    def get_train_dataloader(self) -> Any:
        """Trainer's; of a stream, this process's share, from the position of the checkpoint on."""
        if not isinstance(self.train_dataset, StreamingCaptionDataset):
            return super().get_train_dataloader()
        state = None
        if self._stream_from is not None:
            state = read_json(self._stream_from / self._stream_file())
            if state is None:
                raise ResumeError(
                    f"{self._stream_from} holds no {self._stream_file()}: it was not trained on a stream, or by fewer"
                    " processes. ignore_data_skip=True begins the stream anew"
                )
        workers = self.args.dataloader_num_workers
        self.stream = StreamLoader(
            self.train_dataset.share(self.args.process_index, self.args.world_size),
            self._train_batch_size,
            self.data_collator,
            state,
            num_workers=workers,
            pin_memory=self.args.dataloader_pin_memory,
            multiprocessing_context=self.args.dataloader_multiprocessing_context if workers else None,
            prefetch_factor=self.args.dataloader_prefetch_factor if workers else None,
        )
        return self.stream

    def _stream_file(self) -> str:
        return f"stream_{self.args.process_index}.json"

    def _trained_for(self) -> float:
        if self._train_seconds is None:  # the first line of this run: what came before was loaded with the checkpoint
            self._train_seconds = max((line.get("train_seconds", 0.0) for line in self.state.log_history), default=0.0)
        now = time.monotonic()
        return self._train_seconds + (now - (self._training_since or now))

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        dataset = self.train_dataset if train_dataset is None else train_dataset
        if (
            not isinstance(dataset, CaptionDataset)
            or dataset.photos.features is None
            or self.args.train_sampling_strategy != "random"
        ):
            # Where the backbone runs, padding is cheap, and batches of like captions are batches of like photos: the
            # BatchNorm of a backbone that learns should not see those.
            return super()._get_train_sampler(train_dataset)
        batch_size = self._train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        return LengthGroupedSampler(dataset.lengths(), batch_size, seed)

    def evaluation_loop(
        self,
        dataloader: Any,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """Trainer's loop over captions for the loss, then a caption for each photo."""
        dataset = dataloader.dataset
        self._loss_and_words = [] if isinstance(dataset, CaptionDataset) else None
        output = super().evaluation_loop(dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix)
        if self._loss_and_words is None:
            return output
        loss, words = torch.cat(self._loss_and_words).cpu().double().sum(0).tolist()
        captions = self.caption(dataset.photos)
        scores = {
            "loss": loss / words,
            **caption_metrics(captions, dataset.photos.references()),
        }
        metrics = {
            **(output.metrics or {}),
            **{f"{metric_key_prefix}_{name}": score for name, score in scores.items()},
        }
        return output._replace(predictions=np.array(list(captions.values())), metrics=metrics)

    def prediction_step(
        self,
        model: torch.nn.Module,
        inputs: dict[str, torch.Tensor | Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
        """Add up the loss and the words of a batch of captions; logits of a whole data set fit no memory."""
        if self._loss_and_words is None:
            return super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)
        inputs = self._prepare_inputs(inputs)
        labels = inputs["labels"]  # shape: (batch_size, sequence_length), or with captions in between
        with torch.no_grad(), self.compute_loss_context_manager():
            logits = model(**inputs, return_dict=True).logits.flatten(0, 1).float()
        losses = F.cross_entropy(logits, labels.flatten(), ignore_index=IGNORED_LABEL, reduction="none")
        counts = (labels != IGNORED_LABEL).flatten(1).sum(1)
        sums = torch.stack([losses.view(len(labels), -1).sum(1), counts], dim=1)
        # Gathered a sample at a time: the last batch repeats some, to give each process as many; those are dropped.
        self._loss_and_words.append(self.gather_function(sums))
        return None, None, None

    def caption(self, photos: PhotoDataset, **generate_kwargs: Any) -> dict[str, str]:
        """Caption photos with the model as it is (see [`generate_captions`])."""
        return generate_captions(
            self.accelerator.unwrap_model(self.model),
            photos,
            batch_size=self.args.eval_batch_size,
            num_workers=self.args.dataloader_num_workers,
            progress=not self.args.disable_tqdm,
            **{**self.eval_generate_kwargs, **generate_kwargs},
        )


def caption_metrics(captions: dict[str, str], references: dict[str, list[str]]) -> dict[str, float]:
    """Scores cheap enough to take after each epoch; fractions, except `words`."""
    scores = score_captions(captions, references, ["bleu", "cider"])
    return {
        "bleu_4": scores["bleu_4"],
        "cider": scores["cider"],
        "distinct": len(set(captions.values())) / len(captions),
        "words": sum(map(caption_length, captions.values())) / len(captions),
    }


def _check_stream(dataset: StreamingCaptionDataset, args: CaptioningTrainingArguments) -> None:
    if dataset.passes is not None:
        raise ValueError(f"training needs a stream without end (passes=None), not one of {dataset.passes} passes")
    for name in ("save_strategy", "eval_strategy"):
        if getattr(args, name) == "epoch":
            logger.warning('%s is "epoch", and a stream has none: it will be done once, at the end; say "steps"', name)


class _Passes(TrainerCallback):
    """Lets `epoch` count passes over a stream; Trainer takes all `max_steps` for one epoch."""

    def __init__(self, trainer: CaptioningTrainer) -> None:
        self.trainer = trainer

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.trainer.stream is not None:
            state.epoch = self.trainer.stream.passes()


class _Averaging(TrainerCallback):
    """Feeds the moving average of a trainer's weights."""

    def __init__(self, trainer: CaptioningTrainer) -> None:
        self.trainer = trainer

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        model = self.trainer.accelerator.unwrap_model(self.trainer.model)
        if self.trainer.average is None:
            self.trainer.average = WeightAverage(model, self.trainer.args.ema_decay)
        self.trainer.average.updates = state.global_step

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.trainer.average is not None:
            self.trainer.average.update()
