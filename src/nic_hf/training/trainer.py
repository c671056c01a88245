"""A Trainer whose evaluation captions photos."""

import time
from itertools import zip_longest
from typing import Any

import numpy as np
import sacrebleu
import torch
from torch.nn import functional as F
from transformers import PreTrainedTokenizerBase, Trainer
from transformers.trainer_utils import EvalLoopOutput, TrainOutput

from ..captioning import generate_captions
from ..data.captions import CaptionCollator, CaptionDataset, PhotoDataset
from ..data.sampling import LengthGroupedSampler
from ..processing_nic import IGNORED_LABEL


class CaptioningTrainer(Trainer):
    """`Trainer`, with captions in its evaluation.

    The loss is taken over every caption of `eval_dataset`, and each photo is captioned once, so that evaluation costs
    what it must and a photo with five captions is not captioned five times. Token ids are all that is kept, so that
    memory stays flat. With several processes each photo counts once.

    Metrics:
        `eval_loss`: the mean over the words of all captions. Trainer's own is a mean of batch means: it gives words
            in batches of short captions more weight, and moves with the batch size.
        `eval_bleu_4`: BLEU-4 against all captions of each photo, through sacrebleu on the tokenizer's words; a gauge
            for following and choosing runs, while reported figures come from the evaluation tools.
        `eval_distinct`: share of captions that differ from all others. Near 0, the model says the same of every photo.
        `eval_words`: mean number of words.

    Every line of the log, and so of `trainer_state.json` in each checkpoint, has `train_seconds` too: the time spent
    on training up to then, without evaluations, and with that of the runs that this one was resumed from.

    The `predictions` of `predict()` are the captions, one a photo.

    Args:
        *args, **kwargs: as for `Trainer`. `data_collator` is [`nic_hf.data.CaptionCollator`] where it is not given,
            and `processing_class`, the processor, is saved with each checkpoint.
        eval_generate_kwargs: passed to `generate()` in evaluation, such as `{"num_beams": 1}`.
    """

    def __init__(self, *args: Any, eval_generate_kwargs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        kwargs.setdefault("data_collator", CaptionCollator())
        super().__init__(*args, **kwargs)
        self.eval_generate_kwargs = eval_generate_kwargs or {}
        self._loss_and_words: torch.Tensor | None = None  # sums over the evaluation at hand
        self._training_since: float | None = None
        self._train_seconds: float | None = None  # before that moment

    def train(self, *args: Any, **kwargs: Any) -> TrainOutput:
        """Trainer's, timed."""
        self._training_since, self._train_seconds = time.monotonic(), None
        try:
            return super().train(*args, **kwargs)
        finally:
            self._training_since, self._train_seconds = None, None

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Trainer's, with `train_seconds` while it trains."""
        if self._training_since is not None or self._train_seconds is not None:
            logs["train_seconds"] = round(self._trained_for(), 3)
        super().log(logs, start_time)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Trainer's; its time is not counted as training."""
        if self._training_since is None:
            return super().evaluate(*args, **kwargs)
        self._train_seconds, self._training_since = self._trained_for(), None
        metrics = super().evaluate(*args, **kwargs)
        self._training_since = time.monotonic()
        return metrics

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
        self._loss_and_words = torch.zeros(2, dtype=torch.double) if isinstance(dataset, CaptionDataset) else None
        output = super().evaluation_loop(dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix)
        if self._loss_and_words is None:
            return output
        loss, words = self._loss_and_words.tolist()
        captions = self.caption(dataset.photos)
        scores = {
            "loss": loss / words,
            **caption_metrics(captions, dataset.photos.references(), dataset.photos.processor.tokenizer),
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
            logits = model(**inputs).logits.flatten(0, 1).float()
        losses = F.cross_entropy(logits, labels.flatten(), ignore_index=IGNORED_LABEL, reduction="none")
        counts = (labels != IGNORED_LABEL).flatten(1).sum(1)
        sums = torch.stack([losses.view(len(labels), -1).sum(1), counts], dim=1)
        # Gathered a sample at a time: the last batch repeats some, to give each process as many; those are dropped.
        self._loss_and_words += self.gather_function(sums).cpu().double().sum(0)
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


def caption_metrics(
    captions: dict[str, str], references: dict[str, list[str]], tokenizer: PreTrainedTokenizerBase
) -> dict[str, float]:
    """Scores cheap enough to take after each epoch; fractions, except `words`."""

    def words(caption: str) -> str:
        backend = tokenizer.backend_tokenizer
        normalised = backend.normalizer.normalize_str(caption) if backend.normalizer else caption
        return " ".join(word for word, _ in backend.pre_tokenizer.pre_tokenize_str(normalised))

    predictions = [words(caption) for caption in captions.values()]
    # sacrebleu wants the first reference of each photo, then the second of each, and so on; None where there is none.
    cut = [[words(reference) for reference in references[image_id]] for image_id in captions]
    streams: Any = list(zip_longest(*cut))
    bleu = sacrebleu.corpus_bleu(predictions, streams, tokenize="none", smooth_method="none", force=True)
    return {
        "bleu_4": bleu.score / 100,
        "distinct": len(set(predictions)) / len(predictions),
        "words": sum(len(caption.split()) for caption in predictions) / len(predictions),
    }
