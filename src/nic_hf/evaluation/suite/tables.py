"""One function per table: from a captioner and captioned photos to results that can be saved as JSON."""

import json
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch

from ...data import PhotoDataset, cache_features
from ...dataset_captions import generate_caption_lists, generate_captions
from ...model.captioner import NICForConditionalGeneration
from ...model.processor import NICProcessor
from ...tokenization import count_words
from ..cider import DocumentFrequencies
from ..diversity import diversity_scores, self_cider
from ..paper.ranking import annotation_ranking, caption_log_likelihoods, normalise_by_marginal, search_ranking
from ..paper.word_neighbours import nearest_words
from ..scores import score_captions
from ..significance import scores_with_intervals
from ..words import caption_length, caption_words

logger = logging.getLogger(__name__)

N_BEST = 15
N_BEST_BEAMS = 20
EXAMPLES = 6
# Number of pairs to time the naive loop on.
NAIVE_PAIRS = 200


@dataclass
class Subject:
    """The captioner and the data of an evaluation.

    Attributes:
        model, processor: the captioner, in eval mode.
        photos: the photos to caption.
        training_captions: captions that the model was trained on; None if they are not available.
        metrics: names of metrics, as for `score_captions`.
        seed: random seed of the bootstrap.
    """

    model: NICForConditionalGeneration
    processor: NICProcessor
    photos: PhotoDataset
    training_captions: list[str] | None
    metrics: Sequence[str]
    seed: int = 0


def photos_with_features(
    model: NICForConditionalGeneration, processor: NICProcessor, table: datasets.Dataset, **options: Any
) -> PhotoDataset:
    """The photos of a table with features of the captioner's backbone, which is frozen for this.

    Args:
        model, processor: the captioner.
        table: the photos.
        **options: passed to [`nic_hf.data.cache_features`].
    """
    model.set_backbone_frozen(True)
    return PhotoDataset(table, processor, cache_features(model, processor, table, **options))


def generation(subject: Subject, num_beams: int) -> dict[str, Any]:
    """Captions of all photos with one beam size, with scores, intervals and diversity."""
    start = time.perf_counter()
    captions = generate_captions(subject.model, subject.photos, batch_size=128, num_beams=num_beams)
    seconds = time.perf_counter() - start
    return {"num_beams": num_beams, "seconds": seconds, **scored(subject, captions)}


def scored(subject: Subject, captions: Mapping[str, str]) -> dict[str, Any]:
    """Scores, intervals and diversity of captions of the subject's photos."""
    return {
        "captions": dict(captions),
        **scores_with_intervals(captions, subject.photos.references(), subject.metrics, subject.seed),
        "diversity": asdict(diversity_scores(captions.values(), subject.training_captions)),
        "words": float(np.mean([caption_length(caption) for caption in captions.values()])),
    }


def n_best(subject: Subject) -> dict[str, Any]:
    """The 15 best captions of each photo by beam search: which ones are novel, and their scores."""
    lists = generate_caption_lists(
        subject.model,
        subject.photos,
        batch_size=32,
        num_beams=N_BEST_BEAMS,
        num_return_sequences=N_BEST,
    )
    references = subject.photos.references()
    seen = {_key(caption) for caption in subject.training_captions or ()}
    novel = {i: [_key(caption) not in seen for caption in captions] for i, captions in lists.items()}
    ranks = {f"{i}#{rank}": caption for i, captions in lists.items() for rank, caption in enumerate(captions)}
    of_ranks = {name: references[name.rpartition("#")[0]] for name in ranks}
    best = {i: captions[0] for i, captions in lists.items()}
    frequencies = DocumentFrequencies(list(references.values()))
    varieties = []
    for captions in lists.values():
        try:
            varieties.append(self_cider(captions, frequencies))
        except ValueError:
            continue  # one of the captions is empty
    known = subject.training_captions is not None
    return {
        "size": N_BEST,
        "num_beams": N_BEST_BEAMS,
        "best_in_training": 1 - float(np.mean([flags[0] for flags in novel.values()])) if known else None,
        "novel": float(np.mean([np.mean(flags) for flags in novel.values()])) if known else None,
        "bleu_4_of_best": score_captions(best, references, ["bleu"])["bleu_4"],
        "bleu_4_of_all": score_captions(ranks, of_ranks, ["bleu"])["bleu_4"],
        "self_cider": float(np.mean(varieties)) if varieties else None,
        "photos_without_self_cider": len(lists) - len(varieties),
        "examples": {
            i: [{"caption": c, "novel": flag if known else None} for c, flag in zip(lists[i], novel[i], strict=True)]
            for i in list(lists)[:EXAMPLES]
        },
    }


def ranking(subject: Subject) -> dict[str, Any]:
    """Ranking in both directions, by likelihood and by likelihood over the caption's marginal likelihood."""
    photos, tokenizer = subject.photos, subject.processor.tokenizer
    references = list(photos.references().values())
    captions = [tokenizer(caption).input_ids for own in references for caption in own]
    owner = [photo for photo, own in enumerate(references) for _ in own]
    features = _features(subject)
    start = time.perf_counter()
    scores = caption_log_likelihoods(subject.model, features, captions, progress=True)
    seconds = time.perf_counter() - start
    naive = _naive_seconds_a_pair(subject.model, features, captions)
    by_score = {"log_p": scores, "normalised": normalise_by_marginal(scores)}
    return {
        "photos": len(photos),
        "captions": len(captions),
        "seconds": seconds,
        "pairs_a_second": scores.size / seconds,
        "naive_pairs_a_second": 1 / naive,
        "threads": torch.get_num_threads(),
        "unknown_words": sum(caption.count(tokenizer.unk_token_id) for caption in captions),
        "directions": [
            {"direction": direction, "score": name, **asdict(rank(matrix, owner))}
            for name, matrix in by_score.items()
            for direction, rank in (("annotation", annotation_ranking), ("search", search_ranking))
        ],
    }


def transfer(subject: Subject, name: str, num_beams: int) -> dict[str, Any]:
    """Scores on photos of another data set, and the share of its words that are not in the vocabulary."""
    references = subject.photos.references()
    tokenizer = subject.processor.tokenizer
    counts = count_words(tokenizer.backend_tokenizer, (caption for own in references.values() for caption in own))
    vocabulary = tokenizer.get_vocab()
    missing = [word for word in counts if word not in vocabulary]
    result = generation(subject, num_beams)
    return {
        "name": name,
        "photos": len(references),
        "num_beams": num_beams,
        "scores": result["scores"],
        "intervals": result["intervals"],
        "words": counts.total(),
        "unknown_words": sum(counts[word] for word in missing),
        "distinct_words": len(counts),
        "unknown_distinct_words": len(missing),
    }


def neighbours(subject: Subject, words: Sequence[str]) -> dict[str, Any]:
    """Nearest neighbours of words."""
    found = nearest_words(subject.model, subject.processor.tokenizer, words)
    return {
        word: None if near is None else [{"word": other, "cosine": cosine} for other, cosine in near]
        for word, near in found.items()
    }


def learning_curve(run: Path, subject: Subject, num_beams: int, **options: Any) -> list[dict[str, Any]]:
    """Scores and training times of a run's checkpoints, in the order of their steps.

    Args:
        run: folder of the run.
        subject: the captioner and the photos.
        num_beams: beam size.
        **options: passed to [`nic_hf.data.cache_features`]; a backbone that was trained has other features in each
            checkpoint.

    Raises:
        ValueError: if the folder has no checkpoints.
    """
    found = sorted(run.glob("checkpoint-*/trainer_state.json"), key=lambda file: int(file.parent.name.split("-")[1]))
    if not found:
        raise ValueError(f"{run}: has no checkpoint-*/trainer_state.json; give the output folder of a training run")
    references = subject.photos.references()
    points = []
    for number, file in enumerate(found, start=1):
        logger.info("Checkpoint %d of %d: %s", number, len(found), file.parent.name)
        state = json.loads(file.read_text("utf-8"))
        model = NICForConditionalGeneration.from_pretrained(file.parent).to(subject.model.device).eval()
        photos = photos_with_features(model, subject.processor, subject.photos.photos, **options)
        captions = generate_captions(model, photos, batch_size=128, num_beams=num_beams)
        scores = score_captions(captions, references, ["bleu", "cider"])
        trained = [line["train_seconds"] for line in state["log_history"] if "train_seconds" in line]
        points.append(
            {"step": state["global_step"], "epoch": state["epoch"], "seconds": max(trained, default=None), **scores}
        )
    return points


def _key(caption: str) -> str:
    """A caption as it is compared with others: the words that are scored."""
    return " ".join(caption_words(caption))


@torch.no_grad()
def _features(subject: Subject) -> torch.Tensor:
    """Image features of all photos, of shape `(num_photos, feature_size)`."""
    photos = subject.photos
    if photos.features is not None:
        return torch.stack([photos.features[row] for row in photos.rows])
    batches = [
        subject.model.get_image_features(photos[index]["pixel_values"].unsqueeze(0).to(subject.model.device)).cpu()
        for index in range(len(photos))
    ]
    return torch.cat(batches)


@torch.no_grad()
def _naive_seconds_a_pair(
    model: NICForConditionalGeneration, features: torch.Tensor, captions: Sequence[Sequence[int]]
) -> float:
    """Seconds per pair of a loop that calls the model with precomputed features for each pair."""
    generator = np.random.default_rng(0)
    start = time.perf_counter()
    for _ in range(NAIVE_PAIRS):
        photo, caption = int(generator.integers(len(features))), captions[int(generator.integers(len(captions)))]
        labels = torch.tensor([caption], device=model.device)
        photo_features = features[photo : photo + 1].to(model.device)
        _ = -model(encoder_outputs=photo_features, labels=labels, return_dict=True).loss * len(caption)
    return (time.perf_counter() - start) / NAIVE_PAIRS
