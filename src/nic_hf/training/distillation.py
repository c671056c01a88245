"""Distillation: a captioner learns the word probabilities and the captions of other captioners, its teachers.

Hinton et al. 2015, https://arxiv.org/abs/1503.02531; for sequences, Kim and Rush 2016, https://arxiv.org/abs/1606.07947.
"""

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from ..captioners import captioner_path
from ..configuration_nic import IGNORED_LABEL
from ..data import CaptionDataset, PhotoDataset, SoftTargets, cache_features
from ..dataset_captions import generate_caption_lists
from ..decoding.consensus import CaptionSimilarity
from ..model.captioner import NICForConditionalGeneration
from ..model.losses import soft_cross_entropy
from ..model.processor import NICProcessor
from ..photo_files import is_photo_name
from ..progress_bar import progress_bar
from .trainer import CaptioningTrainer

logger = logging.getLogger(__name__)

LIKELIEST = 16  # words of a soft target; the others have a few percent together
BEAMS = 5  # captions of each teacher to choose from
CAPTIONS_A_BATCH = 256


@dataclass
class Teacher:
    """A captioner to learn from.

    Attributes:
        name: its folder or Hub id.
        model: the captioner.
        photos: the training photos, with its own preprocessing and features.
    """

    name: str
    model: NICForConditionalGeneration
    photos: PhotoDataset


def load_teachers(
    names: Sequence[str | os.PathLike[str]], table: datasets.Dataset, device: Any = None, **options: Any
) -> list[Teacher]:
    """Load captioners to learn from, and compute their features of the training photos.

    They may differ from the captioner that learns, and from each other, in everything.

    Args:
        names: folders, Hub ids, or names of captioners that come with the package.
        table: the training photos.
        device: where they run.
        **options: passed to [`nic_hf.data.cache_features`], such as `cache_dir`.

    Raises:
        OSError, ValueError: a teacher does not exist or is damaged.
    """
    teachers = []
    for name in names:
        folder = captioner_path(name)
        model = NICForConditionalGeneration.from_pretrained(folder).to(device).eval()
        processor = NICProcessor.from_pretrained(folder)
        model.set_backbone_frozen(True)
        features = cache_features(model, processor, table, **options)
        teachers.append(Teacher(os.fspath(name), model, PhotoDataset(table, processor, features)))
    return teachers


def add_teacher_captions(table: datasets.Dataset, teachers: Sequence[Teacher], number: int) -> datasets.Dataset:
    """Add captions of the teachers to those of each photo, as further references.

    Each teacher generates five captions of a photo, and those are added that are most similar to all of them, by
    CIDEr-D with the document frequencies of the captions in the table.

    Args:
        table: photos with `captions`, which may be empty.
        teachers: the teachers.
        number: captions to add per photo.
    """
    found: dict[str, list[str]] = {}
    for teacher in teachers:
        lists = generate_caption_lists(teacher.model, teacher.photos, num_beams=BEAMS, num_return_sequences=BEAMS)
        for image_id, captions in lists.items():
            found.setdefault(image_id, []).extend(captions)
    tokenizer = teachers[0].photos.processor.tokenizer
    similarity = CaptionSimilarity([tokenizer(own).input_ids for own in table["captions"] if own] or None)

    def consensus(row: dict[str, Any]) -> dict[str, Any]:
        captions = list(dict.fromkeys(found.get(row["image_id"], [])))
        if captions:
            ids = [tuple(caption) for caption in tokenizer(captions).input_ids]
            order = np.argsort(-similarity(ids, ids).sum(axis=1), kind="stable")
            captions = [captions[place] for place in order[:number]]
        return {"captions": [*row["captions"], *captions]}

    return table.map(consensus, desc="Adding captions of teachers", load_from_cache_file=False)


def photos_without_captions(folder: str | os.PathLike[str], like: datasets.Dataset) -> datasets.Dataset:
    """The photos of a folder and its subfolders, without captions, for [`add_teacher_captions`].

    Args:
        folder: the folder.
        like: a table of captioned photos, whose columns it gets.

    Raises:
        OSError: if there is no photo.
    """
    paths = sorted(path for path in Path(folder).expanduser().rglob("*") if is_photo_name(path.name))
    if not paths:
        raise FileNotFoundError(f"{folder}: no photos in this folder")
    rows = {
        "image": [str(path) for path in paths],
        "image_id": [str(path) for path in paths],
        "captions": [[] for _ in paths],
    }
    features = datasets.Features({name: like.features[name] for name in rows})
    return datasets.Dataset.from_dict(rows, features=features)


@torch.no_grad()
def soft_targets(
    teachers: Sequence[Teacher], dataset: CaptionDataset, tokenizer: PreTrainedTokenizerBase, device: Any = None
) -> SoftTargets:
    """The mean probabilities that teachers give to each word of the training captions, given the words before it.

    Args:
        teachers: the teachers. Words that only they know are left out, and the rest sums to 1.
        dataset: the training captions, for the captioner that learns.
        tokenizer: its tokenizer.
        device: where to compute.

    Returns:
        The 16 likeliest words.
    """
    rows, labels = dataset.pairs["row"][:], dataset.pairs["labels"][:]
    starts = np.concatenate([[0], np.cumsum([len(caption) for caption in labels])])
    small = np.uint16 if len(tokenizer) <= np.iinfo(np.uint16).max + 1 else np.int32
    targets = SoftTargets(
        starts,
        np.zeros((starts[-1], LIKELIEST), dtype=small),
        np.zeros((starts[-1], LIKELIEST), dtype=np.float16),
    )
    words = [_WordsOf(teacher, tokenizer, device) for teacher in teachers]
    with progress_bar(total=len(labels), unit="caption", desc="Asking the teachers") as progress:
        for start in range(0, len(labels), CAPTIONS_A_BATCH):
            of_batch = slice(start, start + CAPTIONS_A_BATCH)
            captions = [torch.as_tensor(caption, device=device) for caption in labels[of_batch]]
            padded = torch.nn.utils.rnn.pad_sequence(captions, batch_first=True, padding_value=IGNORED_LABEL)
            each = torch.stack([own(rows[of_batch], padded) for own in words])
            best = each.mean(0).topk(LIKELIEST)  # shape: (num_words, k)
            place = slice(starts[start], starts[start + len(captions)])
            targets.words[place] = best.indices.cpu().numpy()
            targets.probabilities[place] = (best.values / best.values.sum(-1, keepdim=True)).cpu().numpy()
            progress.update(len(captions))
    return targets


class _WordsOf:
    """Word probabilities of a teacher, in the vocabulary of the captioner that learns."""

    def __init__(self, teacher: Teacher, tokenizer: PreTrainedTokenizerBase, device: Any) -> None:
        own = teacher.photos.processor.tokenizer
        theirs = own.get_vocab()
        names = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
        self.ids = torch.tensor([theirs.get(name, own.unk_token_id) for name in names], device=device)
        self.is_known = torch.tensor([name in theirs for name in names], device=device)
        if not self.is_known.all():
            unknown = int((~self.is_known).sum())
            logger.warning(
                f"{teacher.name} does not know {unknown:,} of {len(names):,} words, and teaches none of them"
            )
        self.teacher, self.device = teacher, device

    def __call__(self, rows: np.ndarray, labels: torch.Tensor) -> torch.Tensor:
        """Probabilities of shape `(num_words, vocab_size)` for the words of captions, row by row."""
        is_word = labels != IGNORED_LABEL
        features = torch.stack([self.teacher.photos.inputs(int(row))["encoder_outputs"] for row in rows])
        theirs = torch.where(is_word, self.ids[labels.clamp_min(0)], IGNORED_LABEL)
        model = self.teacher.model
        read = model.prepare_decoder_input_ids_from_labels(theirs)
        logits = model(encoder_outputs=features.to(self.device), decoder_input_ids=read, use_cache=False).logits
        probabilities = logits[is_word].float().softmax(-1)[:, self.ids] * self.is_known
        return probabilities / probabilities.sum(-1, keepdim=True)


class DistillationTrainer(CaptioningTrainer):
    """Learn from captions and, at the same time, from the word probabilities of teachers.

    The loss is `(1 - distillation_weight) * cross-entropy + distillation_weight * cross-entropy with the teachers'
    probabilities`, per word. Evaluation is that of [`CaptioningTrainer`].

    Args:
        *args, **kwargs: as for [`CaptioningTrainer`]. `train_dataset` must have [`soft_targets`].

    Raises:
        ValueError: if it has none.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # The loss is a mean over the words of a batch; Trainer divides it if gradients are accumulated.
        self.model_accepts_loss_kwargs = False
        if not isinstance(self.train_dataset, CaptionDataset) or self.train_dataset.soft_targets is None:
            raise ValueError(
                "the training dataset has no soft targets: set `soft_targets` to soft_targets(teachers, ...)"
            )

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, torch.Tensor | Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """The weighted sum of both losses."""
        inputs = dict(inputs)
        words, probabilities = inputs.pop("teacher_words", None), inputs.pop("teacher_probabilities", None)
        loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        if words is not None and probabilities is not None:
            is_word = inputs["labels"].flatten(0, -2) != IGNORED_LABEL
            taught = soft_cross_entropy(
                outputs.logits[is_word], words.flatten(0, -3)[is_word], probabilities.flatten(0, -3)[is_word]
            )
            weight = self.args.distillation_weight
            loss = (1 - weight) * loss + weight * taught
        return (loss, outputs) if return_outputs else loss
