"""CLIP-S and RefCLIP-S: how well captions fit their photos, by a CLIP model (Hessel et al. 2021, arXiv 2104.08718)."""

import logging
from collections.abc import Callable, Hashable, Mapping, Sequence
from os import PathLike
from typing import Any, TypeVar

import numpy as np
import torch
from transformers import AutoTokenizer, CLIPModel, PreTrainedConfig

from ..images import load_photo
from ..lookup import look_up
from ..model.checkpoint import check_all_weights_loaded, damaged_file_as_oserror
from ..model.processor import load_image_processor
from ..progress_bar import progress_bar
from .predictions_and_references import EvaluationDataError, check_captions, check_text

logger = logging.getLogger(__name__)

PROMPT = "A photo depicts "
WEIGHT = 2.5

Id = TypeVar("Id", bound=Hashable)


def clip_scores(
    model: str | PathLike[str],
    photos: Mapping[Id, Any],
    captions: Mapping[Id, str],
    references: Mapping[Id, Sequence[str]] | None = None,
    batch_size: int = 64,
    device: str | torch.device | None = None,
    progress: bool = True,
) -> dict[Id, dict[str, float]]:
    """Compute CLIP-S of each caption and, if references are given, RefCLIP-S.

    With cosines of CLIP's projected features of photo v, caption c and references R, each text preceded by
    "A photo depicts ": `CLIP-S = 2.5 max(cos(c, v), 0)`, and RefCLIP-S is the harmonic mean of CLIP-S and
    `max(max_R cos(c, r), 0)`. Corpus scores are means. Published scores use `openai/clip-vit-base-patch32` in fp16;
    this function uses fp32.

    Args:
        model: Hub id or folder of a CLIP model with its tokenizer and image processor.
        photos: photos by image id, in any form that `load_photo` takes: paths, bytes, PIL images, ...
        captions: one caption by image id. Captions that are too long for the model are truncated, with a warning.
        references: captions by image id, at least one each.
        batch_size: number of photos or captions per forward pass.
        device: device to compute on. Defaults to a GPU if there is one.
        progress: show progress bars.

    Returns:
        For each image id `"clip_s"` (0 to 2.5) and, with references, `"ref_clip_s"` (0 to 1.43).

    Raises:
        EvaluationDataError: if there are no captions, the ids differ, a caption is not text, or a feature is not
            finite; the message names the id, the photo or the caption.
        OSError: if the model or a photo cannot be read.
        ValueError: if the model is not a CLIP model, weights are missing, or the batch size is below 1.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, not {batch_size}")
    _check(photos, captions, references)
    encoder = _Encoder(model, torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu")))
    ids = list(captions)
    # Photos with several ids and captions that are also references are encoded once.
    sources = {image_id: _source_key(photos[image_id]) for image_id in ids}
    distinct = {sources[image_id]: photos[image_id] for image_id in ids}
    photo_rows, photo_features = encoder.encode(distinct, encoder.photos, batch_size, "photo", progress)
    texts = {text: text for text in captions.values()}
    texts |= {text: text for listed in (references or {}).values() for text in listed}
    encoder.warn_of_long(list(texts))
    text_rows, text_features = encoder.encode(texts, encoder.texts, batch_size, "caption", progress)
    scores: dict[Id, dict[str, float]] = {}
    for image_id in ids:
        feature = text_features[text_rows[captions[image_id]]]
        clip_s = WEIGHT * max(float(feature @ photo_features[photo_rows[sources[image_id]]]), 0.0)
        scores[image_id] = {"clip_s": clip_s}
        if references is not None:
            rows = [text_rows[text] for text in references[image_id]]
            closest = max(float((text_features[rows] @ feature).max()), 0.0)
            total = clip_s + closest
            scores[image_id]["ref_clip_s"] = 2 * clip_s * closest / total if total else 0.0
    return scores


class _Encoder:
    """A CLIP model with its tokenizer and image processor. Features are normalized to length 1."""

    def __init__(self, name: str | PathLike[str], device: torch.device) -> None:
        look_up(name)
        config = _read(name, PreTrainedConfig.get_config_dict)[0]
        if config.get("model_type") != "clip":
            kind = config.get("model_type") or "a folder without a model's config.json"
            raise ValueError(f"{name}: CLIP-S needs a CLIP model, and this is {kind}")
        with damaged_file_as_oserror(name):
            model, info = _read(name, CLIPModel.from_pretrained, dtype=torch.float32, output_loading_info=True)
        check_all_weights_loaded(name, info)
        self.tokenizer = _read(name, AutoTokenizer.from_pretrained)
        _check_tokenizer(name, self.tokenizer, model.config.text_config)
        self.image_processor = _read(name, load_image_processor)
        self.model: Any = model.to(device).eval()
        self.device = device
        self.max_tokens = min(self.tokenizer.model_max_length, self.model.config.text_config.max_position_embeddings)

    @torch.inference_mode()
    def encode(
        self,
        items: Mapping[Any, Any],
        features_of: Callable[[list[Any]], torch.Tensor],
        batch_size: int,
        unit: str,
        progress: bool,
    ) -> tuple[dict[Any, int], np.ndarray]:
        """Row of each item by its key, and features of shape `(num_items, projection_size)`."""
        listed, parts = list(items.values()), []
        with progress_bar(total=len(listed), unit=unit, desc=f"CLIP: {unit}s", hidden=not progress) as bar:
            for start in range(0, len(listed), batch_size):
                batch = listed[start : start + batch_size]
                parts.append(torch.nn.functional.normalize(features_of(batch), dim=-1).cpu().numpy())
                bar.update(len(batch))
        features = np.concatenate(parts).astype(np.float64)
        for row in np.flatnonzero(~np.isfinite(features).all(axis=1)):
            raise EvaluationDataError(f"CLIP's features of the {unit} {listed[row]!r:.200} are not finite")
        return {key: row for row, key in enumerate(items)}, features

    def photos(self, sources: list[Any]) -> torch.Tensor:
        """Features of photos, shape `(batch_size, projection_size)`."""
        images = [load_photo(source) for source in sources]
        pixel_values = self.image_processor(images, return_tensors="pt")["pixel_values"]
        return _tensor(self.model.get_image_features(pixel_values=pixel_values.to(self.device)))

    def texts(self, captions: list[str]) -> torch.Tensor:
        """Features of captions with the prompt, shape `(batch_size, projection_size)`."""
        inputs = self.tokenizer(
            [PROMPT + caption for caption in captions],
            padding=True,
            truncation=True,
            max_length=self.max_tokens,
            return_tensors="pt",
        ).to(self.device)
        return _tensor(
            self.model.get_text_features(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"])
        )

    def warn_of_long(self, captions: list[str]) -> None:
        """Warn about captions that `texts` will truncate."""
        tokens = self.tokenizer([PROMPT + caption for caption in captions], verbose=False)["input_ids"]
        long = [caption for caption, ids in zip(captions, tokens, strict=True) if len(ids) > self.max_tokens]
        if long:
            logger.warning(
                "%d captions are longer than the model's %d tokens and are truncated; the first: %.80r...",
                len(long),
                self.max_tokens,
                long[0],
            )


def _read(name: str | PathLike[str], load: Callable[..., Any], **options: Any) -> Any:
    """Load a part of the model; errors are one line with the model's name."""
    try:
        return load(name, **options)
    except (OSError, ValueError) as error:
        raise OSError(f"{name}: cannot be read as a CLIP model: {' '.join(str(error).split())}") from error


def _check_tokenizer(name: str | PathLike[str], tokenizer: Any, config: Any) -> None:
    """Raise a `ValueError` if the tokenizer's end-of-text token is not the one that the model pools at.

    Transformers creates an empty CLIP tokenizer if a folder has no tokenizer files.
    """
    # Configurations from before Transformers 4.31 have 2 here, and the model then uses the highest id.
    end = config.eos_token_id if config.eos_token_id != 2 else config.vocab_size - 1
    if tokenizer.eos_token_id != end:
        raise ValueError(
            f"{name}: the tokenizer's end-of-text token is {tokenizer.eos_token_id} and the model expects {end}; they "
            "do not belong together, or the tokenizer's files are missing"
        )


def _tensor(features: Any) -> torch.Tensor:
    """The tensor that `get_*_features` returned, from Transformers 5 on inside a `ModelOutput`."""
    return features if torch.is_tensor(features) else features.pooler_output


def _source_key(source: Any) -> Any:
    return source if isinstance(source, str | PathLike | bytes) else id(source)


def _check(
    photos: Mapping[Id, Any], captions: Mapping[Id, str], references: Mapping[Id, Sequence[str]] | None
) -> None:
    named = {"photos": photos, "captions": captions} | ({} if references is None else {"references": references})
    for name, mapping in named.items():
        if not isinstance(mapping, Mapping):
            raise EvaluationDataError(f"{name} must be a mapping by image id, not {type(mapping).__name__}")
    if not captions:
        raise EvaluationDataError("captions are empty: there is nothing to score")
    for name, mapping in named.items():
        _check_same_ids(captions, name, mapping)
    for image_id, caption in captions.items():
        check_text(caption, "caption of {!r}", image_id)
        if not caption.strip():
            logger.warning("the caption of %r is empty; it gets the score of the prompt", image_id)
    for image_id, listed in (references or {}).items():
        check_captions(listed, "of {!r}", image_id)


def _check_same_ids(captions: Mapping[Id, str], name: str, mapping: Mapping[Id, Any]) -> None:
    for image_id in captions:
        if image_id not in mapping:
            raise EvaluationDataError(f"{image_id!r} has a caption but is not in the {name}")
    for image_id in mapping:
        if image_id not in captions:
            raise EvaluationDataError(f"{image_id!r} is in the {name} but has no caption")
