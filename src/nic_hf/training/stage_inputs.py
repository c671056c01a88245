"""Create what a Trainer needs from settings: datasets, vocabulary, model, cached features."""

import logging
from typing import Any

import datasets
import numpy as np
import torch
from transformers import PreTrainedTokenizerFast

from ..data import (
    CaptionDataset,
    FeatureTable,
    PhotoDataset,
    PhotoView,
    cache_features,
    default_views,
    load_captions,
    split_encoder,
)
from ..model.captioner import NICForConditionalGeneration
from ..model.processor import NICProcessor, load_image_processor, squeeze_to
from ..tokenization import train_tokenizer
from ..tokenizer_style import cuts_unspaced
from ..word_vectors import load_word_vectors
from .arguments import CaptioningTrainingArguments
from .fine_tuning import thaw_backbone
from .recipe_settings import DataSettings, ModelSettings
from .vocabulary import check_coverage, extend_vocabulary

logger = logging.getLogger(__name__)


def load_splits(settings: DataSettings, args: CaptioningTrainingArguments) -> dict[str, datasets.Dataset]:
    """Load photos and captions of the splits, under the names `train`, `eval` and `predict`."""
    splits = {"train": settings.train_split, "eval": settings.eval_split, "predict": settings.predict_split}
    limits = {"train": settings.max_train_photos, "eval": settings.max_eval_photos}
    tables = {}
    with args.main_process_first(desc="loading captions"):  # the others then use its cache
        for part, split in splits.items():
            if split is not None:
                table = load_captions(settings.data, split, **settings.source_options())
                limit = limits.get(part)
                tables[part] = table if limit is None else table.select(range(min(limit, len(table))))
    return tables


def new_captioner(
    settings: ModelSettings, train: datasets.Dataset, min_frequency: int | None = None
) -> tuple[NICForConditionalGeneration, NICProcessor]:
    """Create a captioner with a pretrained backbone, a new LSTM, and the vocabulary of the training captions."""
    captions = _all_captions(train)
    tokenizer = train_tokenizer(captions, min_frequency=min_frequency, segmentation=settings.segmentation)
    word_vectors = None
    if settings.word_vectors:
        word_vectors = load_word_vectors(settings.word_vectors, tokenizer)
        logger.info("%s", word_vectors)
    image_processor = load_image_processor(settings.backbone)
    if settings.squeeze:
        squeeze_to(image_processor, settings.squeeze)
    model = NICForConditionalGeneration.from_backbone_pretrained(
        settings.backbone,
        tokenizer=tokenizer,
        word_embeddings=None if word_vectors is None else word_vectors.weights,
        freeze_word_embeddings=settings.freeze_word_embeddings,
        feature_layers=_layers(settings.feature_layers),
        embedding_size=settings.embedding_size,
        hidden_size=settings.hidden_size,
        num_hidden_layers=settings.num_hidden_layers,
        bag_of_words_loss=settings.bag_of_words_loss,
        initializer_range=settings.initializer_range,
        attention=settings.attention,
        **_how_to_train(settings),
    )
    _set_decoding(model, settings)
    _allow_length(model, tokenizer, captions)
    if not settings.freeze_backbone:
        thaw_backbone(model, settings.trainable_backbone)
    return model, NICProcessor(image_processor, tokenizer)


def trained_captioner(
    settings: ModelSettings, checkpoint: str, train: datasets.Dataset | None = None, min_frequency: int | None = None
) -> tuple[NICForConditionalGeneration, NICProcessor]:
    """Load a captioner to train further. Its architecture is kept; how it is trained follows `settings`.

    Args:
        settings: the settings; `extend_vocabulary` adds new words of the training captions.
        checkpoint: the captioner, a folder or a Hub id.
        train: the training photos, to check that the vocabulary covers their captions; None if the vocabulary was
            learned from them.
        min_frequency: how often a new word must occur; see [`nic_hf.tokenization.train_tokenizer`].

    Raises:
        ValueError: if the vocabulary covers too few words of the captions.
    """
    model = NICForConditionalGeneration.from_pretrained(checkpoint, **_how_to_train(settings))
    processor = NICProcessor.from_pretrained(checkpoint)
    _set_decoding(model, settings)
    if train is not None:
        captions = _all_captions(train)
        advice = "add frequent words with --extend_vocabulary true, or start without from_checkpoint"
        if settings.extend_vocabulary:
            advice = "lower min_frequency to add more words"
            processor.tokenizer = extend_vocabulary(
                model,
                processor.tokenizer,
                captions,
                min_frequency,
                segmentation=settings.segmentation,
                word_vectors=settings.word_vectors,
            )
            _allow_length(model, processor.tokenizer, captions)
        check_coverage(processor.tokenizer, captions, settings.min_vocabulary_coverage, checkpoint, advice)
    if not settings.freeze_backbone:
        thaw_backbone(model, settings.trainable_backbone)
    return model, processor


def caption_datasets(
    model: NICForConditionalGeneration,
    processor: NICProcessor,
    tables: dict[str, datasets.Dataset],
    settings: DataSettings,
    args: CaptioningTrainingArguments,
    set_statistics: bool = True,
) -> tuple[dict[str, PhotoDataset], CaptionDataset, CaptionDataset]:
    """Create the photos of each part, and the training and evaluation datasets.

    Features of a frozen backbone are computed once. A trained backbone reads the photos in each epoch, or, with
    `cache_lower_blocks`, the cached output of its frozen blocks.

    Args:
        set_statistics: set mean and standard deviation of the features from the training photos; only for a new
            captioner.
    """
    frozen = model.config.freeze_backbone
    options: dict[str, Any] = {
        "num_workers": args.dataloader_num_workers,
        "on_error": settings.on_error,
        "dtype": getattr(torch, settings.feature_dtype),
    }
    if settings.cache_lower_blocks and not frozen:
        photo = PhotoDataset(tables["train"].select([0]), processor)[0]["pixel_values"]
        model.encoder = split_encoder(model.encoder, photo.shape)
        options |= {"lower_blocks": model.encoder.lower_blocks[0], "dtype": torch.float16}

    def features_of(table: datasets.Dataset, view: PhotoView | None) -> FeatureTable | None:
        if not frozen and not settings.cache_lower_blocks:
            return None
        with args.main_process_first(desc="encoding photos"):
            return cache_features(model, processor, table, settings.cache_dir, view=view, **options)

    photos = {}
    for part, table in tables.items():
        is_train = part == "train"
        whole, *views = default_views(settings.views, edited=settings.edited_views) if is_train else [None]
        features = features_of(table, whole)
        if part == "train" and features is not None and frozen and set_statistics:
            model.set_feature_statistics(*(statistic.to(model.device) for statistic in features.statistics()))
        seen = [(view, features_of(table, view)) for view in views if view is not None]
        photos[part] = PhotoDataset(table, processor, features, on_error=settings.on_error, views=seen)
    tokenizer, length = processor.tokenizer, settings.max_caption_length
    with args.main_process_first(desc="tokenizing captions"):
        train = CaptionDataset(photos["train"], tokenizer, length, settings.captions_per_sample)
        # If the backbone runs in evaluation too, captions of a photo share the pass.
        together = 1 if frozen else max(map(len, tables["eval"]["captions"]))
        evaluation = CaptionDataset(photos["eval"], tokenizer, length, together)
    cut = float((train.lengths() >= length).mean()) if len(train) else 0.0
    if cut > 0.01:
        logger.warning(
            f"{100 * cut:.0f}% of the training captions have {length} words or more: max_caption_length truncates them"
        )
    logger.info(f"{len(tokenizer) - 4:,} words, {len(train.pairs):,} captions of {len(photos['train']):,} photos")
    return photos, train, evaluation


def _all_captions(table: datasets.Dataset) -> list[str]:
    return [caption for captions in table["captions"] for caption in captions]


def _allow_length(model: NICForConditionalGeneration, tokenizer: PreTrainedTokenizerFast, captions: list[str]) -> None:
    """Raise `max_new_tokens` for scripts without spaces, whose captions may have more words than in English."""
    if not cuts_unspaced(tokenizer):
        return
    some = captions[:: 1 + len(captions) // 10_000]
    lengths = [len(ids) for ids in tokenizer(some).input_ids]
    longest = int(np.quantile(lengths, 0.99))
    if longest > model.generation_config.max_new_tokens:
        model.generation_config.max_new_tokens = longest
        logger.info(f"max_new_tokens={longest}, enough for 99% of the training captions")


def _how_to_train(settings: ModelSettings) -> dict[str, Any]:
    names = (
        "dropout",
        "image_dropout",
        "variational_dropout",
        "recurrent_dropout",
        "label_smoothing",
        "attention_regularisation",
        "freeze_backbone",
        "freeze_batch_norm",
    )
    return {name: getattr(settings, name) for name in names}


def _set_decoding(model: NICForConditionalGeneration, settings: ModelSettings) -> None:
    model.generation_config.num_beams = settings.num_beams
    model.generation_config.length_penalty = settings.length_penalty


def _layers(text: str | None) -> str | list[int] | None:
    if text is None or text == "all":
        return text
    try:
        return [int(number) for number in text.split(",")]
    except ValueError as error:
        raise ValueError(f"feature_layers must be all or numbers like 3,6,-1, got {text!r}") from error
