"""Captions with what the captioner thought of them: how likely each is, each of its words, and where it looked."""

import copy
import math
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F
from transformers.modeling_outputs import BaseModelOutput


@dataclass(frozen=True)
class ExplainedWord:
    """A word of a caption.

    Attributes:
        text: the word.
        probability: of this word after those before it.
        attention: where the captioner looked for it: weights of the photo's regions that add up to 1, of shape
            `(rows, columns)`; None for a captioner without attention.
    """

    text: str
    probability: float
    attention: np.ndarray | None = None


@dataclass(frozen=True)
class ExplainedCaption:
    """A caption of a photo.

    Attributes:
        text: the caption.
        probability: of the whole caption, its end included.
        words: its words.
    """

    text: str
    probability: float
    words: list[ExplainedWord]


class CaptionExplainer:
    """Captions photos, and says how sure it is; for several threads at once, one after the other.

    Args:
        model: a [`nic_hf.NICForConditionalGeneration`]; it is not changed.
        processor: its [`nic_hf.NICProcessor`].
    """

    def __init__(self, model: Any, processor: Any) -> None:
        self.processor = processor
        self.model = copy.deepcopy(model).eval().optimize_for_inference()
        self.has_attention = model.config.attention is not None
        self._lock = threading.Lock()

    def explain(
        self, photo: Image.Image, num_captions: int = 5, num_beams: int = 5, temperature: float = 0.0
    ) -> list[ExplainedCaption]:
        """The captions of a photo, each once, the likeliest first.

        Args:
            photo: an upright RGB image.
            num_captions: how many to look for.
            num_beams: beam size; as many as captions at least.
            temperature: 0 is beam search; above 0 captions are drawn at random, below 1 likelier ones.
        """
        settings: dict[str, Any] = {"num_beams": max(num_beams, num_captions)}
        if temperature > 0:
            settings = {"do_sample": True, "num_beams": 1, "temperature": temperature, "top_k": 0}
        pixels = self.processor(images=photo, return_tensors="pt")["pixel_values"]
        with self._lock, torch.inference_mode():
            features = self.model.get_encoder()(pixels.to(self.model.device)).last_hidden_state
            ids = self.model.generate(
                encoder_outputs=BaseModelOutput(last_hidden_state=features),
                num_return_sequences=num_captions,
                **settings,
            )
            found = list(self._score(features, _distinct(ids.tolist(), self.model.generation_config)))
        return sorted(found, key=lambda caption: -caption.probability)

    def caption(self, photos: Sequence[Image.Image], num_beams: int = 3) -> list[str]:
        """One caption of each photo."""
        pixels = self.processor(images=list(photos), return_tensors="pt")["pixel_values"]
        with self._lock, torch.inference_mode():
            ids = self.model.generate(pixel_values=pixels.to(self.model.device), num_beams=num_beams)
        return self.processor.tokenizer.batch_decode(ids, skip_special_tokens=True)

    def _score(self, features: torch.Tensor, captions: list[list[int]]) -> Iterator[ExplainedCaption]:
        """The captions of one photo, by one pass over all of them; `features` are those of the photo alone."""
        tokenizer, longest = self.processor.tokenizer, max(map(len, captions))
        bos = self.model.config.bos_token_id
        rows = torch.tensor([row + [tokenizer.pad_token_id] * (longest - len(row)) for row in captions])
        read = torch.cat([torch.full_like(rows[:, :1], bos), rows[:, :-1]], dim=1).to(features.device)
        output = self.model(
            encoder_outputs=BaseModelOutput(last_hidden_state=features.expand(len(rows), *features.shape[1:])),
            decoder_input_ids=read,
            use_cache=False,
            output_attentions=self.has_attention,
        )
        log_probs = F.log_softmax(output.logits.float(), dim=-1).gather(2, rows.to(read.device)[..., None])[..., 0]
        weights = output.cross_attentions[0].float().cpu().numpy() if output.cross_attentions else None
        for place, row in enumerate(captions):
            own = log_probs[place, : len(row)].tolist()
            spoken = [step for step, word in enumerate(row) if word not in tokenizer.all_special_ids]
            words = [
                ExplainedWord(
                    tokenizer.convert_ids_to_tokens(row[step]),
                    math.exp(own[step]),
                    None if weights is None else _grid(weights[place, step]),
                )
                for step in spoken
            ]
            text = tokenizer.decode(row, skip_special_tokens=True)
            yield ExplainedCaption(text, math.exp(sum(own)), words)


def heat_map(photo: Image.Image, attention: np.ndarray, width: int = 320) -> Image.Image:
    """The photo, bright where the captioner looked; `attention` has shape `(rows, columns)`."""
    small = photo.convert("RGB").resize((width, max(1, round(width * photo.height / photo.width))))
    scaled = attention - attention.min()
    levels = Image.fromarray((255 * scaled / max(float(scaled.max()), 1e-9)).astype(np.uint8))
    mask = levels.resize(small.size, Image.Resampling.BICUBIC)
    dark = Image.blend(small, Image.new("RGB", small.size, "#10141f"), 0.75)
    return Image.composite(small, dark, mask)


def _grid(weights: np.ndarray) -> np.ndarray | None:
    side = math.isqrt(len(weights))
    return weights.reshape(side, side) if side * side == len(weights) else None


def _distinct(rows: list[list[int]], generation: Any) -> list[list[int]]:
    """Each caption once, from its first word to its end."""
    ends = generation.eos_token_id if isinstance(generation.eos_token_id, list) else [generation.eos_token_id]
    found: dict[tuple[int, ...], None] = {}
    for row in rows:
        words = row[1:]
        end = next((place + 1 for place, word in enumerate(words) if word in ends), len(words))
        found[tuple(words[:end])] = None
    return [list(words) for words in found if words]
