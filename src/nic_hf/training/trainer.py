"""A Trainer that generates captions in evaluation."""

import functools
import json
import logging
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import send_to_device
from torch.nn import functional as F
from torch.utils.data import DataLoader
from transformers import EarlyStoppingCallback, TrainerCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, EvalLoopOutput, TrainOutput, seed_worker

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
from .callbacks import CheckpointCallback, EpochViewsCallback, StreamPassesCallback, TrainingClock
from .checkpoint_integrity import begin_checkpoint, last_checkpoint, read_json, why_incomplete
from .divergence import DivergenceCallback
from .ema import WeightAverageCallback
from .fine_tuning import set_backbone_learning_rate
from .hub_trainer import ModelCardCallback, PublishingTrainer, PushCheckpointsCallback
from .resume_check import ResumeError, check_provenance, describe, save_provenance
from .sample_captions import SampleCaptionsCallback
from .scheduled_sampling import mixed_inputs

logger = logging.getLogger(__name__)

SMOOTHED_EVALUATIONS = 3


class CaptioningTrainer(PublishingTrainer):
    """A `Trainer` that generates captions in evaluation.

    The loss is computed for all captions of `eval_dataset`, and each photo is captioned once, also if it has several
    captions or if there are several processes. Logits are not kept.

    Metrics:
        `eval_loss`: mean over the words of all captions. (Trainer computes a mean of batch means, which depends on the
            batch size and gives more weight to words in batches of short captions.)
        `eval_bleu_4`, `eval_cider`: BLEU-4 and CIDEr-D against all captions of each photo, from `score_captions`.
        `eval_cider_smoothed`: during training, mean of `eval_cider` over the last three evaluations. As
            `metric_for_best_model` it does not fall for one lucky evaluation.
        `eval_distinct`: share of distinct captions. Near 0, the model generates the same caption for every photo.
        `eval_words`: mean number of words.

    Each log entry has `train_seconds`: the time spent on training without evaluations, including the runs that this
    one resumes.

    With `ema_decay` the moving average of the weights is evaluated, saved and left in the model at the end. With
    `scheduled_sampling` some input words are sampled from the model (see [`mixed_inputs`]); their share grows linearly
    from 0 at the first step to this value at the last.

    The `predictions` of `predict()` are the captions, one per photo.

    The `provenance.json` of a checkpoint describes vocabulary, backbone and data; a run with others does not resume
    from it. `resume_from_checkpoint=True` resumes from the newest complete checkpoint; `"last"` does the same, or
    starts from the beginning if there is none.

    `train_dataset` may be a [`StreamingCaptionDataset`], with `max_steps`: each process and worker reads its share,
    and checkpoints contain their positions. `epoch` in the log then counts passes over the data.

    Each checkpoint gets a model card; `push_to_hub` pushes the captioner with it (see [`PublishingTrainer`]).

    Args:
        *args, **kwargs: as for `Trainer`. `data_collator` defaults to [`nic_hf.data.CaptionCollator`], and
            `processing_class`, the processor, is saved in each checkpoint.
        eval_generate_kwargs: passed to `generate()` in evaluation, such as `{"num_beams": 1}`.

    Raises:
        TrainingDivergedError: from `train()`, if the loss, gradients or weights become NaN or Inf.
        ResumeError: from `train()`, if the checkpoint is incomplete, damaged or from another setup.
    """

    args: CaptioningTrainingArguments

    def __init__(self, *args: Any, eval_generate_kwargs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        kwargs.setdefault("data_collator", CaptionCollator())
        super().__init__(*args, **kwargs)
        self.eval_generate_kwargs = eval_generate_kwargs or {}
        self._loss_and_words: list[torch.Tensor] | None = None  # of each caption of the current evaluation
        self._provenance: dict[str, Any] = {}
        self._stream_from: Path | None = None  # the checkpoint with the position at which a stream continues
        self.stream: StreamLoader | None = None
        self.clock = TrainingClock()
        self.divergence = DivergenceCallback(self.args)
        self.checkpoints = CheckpointCallback()
        self.ema = WeightAverageCallback(self.args.ema_decay) if self.args.ema_decay else None
        self._passes = StreamPassesCallback()
        for callback in self.callback_handler.callbacks:
            if isinstance(callback, SampleCaptionsCallback):
                callback.trackers = self.callback_handler.callbacks
        callbacks: list[TrainerCallback | None] = [self.clock, self.divergence, self.ema]
        if self.args.early_stopping_patience is not None:
            callbacks.append(EarlyStoppingCallback(self.args.early_stopping_patience))
        if isinstance(self.train_dataset, StreamingCaptionDataset):
            _check_stream(self.train_dataset, self.args)
            callbacks.append(self._passes)
        elif isinstance(self.train_dataset, CaptionDataset):
            callbacks.append(EpochViewsCallback(self.train_dataset))
        for callback in (*callbacks, ModelCardCallback(self), self.checkpoints, PushCheckpointsCallback(self)):
            if callback is not None:
                self.add_callback(callback)

    def create_optimizer(self, *args: Any, **kwargs: Any) -> torch.optim.Optimizer:
        """Create the optimizer, with `backbone_learning_rate` for the backbone."""
        is_new = self.optimizer is None
        optimizer = super().create_optimizer(*args, **kwargs)
        if is_new and self.args.backbone_learning_rate is not None:
            model = self.accelerator.unwrap_model(self.model)
            set_backbone_learning_rate(optimizer, model, self.args.backbone_learning_rate)
        return optimizer

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> TrainOutput:
        """Train, after a check of the checkpoint to resume from."""
        self._provenance = describe(
            self.accelerator.unwrap_model(self.model), self.processing_class, self.train_dataset
        )
        self._provenance["processes"] = self.args.world_size
        self._provenance["order"] = {
            "samples per step": self.get_total_train_batch_size(self.args),
            "seed": self._data_seed,
        }
        checkpoint = self._checkpoint_to_resume(resume_from_checkpoint)
        resumed_from = None if checkpoint is None else Path(checkpoint)
        skip = self.args.ignore_data_skip
        self._stream_from = None if skip else resumed_from
        # Trainer would fetch and drop all batches before the checkpoint; a stream knows its position.
        self.args.ignore_data_skip = skip or isinstance(self.train_dataset, StreamingCaptionDataset)
        if self.ema is not None:
            self.ema.resumed_from = resumed_from
        try:
            return super().train(checkpoint, *args, **kwargs)
        except (OSError, RuntimeError) as error:
            folder = self.checkpoints.saving
            # PyTorch's writer raises a plain RuntimeError if the disk is full.
            if folder is None or not (isinstance(error, OSError) or type(error) is RuntimeError):
                raise
            reason = error if isinstance(error, OSError) else f"the disk may be full ({error})"
            raise OSError(f"cannot write {folder}: {reason}; resume from an earlier checkpoint") from error
        finally:
            self.clock.running, self.checkpoints.saving, self.args.ignore_data_skip = False, None, skip
            if self.ema is not None:
                self.ema.average = None

    @property
    def _data_seed(self) -> int:
        return self.args.seed if self.args.data_seed is None else self.args.data_seed

    def _checkpoint_to_resume(self, asked: str | bool | None) -> str | None:
        """Return the checked checkpoint to resume from, or None to start from the beginning."""
        if not asked:
            return None
        folder = self.args.output_dir or "."
        checkpoint = last_checkpoint(folder) if asked is True or asked == "last" else str(asked)
        if checkpoint is None:
            if asked == "last":
                return None
            raise ResumeError(f"{folder} has no complete checkpoint to resume from")
        problem = why_incomplete(checkpoint)
        if problem is not None:
            other = last_checkpoint(Path(checkpoint).parent)
            instead = f"resume from {other}" if other else "no other checkpoint there is complete"
            raise ResumeError(f"{checkpoint} is incomplete or damaged ({problem}); {instead}")
        check_provenance(self._provenance, checkpoint, self.processing_class)
        return checkpoint

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log, with `train_seconds` during training and `skipped` samples of a stream."""
        if self.clock.running:
            logs["train_seconds"] = round(self.clock.seconds, 3)
        if self.stream is not None and self.stream.skipped():
            logs["skipped"] = self.stream.skipped()  # by this process
        super().log(logs, start_time)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Evaluate, with the averaged weights if there are any; the time does not count as training."""
        with self.clock.paused(), nullcontext() if self.ema is None else self.ema.applied():
            return super().evaluate(*args, **kwargs)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the model, with averaged weights if there are any.

        In a checkpoint this comes first, and `trainer_state.json` last. It also writes everything else that resuming
        needs and Trainer does not write, so that a kill at any moment leaves one complete checkpoint: this or the one
        before.

        Raises:
            TrainingDivergedError: if weights of a checkpoint are NaN or Inf.
        """
        step = self.state.global_step
        folder = Path(output_dir or self.args.output_dir or ".")
        is_checkpoint = _internal_call and folder.name == f"{PREFIX_CHECKPOINT_DIR}-{step}"
        if is_checkpoint:
            self.divergence.check()
            self.divergence.check_parameters(self.accelerator.unwrap_model(self.model).named_parameters(), step)
            self.checkpoints.saving = folder
            if self.args.should_save:
                begin_checkpoint(folder)
                save_provenance(self._provenance, folder)
            if self.stream is not None:
                write_text(folder / self._stream_file(), json.dumps(self.stream.state_dict()) + "\n")
            self.accelerator.wait_for_everyone()
        with nullcontext() if self.ema is None else self.ema.applied() as average:
            super().save_model(output_dir, _internal_call)
            if is_checkpoint and average is not None and self.args.should_save:
                average.save_trained(folder)

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, torch.Tensor | Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """Compute the loss, after scheduled sampling of the input words."""
        if model.training and self.args.scheduled_sampling:
            share = self.args.scheduled_sampling * self.state.global_step / max(1, self.state.max_steps)
            words = mixed_inputs(self.accelerator.unwrap_model(model), inputs, share)
            inputs = {**inputs, "decoder_input_ids": words}
        return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> tuple[list, torch.Tensor | int | None]:
        """Get batches, but none if a finished run is resumed: Trainer would train it one step further."""
        if self.state.global_step >= self.state.max_steps:
            return [], None
        return super().get_batch_samples(*args, **kwargs)

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Train on a batch, and stop if the loss is NaN or Inf."""
        loss = super().training_step(*args, **kwargs)
        self.divergence.watch("the loss", loss, self.state.global_step + 1)
        return loss

    def get_train_dataloader(self) -> Any:
        """The data loader of the training dataset.

        A stream gives this process's share, from the position of the checkpoint on. If features are cached, batches
        contain captions of similar length. Otherwise Trainer's own is used: where the backbone runs, padding is cheap,
        and batches of similar captions are batches of similar photos, which the BatchNorm of a trained backbone should
        not see.
        """
        dataset = self.train_dataset
        if isinstance(dataset, StreamingCaptionDataset):
            return self._stream_loader(dataset)
        if (
            not isinstance(dataset, CaptionDataset)
            or dataset.photos.features is None
            or self.args.train_sampling_strategy != "random"
        ):
            return super().get_train_dataloader()
        sampler = LengthGroupedSampler(dataset.lengths(), self.get_total_train_batch_size(self.args), self._data_seed)
        worker_init = functools.partial(
            seed_worker, num_workers=self.args.dataloader_num_workers, rank=self.args.process_index
        )
        loader: DataLoader = DataLoader(
            dataset,
            self._device_batch_size,
            sampler=sampler,
            collate_fn=self.data_collator,
            drop_last=self.args.dataloader_drop_last,
            persistent_workers=self.args.dataloader_persistent_workers,
            worker_init_fn=worker_init,
            **self._worker_options(),
        )
        return self.accelerator.prepare(loader)

    def _stream_loader(self, dataset: StreamingCaptionDataset) -> StreamLoader:
        state = None
        if self._stream_from is not None:
            state = read_json(self._stream_from / self._stream_file())
            if state is None:
                raise ResumeError(
                    f"{self._stream_from} has no {self._stream_file()}: it was not trained on a stream, or with fewer"
                    " processes. ignore_data_skip=True starts the stream from the beginning"
                )
        self.stream = self._passes.stream = StreamLoader(
            dataset.share(self.args.process_index, self.args.world_size),
            self._device_batch_size,
            self.data_collator,
            state,
            **self._worker_options(),
        )
        return self.stream

    @property
    def _device_batch_size(self) -> int:
        """Samples a device and forward pass; `auto_find_batch_size` changes it."""
        args = self.args
        return self.get_total_train_batch_size(args) // (args.gradient_accumulation_steps * args.world_size)

    def _worker_options(self) -> dict[str, Any]:
        workers = self.args.dataloader_num_workers
        return {
            "num_workers": workers,
            "pin_memory": self.args.dataloader_pin_memory,
            "multiprocessing_context": self.args.dataloader_multiprocessing_context if workers else None,
            "prefetch_factor": self.args.dataloader_prefetch_factor if workers else None,
        }

    def _stream_file(self) -> str:
        return f"stream_{self.args.process_index}.json"

    def evaluation_loop(
        self,
        dataloader: Any,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """Compute the loss of all captions, then caption each photo."""
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
        if self.clock.running:
            metrics[f"{metric_key_prefix}_cider_smoothed"] = self._smoothed(f"{metric_key_prefix}_cider", metrics)
        return output._replace(predictions=np.array(list(captions.values())), metrics=metrics)

    def _smoothed(self, name: str, metrics: dict[str, float]) -> float:
        """Mean of a metric over this evaluation and those before it in the run, but not before the first step."""
        before = [line[name] for line in self.state.log_history if name in line and line["step"]]
        return float(np.mean([*before, metrics[name]][-SMOOTHED_EVALUATIONS:]))

    def prediction_step(
        self,
        model: torch.nn.Module,
        inputs: dict[str, torch.Tensor | Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
        """Collect the loss and the number of words of each caption; logits of a dataset would not fit in memory."""
        if self._loss_and_words is None:
            return super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)
        inputs = send_to_device(inputs, self.args.device)
        labels = inputs["labels"]  # shape: (batch_size, [num_captions,] sequence_length)
        with torch.no_grad(), self.compute_loss_context_manager():
            logits = model(**inputs, return_dict=True).logits.flatten(0, 1).float()
        losses = F.cross_entropy(logits, labels.flatten(), ignore_index=IGNORED_LABEL, reduction="none")
        counts = (labels != IGNORED_LABEL).flatten(1).sum(1)
        sums = torch.stack([losses.view(len(labels), -1).sum(1), counts], dim=1)
        # Gathered per sample: the last batch may repeat samples to fill all processes, and these are dropped.
        self._loss_and_words.append(self.gather_function(sums))
        return None, None, None

    def caption(self, photos: PhotoDataset, **generate_kwargs: Any) -> dict[str, str]:
        """Caption photos with the current model (see [`generate_captions`])."""
        return generate_captions(
            self.accelerator.unwrap_model(self.model),
            photos,
            batch_size=self.args.eval_batch_size,
            num_workers=self.args.dataloader_num_workers,
            progress=not self.args.disable_tqdm,
            **{**self.eval_generate_kwargs, **generate_kwargs},
        )


def caption_metrics(captions: dict[str, str], references: dict[str, list[str]]) -> dict[str, float]:
    """Compute scores that are fast enough for each epoch; fractions, except `words`."""
    scores = score_captions(captions, references, ["bleu", "cider"])
    return {
        "bleu_4": scores["bleu_4"],
        "cider": scores["cider"],
        "distinct": len(set(captions.values())) / len(captions),
        "words": sum(map(caption_length, captions.values())) / len(captions),
    }


def _check_stream(dataset: StreamingCaptionDataset, args: CaptioningTrainingArguments) -> None:
    if dataset.passes is not None:
        raise ValueError(f"training needs an endless stream (passes=None), got passes={dataset.passes}")
    for name in ("save_strategy", "eval_strategy"):
        if getattr(args, name) == "epoch":
            logger.warning('%s is "epoch", but a stream has no epochs: it happens once, at the end; use "steps"', name)
