"""Captions with probabilities and attention, for the app."""

import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from ..batching import BatchedCalls
from ..captioning.captioners import TorchCaptioner, is_onnx, load_checkpoint
from ..images import load_photo, photo_size, reason
from ..model.confidence import unlikeness

MAX_PIXELS = 50_000_000
READERS = 4  # photos decoded at a time, each of which may take 150 MB


class UnknownFormatError(OSError):
    """The format of a file is unknown."""


@dataclass(frozen=True)
class ScoredWord:
    """A word of a caption.

    Attributes:
        text: the word.
        probability: p(S_t | I, S_0 ... S_t-1), equation 2 of Show and Tell, before temperature.
        attention: weights of the photo's regions, of shape `(rows, columns)`, which sum to 1; `None` without
            attention.
    """

    text: str
    probability: float
    attention: np.ndarray | None = None


@dataclass(frozen=True)
class ScoredCaption:
    """A caption of a photo.

    Attributes:
        text: the caption.
        probability: probability of the whole caption, including its end (equation 2).
        words: its words.
        ended: whether it has an end; a caption of maximum length may have been truncated.
        confidence: chance that people would accept it; `None` if the captioner is not calibrated.
        is_unlike: whether the confidence is low because the photo is unlike the training photos.
    """

    text: str
    probability: float
    words: tuple[ScoredWord, ...]
    ended: bool = True
    confidence: float | None = None
    is_unlike: bool = False

    @property
    def probability_a_word(self) -> float:
        """Geometric mean over the words and the end, which is comparable between captions of different length."""
        return self.probability ** (1 / max(len(self.words) + self.ended, 1))

    def to_json(self) -> dict[str, Any]:
        """Return plain values, with attention weights rounded to four digits."""
        words: list[dict[str, Any]] = []
        for word in self.words:
            words.append({"word": word.text, "probability": word.probability})
            if word.attention is not None:
                words[-1]["attention"] = np.round(word.attention.astype(float), 4).tolist()
        return {
            "caption": self.text,
            "confidence": None if self.confidence is None else round(self.confidence, 4),
            "unlike_training_photos": self.is_unlike,
            "probability": self.probability,
            "probability_a_word": self.probability_a_word,
            "words": words,
        }


class AppCaptioner(TorchCaptioner):
    """A captioner for many visitors at a time: their photos share batches (see [`nic_hf.batching.BatchedCalls`]).

    Args:
        model, processor, name, device: see [`nic_hf.captioning.TorchCaptioner`].
    """

    def __init__(self, model: Any, processor: Any, name: str = "", device: str | None = None) -> None:
        super().__init__(model, processor, name, device)
        self.has_attention = self.model.config.attention is not None
        # generate() keeps state in the model, and samples come from a single generator.
        self._turn = threading.Lock()
        self._batches = BatchedCalls(self._describe)
        self._reading = threading.BoundedSemaphore(READERS)

    @classmethod
    def load(cls, name_or_path: str | os.PathLike[str], device: str | None = None) -> "AppCaptioner":
        """Load a checkpoint.

        Raises:
            OSError, ValueError: there is no such captioner, or its files are damaged or inconsistent.
        """
        if is_onnx(name_or_path):
            raise ValueError(
                f"{name_or_path}: the app shows the probability of each word, which ONNX files do not give; name the"
                " checkpoint that they were exported from"
            )
        return cls(*load_checkpoint(name_or_path), os.fspath(name_or_path), device)

    def caption(self, pixel_values: np.ndarray, **generation: Any) -> list[str]:
        """See [`nic_hf.captioning.Captioner`]."""
        with self._turn:
            return super().caption(pixel_values, **generation)

    def caption_with_confidence(self, pixel_values: np.ndarray, **generation: Any) -> list[tuple[str, float]]:
        """See [`nic_hf.captioning.Captioner`]."""
        with self._turn:
            return super().caption_with_confidence(pixel_values, **generation)

    def read(self, photo: str | os.PathLike[str] | Image.Image) -> Image.Image:
        """Load a photo as upright RGB, at the smallest size the model needs.

        Raises:
            OSError: it cannot be read, or has more than 50 million pixels.
        """
        with readable(photo) as name:
            return load_photo(photo, at_least=self.photo_size, name=name)

    def describe(
        self,
        photo: str | os.PathLike[str] | Image.Image,
        num_captions: int = 1,
        *,
        num_beams: int | None = None,
        temperature: float | None = None,
        seed: int | None = None,
    ) -> list[ScoredCaption]:
        """Caption a photo by beam search or sampling.

        Args:
            photo: the photo or its path.
            num_captions: number of captions.
            num_beams: beam size, at least `num_captions`; the checkpoint's if not given.
            temperature: sample at this temperature instead of searching. Duplicates are removed.
            seed: seed of the samples.

        Returns:
            Captions in the order of the beam search, or samples sorted by probability.

        Raises:
            OSError: the photo cannot be read.
        """
        with self._reading:
            pixels = torch.from_numpy(self.prepare(self.read(photo)))
        settings: dict[str, Any] = {"num_return_sequences": num_captions}
        if temperature is not None:
            settings |= {"do_sample": True, "num_beams": 1, "temperature": temperature}
        else:
            beams = num_beams or self.model.generation_config.num_beams or 1
            settings |= {"do_sample": False, "num_beams": max(beams, num_captions)}
        # Samples are drawn alone: those of a seed must not depend on other visitors.
        group = (pixels.shape, *settings.values()) if temperature is None else object()
        scored = self._batches((pixels, settings, seed), group)
        if temperature is not None:
            scored = sorted({each.text: each for each in scored}.values(), key=lambda each: -each.probability)
        return scored

    def _describe(self, asked: list[tuple[torch.Tensor, dict[str, Any], int | None]]) -> list[list[ScoredCaption]]:
        """Caption photos of one size with the same settings."""
        pixels, (_, settings, seed) = torch.stack([each[0] for each in asked]), asked[0]
        with self._turn, torch.inference_mode():
            if seed is not None:
                torch.manual_seed(seed)
            features = self.model.get_image_features(pixels.to(self.model.device))
            ids = self.model.generate(encoder_outputs=features, **settings)
            return self._score(features, ids, (pixels.shape[-2], pixels.shape[-1]))

    def _score(
        self, features: torch.Tensor, ids: torch.Tensor, photo_shape: tuple[int, int]
    ) -> list[list[ScoredCaption]]:
        """Score captions, of shape `(num_photos * num_captions, sequence_length)`, which start with `<bos>`."""
        number = len(ids) // len(features)
        read, said = ids[:, :-1], ids[:, 1:]
        output = self.model(
            encoder_outputs=features,
            decoder_input_ids=read.unflatten(0, (-1, number)),
            use_cache=False,
            output_attentions=True,
            return_dict=True,
        )
        # shape: (num_photos * num_captions, sequence_length)
        log_probabilities = output.logits.float().log_softmax(-1).gather(-1, said.unsqueeze(-1)).squeeze(-1).cpu()
        weights = output.cross_attentions[0].float().cpu().numpy() if output.cross_attentions else None
        tokenizer, scored = self.processor.tokenizer, []
        known = None if isinstance(self.calibration, str) else self.calibration
        unlike = unlikeness(self.model, features).cpu().repeat_interleave(number)
        for row, caption in enumerate(said.tolist()):
            end = caption.index(tokenizer.eos_token_id) if tokenizer.eos_token_id in caption else len(caption)
            words = [
                ScoredWord(
                    tokenizer.convert_ids_to_tokens(caption[place]),
                    float(log_probabilities[row, place].exp()),
                    None if weights is None else as_grid(weights[row, place], photo_shape),
                )
                for place in range(end)
            ]
            own = log_probabilities[row, : end + 1]
            scored.append(
                ScoredCaption(
                    tokenizer.decode(caption[:end], skip_special_tokens=True),
                    float(own.sum().exp()),
                    tuple(words),
                    ended=end < len(caption),
                    confidence=None if known is None else float(known.confidence(own.mean(), unlike[row])),
                    is_unlike=known is not None and known.is_unlike(float(unlike[row])),
                )
            )
        return [scored[start : start + number] for start in range(0, len(scored), number)]

    def seen(self, photo: str | os.PathLike[str] | Image.Image, side: int) -> Image.Image:
        """Return the part of a photo that the model sees, with `side` pixels on the longer side."""
        settings = self.processor.image_processor.to_dict()
        with readable(photo) as name:
            image = load_photo(photo, at_least=(side, side), name=name)
        size = settings.get("size") or {}
        if settings.get("do_center_crop") or (settings.get("do_resize") and not {"height", "width"} <= size.keys()):
            pixels = self.prepare(self.read(photo)).transpose(1, 2, 0)
            if settings.get("do_normalize"):
                pixels = pixels * np.asarray(settings["image_std"]) + np.asarray(settings["image_mean"])
            image = Image.fromarray((pixels * 255).clip(0, 255).round().astype(np.uint8))
        image.thumbnail((side, side))
        return image


@contextmanager
def readable(photo: str | os.PathLike[str] | Image.Image) -> Iterator[str | None]:
    """Check format and size of a photo, and yield the name of its file, without folder, for messages."""
    if isinstance(photo, Image.Image):
        yield None
        return
    name = Path(photo).name
    try:
        width, height = photo_size(photo, name)
        if width * height > MAX_PIXELS:
            raise OSError(f"{width} x {height} pixels; {MAX_PIXELS // 10**6} million at most")
        yield name
    except FileNotFoundError as error:
        raise OSError(f"{name}: no longer here; photos are not kept for long: give it again") from error
    except Image.UnidentifiedImageError as error:
        raise UnknownFormatError(f"{name}: cannot read it as a photo") from error
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        why = reason(error).removeprefix(f"{name}: cannot read it as an image: ")
        raise OSError(f"{name}: cannot read it as a photo: {why}") from error


def as_grid(weights: np.ndarray, photo_shape: Sequence[int]) -> np.ndarray:
    """Reshape the weights of regions to the rows and columns that best fit the photo's aspect ratio."""
    number, ratio = len(weights), photo_shape[0] / photo_shape[1]
    sizes = [(rows, number // rows) for rows in range(1, number + 1) if number % rows == 0]
    return weights.reshape(min(sizes, key=lambda size: abs(np.log(size[0] / size[1] / ratio))))
