"""Self-critical sequence training (Rennie et al. 2017, arXiv 1612.00563)."""

import logging
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F
from transformers import GenerationConfig, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..configuration_nic import IGNORED_LABEL
from ..data.torch_datasets import CaptionDataset
from ..model.captioner import NICForConditionalGeneration
from .arguments import CaptioningTrainingArguments
from .divergence import gradient_norm
from .rewards import CaptionReward
from .trainer import CaptioningTrainer

logger = logging.getLogger(__name__)

STEPS_WITHOUT_REWARD = 50


@dataclass
class SelfCriticalTrainingArguments(CaptioningTrainingArguments):
    """`CaptioningTrainingArguments` for the stage after cross-entropy, with several samples per photo."""

    num_train_epochs: float = field(default=5, metadata={"help": "Number of passes over the photos."})
    per_device_train_batch_size: int = field(default=32, metadata={"help": "Photos per step and device."})
    learning_rate: float = field(default=5e-5, metadata={"help": "Peak learning rate of AdamW."})
    metric_for_best_model: str | None = field(
        default="eval_cider_smoothed", metadata={"help": "Metric that selects the best checkpoint."}
    )
    num_samples: int = field(default=5, metadata={"help": "Sampled captions per photo, at least 2."})
    cider_weight: float = field(default=1.0, metadata={"help": "Weight of CIDEr-D in the reward."})
    bleu_weight: float = field(default=0.0, metadata={"help": "Weight of BLEU-4 in the reward."})
    cross_entropy_weight: float = field(
        default=0.2,
        metadata={
            "help": "Weight of the cross-entropy loss of the reference captions, added to the loss of the reward."
        },
    )
    max_sampled_words: int = field(default=20, metadata={"help": "Maximum number of words of a sampled caption."})


class SelfCriticalTrainer(CaptioningTrainer):
    """Maximize the reward of sampled captions, with the mean reward of the other samples of a photo as the baseline.

    Samples come from the model's distribution at temperature 1 over all words except `<pad>`, `<bos>` and `<unk>`,
    regardless of the generation config, and their likelihood is computed under the same distribution. Sampling is done
    in eval mode, without dropout; the likelihood is then computed in one pass in training mode, with dropout. A sample
    without `<eos>` is incomplete and has a reward of 0. A batch without any reward is logged, and trains on the
    reference captions only, if at all; after 50 such batches in a row training stops.

    The log has `reward`, `baseline_spread` (mean absolute difference from the baseline), `sampled_words`,
    `sampled_distinct` (share of distinct samples), `unfinished` (share of incomplete samples), and `reward_share`, the
    share of the step's time spent on rewards.

    Args:
        *args, **kwargs: as for [`CaptioningTrainer`], with `SelfCriticalTrainingArguments`. A sample of
            `train_dataset` must have all captions of a photo (`captions_per_sample`).

    Raises:
        ValueError: if the captions of a photo are in several samples, or `num_samples` is less than 2.
    """

    args: SelfCriticalTrainingArguments

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # The loss is a mean over the samples of a batch; Trainer divides it if gradients are accumulated.
        self.model_accepts_loss_kwargs = False
        if self.args.num_samples < 2:
            raise ValueError(f"num_samples must be at least 2, for the baseline, got {self.args.num_samples}")
        dataset = self.train_dataset
        if not isinstance(dataset, CaptionDataset) or len(dataset) != len(dataset.photos):
            raise ValueError(
                "self-critical training scores samples against all captions of a photo: create the dataset with"
                " CaptionDataset(..., captions_per_sample=k), where no photo has more than k captions"
            )
        self.reward = CaptionReward(
            (_lists(sample["labels"]) for sample in _labels_only(dataset)),
            self.args.cider_weight,
            self.args.bleu_weight,
        )
        self._sums: Counter[str] = Counter()
        self._without_reward = 0
        if not self.args.cross_entropy_weight:  # cross-entropy always has a gradient
            self.add_callback(_NoEmptySteps())

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, torch.Tensor | Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """-sum of (reward - baseline) log p over the words of the samples, and the cross-entropy of the captions."""
        if not model.training or return_outputs:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        start = time.perf_counter()
        captioner: Any = self.accelerator.unwrap_model(model)
        labels = inputs["labels"]
        labels = labels if labels.ndim == 3 else labels.unsqueeze(1)  # one caption per photo
        image = {name: tensor for name, tensor in inputs.items() if name != "labels"}
        with torch.no_grad():
            if "pixel_values" in image:
                captioner.eval()
                features = captioner.get_image_features(image["pixel_values"])
                captioner.train()
            else:
                features = image["encoder_outputs"]
            samples = self._sample(captioner, features)  # shape: (batch_size, num_samples, sequence_length)
        on_host = samples.cpu(), labels.cpu()  # waits for the device; that time is not spent on rewards
        before = time.perf_counter()
        rewards = self._rewards(*on_host, captioner.config.eos_token_id)
        reward_seconds = time.perf_counter() - before
        advantages = torch.from_numpy(_advantages(rewards)).to(labels.device, torch.float32)

        # Reference captions and samples share a pass. Samples without any reward teach nothing.
        people = labels if self.args.cross_entropy_weight else labels[:, :0]
        learned = samples if rewards.any() or not self.args.cross_entropy_weight else samples[:, :0, :0]
        length = max(people.shape[-1], learned.shape[-1])
        together = torch.cat([_padded(people, length), _padded(learned, length)], dim=1)
        read = captioner.prepare_decoder_input_ids_from_labels(together)
        logits = model(**image, decoder_input_ids=read, return_dict=True).logits
        logits = logits.float().view(*together.shape, -1)
        losses = _word_losses(logits[:, : people.shape[1]], together[:, : people.shape[1]])
        never = _never_sampled(captioner.config)
        sampled = _word_losses(logits[:, people.shape[1] :], together[:, people.shape[1] :], never)
        loss = (advantages[:, : learned.shape[1], None] * sampled).sum()
        loss = loss / (samples != IGNORED_LABEL).sum().clamp_min(1)
        if self.args.cross_entropy_weight:
            words = (people != IGNORED_LABEL).sum().clamp_min(1)
            loss = loss + self.args.cross_entropy_weight * losses.sum() / words
        self._note(on_host[0], rewards, reward_seconds, time.perf_counter() - start)
        return loss

    def _sample(self, captioner: Any, features: torch.Tensor) -> torch.Tensor:
        """Sample captions, as labels: they end with `<eos>` if it was reached, and -100 follows."""
        own = next(module for module in captioner.modules() if isinstance(module, NICForConditionalGeneration))
        config, kept = own.config, own.generation_config
        plain = GenerationConfig(
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            suppress_tokens=_never_sampled(config),
            num_return_sequences=self.args.num_samples,
            max_new_tokens=self.args.max_sampled_words,
            pad_token_id=config.pad_token_id,
            bos_token_id=config.bos_token_id,
            eos_token_id=config.eos_token_id,
            decoder_start_token_id=config.decoder_start_token_id,
        )
        captioner.eval()
        try:
            # Replaces the model's own, which generate() would use for settings that are not given.
            own.generation_config = plain
            ids = own.generate(encoder_outputs=features)[:, 1:]
        finally:
            own.generation_config = kept
        captioner.train()
        ended = (ids == captioner.config.eos_token_id).cumsum(dim=1)
        after = (ended > 1) | ((ended == 1) & (ids != captioner.config.eos_token_id))
        return ids.masked_fill(after, IGNORED_LABEL).unflatten(0, (len(features), self.args.num_samples))

    def _rewards(self, samples: torch.Tensor, labels: torch.Tensor, eos: int) -> np.ndarray:
        """Rewards of shape `(batch_size, num_samples)`."""
        references = [[caption for caption in _lists(own) if caption] for own in labels]
        predictions = [_lists(own) for own in samples]
        rewards = self.reward(predictions, references)
        finished = np.array([[caption[-1:] == [eos] for caption in own] for own in predictions])
        rewards = rewards * finished
        self._sums["unfinished"] += int((~finished).sum())
        if rewards.any():
            self._without_reward = 0
            return rewards
        self._without_reward += 1
        logger.warning("all samples of this batch have a reward of 0 and teach nothing")
        if self._without_reward >= STEPS_WITHOUT_REWARD:
            raise ValueError(
                f"no sample of {STEPS_WITHOUT_REWARD} batches has a reward above 0. Start from a captioner trained"
                " with cross-entropy, whose vocabulary matches the data"
            )
        return rewards

    def _note(self, samples: torch.Tensor, rewards: np.ndarray, reward_seconds: float, seconds: float) -> None:
        captions = {tuple(ids) for ids in samples.flatten(0, 1).tolist()}
        self._sums.update(
            {
                "batches": 1,
                "samples": rewards.size,
                "reward": float(rewards.sum()),
                "spread": float(np.abs(_advantages(rewards)).sum()),
                "words": int((samples != IGNORED_LABEL).sum()),
                "distinct": len(captions),
                "reward_seconds": reward_seconds,
                "seconds": seconds,
            }
        )

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log, with statistics of the samples since the last entry."""
        sums = self._sums
        if "loss" in logs and sums["batches"]:
            logs["reward"] = sums["reward"] / sums["samples"]
            logs["baseline_spread"] = sums["spread"] / sums["samples"]
            logs["sampled_words"] = sums["words"] / sums["samples"]
            logs["sampled_distinct"] = sums["distinct"] / sums["samples"]
            logs["unfinished"] = sums["unfinished"] / sums["samples"]
            logs["reward_share"] = sums["reward_seconds"] / sums["seconds"]
            self._sums = Counter()
        super().log(logs, start_time)


class _NoEmptySteps(TrainerCallback):
    """Skip a step if there is no gradient at all, rather than apply weight decay and momentum."""

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **kwargs: Any
    ) -> None:
        if float(gradient_norm(model)) == 0.0:
            model.zero_grad(set_to_none=True)


def _advantages(rewards: np.ndarray) -> np.ndarray:
    """Reward minus the mean reward of the other samples of the photo; shape `(num_photos, num_samples)`."""
    others = (rewards.sum(axis=1, keepdims=True) - rewards) / (rewards.shape[1] - 1)
    return rewards - others


def _lists(labels: Any) -> list[list[int]]:
    """Captions without padding."""
    return [[word for word in caption.tolist() if word != IGNORED_LABEL] for caption in labels]


def _never_sampled(config: Any) -> list[int]:
    return sorted({config.pad_token_id, config.bos_token_id, config.unk_token_id})


def _word_losses(logits: torch.Tensor, labels: torch.Tensor, never: Sequence[int] = ()) -> torch.Tensor:
    """-log p of each word, 0 for padding, in the shape of the labels; words in `never` have probability 0."""
    if never:
        logits = logits.clone()
        for word in never:  # one by one: indexing with a list waits for the GPU
            logits[..., word] = -torch.inf
    losses = F.cross_entropy(logits.flatten(0, -2), labels.flatten(), ignore_index=IGNORED_LABEL, reduction="none")
    return losses.view(labels.shape)


def _padded(labels: torch.Tensor, length: int) -> torch.Tensor:
    return F.pad(labels, (0, length - labels.shape[-1]), value=IGNORED_LABEL)


def _labels_only(dataset: CaptionDataset) -> Any:
    """Labels of the samples, without loading photos."""
    labels = dataset.pairs["labels"]
    for start, end in zip(dataset.bounds[:-1], dataset.bounds[1:], strict=True):
        yield {"labels": labels[int(start) : int(end)]}
