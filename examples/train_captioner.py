#!/usr/bin/env python
"""Train Show and Tell on captioned photos with Trainer.

    python examples/train_captioner.py --data path/to/flickr8k --backbone google/mobilenet_v2_1.0_224 \
        --output_dir runs/flickr8k

Two processes or GPUs: put `torchrun --nproc_per_node 2` in place of `python`.
"""

import json
import logging
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import transformers
from transformers import HfArgumentParser, set_seed

from nic_hf import NICForConditionalGeneration, NICProcessor
from nic_hf.data import (
    CaptionDataset,
    FeatureTable,
    PhotoDataset,
    PhotoView,
    cache_features,
    default_views,
    load_captions,
)
from nic_hf.processing_nic import load_image_processor, squeeze_to
from nic_hf.tokenization import train_tokenizer
from nic_hf.training import CaptioningTrainer, CaptioningTrainingArguments, SampleCaptionsCallback
from nic_hf.word_vectors import load_word_vectors

logger = logging.getLogger(__name__)


@dataclass
class ModelArguments:
    """What the captioner is made of."""

    backbone: str = field(metadata={"help": "Hub id or path of any Transformers vision model."})
    word_vectors: str | None = field(
        default=None,
        metadata={
            "help": "Word vectors to start from: a SentenceTransformer (Hub id or path), or a GloVe/word2vec file"
        },
    )
    freeze_word_embeddings: bool = field(default=False, metadata={"help": "Keep the word vectors as they are."})
    freeze_backbone: bool = field(
        default=True, metadata={"help": "Keep the backbone as it is; its features are then computed once and cached."}
    )
    embedding_size: int = field(default=512, metadata={"help": "Size of word vectors, where none are given."})
    hidden_size: int = field(default=512, metadata={"help": "Size of the LSTM."})
    num_hidden_layers: int = field(default=1, metadata={"help": "Layers of the LSTM."})
    dropout: float = field(default=0.5, metadata={"help": "Dropout before and after the LSTM."})
    label_smoothing: float = field(default=0.1, metadata={"help": "Label smoothing of the training loss."})
    attention: str | None = field(
        default=None, metadata={"help": "soft: look at the photo's regions before each word (Show, Attend and Tell)."}
    )
    attention_regularisation: float = field(
        default=0.0, metadata={"help": "How much attention is to spread over all regions of the photo (lambda)."}
    )
    squeeze: int | None = field(
        default=None,
        metadata={"help": "Resize whole photos to so many pixels a side, in place of the backbone's resize and crop."},
    )
    num_beams: int = field(default=3, metadata={"help": "Beams of the saved generation config."})
    length_penalty: float = field(default=1.0, metadata={"help": "Length penalty of the saved generation config."})


@dataclass
class DataArguments:
    """What it learns from."""

    data: str = field(metadata={"help": "Captioned photos: see `nic_hf.data.load_captions` for the forms it takes."})
    train_split: str = field(default="train", metadata={"help": "Split to learn from."})
    eval_split: str = field(default="validation", metadata={"help": "Split to choose by."})
    predict_split: str | None = field(
        default=None, metadata={"help": "Split to caption at the end, into predictions_SPLIT.json."}
    )
    min_frequency: int = field(default=5, metadata={"help": "Words seen less often in training become <unk>."})
    max_caption_length: int = field(default=50, metadata={"help": "Longer captions are cut to so many words."})
    max_train_photos: int | None = field(default=None, metadata={"help": "Learn from the first photos only."})
    max_eval_photos: int | None = field(default=None, metadata={"help": "Evaluate on the first photos only."})
    on_error: str = field(default="raise", metadata={"help": "raise or skip, for broken lines and photos."})
    cache_dir: str | None = field(default=None, metadata={"help": "Where image features are kept between runs."})
    views: int = field(
        default=1,
        metadata={"help": "Ways to see each training photo: itself, mirrored, then cuts. Features are kept of each."},
    )
    num_samples: int = field(default=8, metadata={"help": "Photos whose captions are logged through training."})


def main() -> None:
    """Parse arguments, load data, train, evaluate, save."""
    parser = HfArgumentParser((ModelArguments, DataArguments, CaptioningTrainingArguments), description=__doc__)
    if len(sys.argv) == 2 and sys.argv[1].endswith((".json", ".yaml", ".yml")):
        parse = parser.parse_json_file if sys.argv[1].endswith(".json") else parser.parse_yaml_file
        try:
            model_args, data_args, training_args = parse(sys.argv[1])
        except (
            TypeError,
            ValueError,
        ) as error:  # not JSON, an option that does not exist, or one that has to be given
            raise ValueError(f"{sys.argv[1]}: {error}") from error
    else:
        model_args, data_args, training_args = parser.parse_args_into_dataclasses()

    logging.basicConfig(level=logging.INFO if training_args.should_log else logging.WARNING, format="%(message)s")
    transformers.utils.logging.set_verbosity(training_args.get_process_log_level())
    training_args.check_paths()
    set_seed(training_args.seed)

    # Photos and captions. One process prepares them, the others then find them in the cache.
    splits = {"train": data_args.train_split, "eval": data_args.eval_split, "predict": data_args.predict_split}
    limits = {"train": data_args.max_train_photos, "eval": data_args.max_eval_photos}
    datasets = {}
    with training_args.main_process_first(desc="loading captions"):
        for part, split in splits.items():
            if split is not None:
                dataset = load_captions(data_args.data, split, on_error=data_args.on_error)
                limit = limits.get(part)
                datasets[part] = dataset if limit is None else dataset.select(range(min(limit, len(dataset))))

    # Words, learned from the training split only.
    tokenizer = train_tokenizer(
        (caption for captions in datasets["train"]["captions"] for caption in captions),
        min_frequency=data_args.min_frequency,
    )
    word_vectors = None
    if model_args.word_vectors:
        word_vectors = load_word_vectors(model_args.word_vectors, tokenizer)
        logger.info("%s", word_vectors)

    # The model: a pretrained backbone, and an LSTM that starts at random.
    image_processor = load_image_processor(model_args.backbone)
    if model_args.squeeze:
        squeeze_to(image_processor, model_args.squeeze)
    processor = NICProcessor(image_processor, tokenizer)
    model = NICForConditionalGeneration.from_backbone_pretrained(
        model_args.backbone,
        tokenizer=tokenizer,
        word_embeddings=None if word_vectors is None else word_vectors.weights,
        freeze_word_embeddings=model_args.freeze_word_embeddings,
        freeze_backbone=model_args.freeze_backbone,
        embedding_size=model_args.embedding_size,
        hidden_size=model_args.hidden_size,
        num_hidden_layers=model_args.num_hidden_layers,
        dropout=model_args.dropout,
        label_smoothing=model_args.label_smoothing,
        attention=model_args.attention,
        attention_regularisation=model_args.attention_regularisation,
    )
    model.generation_config.num_beams = model_args.num_beams
    model.generation_config.length_penalty = model_args.length_penalty
    model.to(training_args.device)

    # Image features of a frozen backbone are computed once; a trained backbone sees the photos each epoch.
    def features_of(dataset: Any, view: PhotoView | None) -> FeatureTable | None:
        if not model_args.freeze_backbone:
            return None
        workers = training_args.dataloader_num_workers
        settings = {"num_workers": workers, "on_error": data_args.on_error, "view": view}
        with training_args.main_process_first(desc="encoding photos"):
            return cache_features(model, processor, dataset, data_args.cache_dir, **settings)

    photos = {}
    for part, dataset in datasets.items():
        whole, *views = default_views(data_args.views if part == "train" else 1)
        features = features_of(dataset, whole)
        if part == "train" and features is not None:
            model.set_feature_statistics(*(statistic.to(model.device) for statistic in features.statistics()))
        seen = [(view, features_of(dataset, view)) for view in views if view is not None]
        photos[part] = PhotoDataset(dataset, processor, features, on_error=data_args.on_error, views=seen)
    with training_args.main_process_first(desc="tokenizing captions"):
        train_dataset = CaptionDataset(photos["train"], tokenizer, data_args.max_caption_length)
        eval_dataset = CaptionDataset(photos["eval"], tokenizer, data_args.max_caption_length)
    logger.info(f"{len(tokenizer) - 4:,} words, {len(train_dataset):,} captions of {len(photos['train']):,} photos")

    trainer = CaptioningTrainer(
        model=model,
        args=training_args,
        train_dataset=train_dataset,
        eval_dataset=eval_dataset,
        processing_class=processor,
        callbacks=[SampleCaptionsCallback(photos["eval"].first(data_args.num_samples))],
    )
    result = trainer.train(resume_from_checkpoint=training_args.resume_from_checkpoint)
    trainer.save_model()
    trainer.log_metrics("train", result.metrics)
    trainer.save_metrics("train", result.metrics)
    trainer.save_state()
    metrics = trainer.evaluate()
    trainer.log_metrics("eval", metrics)
    trainer.save_metrics("eval", metrics)

    if "predict" in photos:
        captions = trainer.caption(photos["predict"])
        if trainer.is_world_process_zero():
            path = Path(training_args.output_dir) / f"predictions_{data_args.predict_split}.json"
            path.write_text(json.dumps(captions, indent=1, ensure_ascii=False), encoding="utf-8")
            logger.info(f"Captions of {data_args.predict_split}: {path}")
    trainer.accelerator.end_training()


if __name__ == "__main__":
    try:
        main()
    except (OSError, ValueError) as error:
        # Bad input, and not a mistake in here: the message says what is wrong.
        print("error:", *str(error).split(), file=sys.stderr)
        sys.exit(2)
