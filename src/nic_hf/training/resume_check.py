"""Compare a run with the checkpoint that it resumes from: vocabulary, backbone, preprocessing and data.

Trainer does not: weights of the same shapes load, although the token ids mean other words.
"""

import json
import logging
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
from transformers import PreTrainedTokenizerBase

from ..configuration_nic import NICConfig
from ..data.streaming import StreamingCaptionDataset
from ..data.torch_datasets import CaptionDataset
from ..digests import compared_settings, digest_of, weights_digest
from ..writing import write_text
from .checkpoint_integrity import PROVENANCE_FILE, files_of, read_json

logger = logging.getLogger(__name__)

_FORMAT = 1
# Settings of the model that may change on resume: learned weights keep their meaning. The backbone is compared apart.
_MAY_CHANGE = (
    "attention_regularisation",
    "backbone_config",
    "dropout",
    "forget_bias",
    "freeze_backbone",
    "freeze_batch_norm",
    "image_dropout",
    "initializer_range",
    "label_smoothing",
    "recurrent_dropout",
    "use_cache",
    "variational_dropout",
)
_MOST_BLOCKS = 512
_PHOTOS_A_BLOCK = 16
_SHOWN = 5


class ResumeError(ValueError):
    """A run cannot resume from a checkpoint; the message says what differs, or what is missing."""


def describe(model: Any, processing_class: Any, dataset: Any) -> dict[str, Any]:
    """Describe what a run trains from: vocabulary, backbone, preprocessing and data, as JSON values.

    This reads the weights of a frozen backbone and the token ids of all captions once, or the first photos of the
    first shard of a stream.

    Args:
        model: the captioner, before a checkpoint is loaded.
        processing_class: its processor or tokenizer; if it is neither, the vocabulary is not described.
        dataset: the training dataset.
    """
    config = model.config
    encoder = getattr(model, "encoder", None)
    frozen = bool(getattr(encoder, "frozen", False))
    tokenizer = _tokenizer(processing_class)
    image_processor = getattr(processing_class, "image_processor", None)
    return {
        "format": _FORMAT,
        "model": {name: getattr(config, name, None) for name in NICConfig.__annotations__ if name not in _MAY_CHANGE},
        "vocabulary": None if tokenizer is None else _vocabulary(tokenizer),
        "backbone": {
            "config": None if encoder is None else compared_settings(config.backbone_config.to_dict()),
            "frozen": frozen,
            # The weights of a trained backbone are in the checkpoint.
            "weights": weights_digest(encoder) if frozen and encoder is not None else None,
        },
        "preprocessing": None if image_processor is None else compared_settings(image_processor.to_dict()),
        "data": _data(dataset),
    }


def save_provenance(description: Mapping[str, Any], checkpoint: Path) -> None:
    """Write a description of [`describe`] into a checkpoint."""
    write_text(checkpoint / PROVENANCE_FILE, json.dumps(description, indent=1, ensure_ascii=False) + "\n")


def record_files(checkpoint: Path) -> None:
    """Add the files of a complete checkpoint to its description."""
    description = read_json(checkpoint / PROVENANCE_FILE) or {}
    save_provenance({**description, "files": files_of(checkpoint)}, checkpoint)


def check_provenance(now: Mapping[str, Any], checkpoint: str | Path, processing_class: Any = None) -> None:
    """Compare a run with the checkpoint that it resumes from; warn if the checkpoint has no description.

    Args:
        now: the run, from `describe`.
        checkpoint: the checkpoint, with a description of `save_provenance`.
        processing_class: the processor or tokenizer, to name words that differ.

    Raises:
        ResumeError: naming all differences.
    """
    folder = Path(checkpoint)
    before = read_json(folder / PROVENANCE_FILE)
    if before is None or before.get("format") != _FORMAT:
        logger.warning(
            "%s: no %s of this version: vocabulary, backbone and data are not compared", folder, PROVENANCE_FILE
        )
        return
    now = json.loads(json.dumps(now))  # tuples become lists, as they did in the file
    for difference in _differences(before.get("order"), now.get("order")):
        logger.warning("%s: %s: the order of the samples will differ from an uninterrupted run", folder, difference)
    tokenizer = _tokenizer(processing_class)
    words = {} if tokenizer is None else tokenizer.get_vocab()
    differences = _vocabulary_differences(before["vocabulary"], now["vocabulary"], folder, words)
    if not differences:  # otherwise its size and the captions' token ids differ too
        differences += [f"the model's {text}" for text in _differences(before["model"], now["model"])]
        differences += _data_differences(before["data"], now["data"])
    differences += _backbone_differences(before["backbone"], now["backbone"])
    differences += [
        f"the preprocessing's {text}" for text in _differences(before["preprocessing"], now["preprocessing"])
    ]
    if differences:
        listed = "".join(f"\n- {difference}" for difference in differences)
        raise ResumeError(
            f"{folder} was trained with another setup and cannot be resumed:{listed}\nTo train it further on"
            " other data, load it with from_pretrained() and start a run without resume_from_checkpoint"
        )


def _tokenizer(processing_class: Any) -> PreTrainedTokenizerBase | None:
    tokenizer = getattr(processing_class, "tokenizer", processing_class)
    return tokenizer if isinstance(tokenizer, PreTrainedTokenizerBase) else None


def _vocabulary(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    words = json.dumps(sorted(tokenizer.get_vocab().items(), key=lambda item: item[1]))
    return {"words": len(tokenizer), "digest": digest_of([words.encode()])}


def _vocabulary_differences(before: Any, now: Any, checkpoint: Path, words: Mapping[str, int]) -> list[str]:
    if before is None or now is None or before["digest"] == now["digest"]:
        return []
    text = f"the vocabulary: {before['words']:,} words there, {now['words']:,} here"
    there = (read_json(checkpoint / "tokenizer.json") or {}).get("model", {}).get("vocab")
    if there:
        parts = {
            "only there": [word for word in there if word not in words],
            "only here": [word for word in words if word not in there],
            "with another id": [word for word in there if words.get(word, there[word]) != there[word]],
        }
        named = (f"{len(found):,} {what} ({_few(found)})" for what, found in parts.items() if found)
        text = f"{text}; {', '.join(named)}"
    return [text]


def _few(names: list[str]) -> str:
    return ", ".join(map(repr, names[:_SHOWN])) + (", ..." if len(names) > _SHOWN else "")


def _backbone_differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    differences = [f"the backbone's {text}" for text in _differences(before["config"], now["config"])]
    if before["frozen"] != now["frozen"]:
        words = {True: "frozen", False: "trained"}
        differences.append(f"the backbone: {words[before['frozen']]} there, {words[now['frozen']]} here")
    elif not differences and before["weights"] != now["weights"]:
        differences.append(f"the frozen backbone's weights: digest {before['weights']} there, {now['weights']} here")
    return differences


def _differences(before: Any, now: Any) -> list[str]:
    """List settings that differ; settings that only one version knows do not count."""
    if before is None or now is None:
        return []
    names = [name for name in before if name in now and before[name] != now[name]]
    return [f"{name}: {before[name]!r} there, {now[name]!r} here" for name in names]


def _data(dataset: Any) -> dict[str, Any]:
    if isinstance(dataset, CaptionDataset):
        return _captions(dataset)
    if isinstance(dataset, StreamingCaptionDataset):
        shards = dataset.stream.num_shards
        first = dataset.stream.shard(num_shards=shards, index=0).select_columns(["image_id", "captions"])
        rows = [[row["image_id"], row["captions"]] for row in islice(first, _PHOTOS_A_BLOCK)]
        return {"kind": "a stream of photos", "shards": shards, "first photos": digest_of([json.dumps(rows).encode()])}
    return {"kind": type(dataset).__name__, "samples": len(dataset) if hasattr(dataset, "__len__") else None}


def _captions(dataset: CaptionDataset) -> dict[str, Any]:
    """Describe a dataset by counts, settings, and a digest of the ids and captions of each block of photos."""
    photos = dataset.photos
    ids, rows = photos.image_ids(), np.asarray(photos.rows)
    labels = dataset.pairs.data.column("labels")
    ends = np.searchsorted(dataset.pairs.data.column("row").to_numpy(), rows, side="right").tolist()
    size = _PHOTOS_A_BLOCK
    while len(ids) > size * _MOST_BLOCKS:
        size *= 2
    blocks = []
    for start in range(0, len(ids), size):
        own = ids[start : start + size]
        first, last = ends[start - 1] if start else 0, ends[start + len(own) - 1]
        captions = labels.slice(first, last - first)
        lengths, words = pc.list_value_length(captions).to_numpy(), pc.list_flatten(captions).to_numpy()
        digest = digest_of([json.dumps(own).encode(), lengths.tobytes(), words.tobytes()])
        blocks.append([digest[:8], own[0]])
    features = [photos.features, *(features for _, features in photos.views)]
    files = [str(Path(*file.path.parts[-2:])) for table in features if table is not None for file in table.files]
    return {
        "kind": "captioned photos",
        "photos": len(ids),
        "captions": len(labels),
        "captions_per_sample": dataset.captions_per_sample,
        "views": [str(view) for view, _ in photos.views],
        # The file names are digests of photos, backbone and preprocessing.
        "features": digest_of(Path(file).as_posix().encode() for file in files) if files else None,
        "photos_a_block": size,
        "blocks": blocks,
    }


def _data_differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    if before["kind"] != now["kind"]:
        return [f"the data: {before['kind']} there, {now['kind']} here"]
    plain = [
        {name: value for name, value in data.items() if name not in ("blocks", "features", "photos_a_block")}
        for data in (before, now)
    ]
    differences = [f"the data's {text}" for text in _differences(*plain)]
    if "blocks" in before and before["photos_a_block"] == now["photos_a_block"]:
        size = before["photos_a_block"]
        for number, (there, here) in enumerate(zip(before["blocks"], now["blocks"], strict=False)):
            if there[0] != here[0]:
                differences.append(
                    f"the data: the first difference is in photos {number * size} to {(number + 1) * size - 1},"
                    f" which start with {there[1]!r} there and {here[1]!r} here"
                )
                break
    if not differences and before.get("features") != now.get("features"):
        differences.append("the image features: the photos, the preprocessing or the cache format changed")
    return differences
