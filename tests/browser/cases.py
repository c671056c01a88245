"""Results of Python for photos, searches and words, which examples/browser must reproduce."""

import base64
import hashlib
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
from image_processors import IMAGE_PROCESSORS
from PIL import Image
from tiny import CAPTIONS

from nic_hf.export.generation_settings import GenerationSettings
from nic_hf.export.preprocessing import PhotoPreprocessor
from nic_hf.export.search import generate
from nic_hf.model.processor import build_image_processor
from nic_hf.tokenization import train_tokenizer

SIZES = [(500, 375), (333, 500), (224, 224), (31, 97), (97, 30), (160, 161), (1, 1), (640, 40)]
TARGETS = [(224, 224), (64, 48), (299, 31), (1, 1), (500, 375)]


def write_cases(file: Path) -> None:
    """Write all cases as JSON, described in `examples/browser/test/cases.ts`."""
    images = _photos()
    cases = {
        "images": [{"width": i.width, "height": i.height, "data": _base64(np.asarray(i))} for i in images],
        "resize": _resize_cases(images),
        "preprocessing": _preprocessing_cases(images),
        "search": [_search_case(np.random.default_rng(seed)) for seed in range(400)],
        "words": _word_cases(),
    }
    file.write_text(json.dumps(cases), "utf-8")


class TableReader:
    """A reader whose scores depend on all words so far and their order, as in `test/search.test.ts`."""

    def __init__(self, table: np.ndarray) -> None:
        self.table, self.states, self.length = table, np.zeros((1, 1), dtype=np.int64), 0

    def read(self, input_ids: np.ndarray) -> np.ndarray:
        self.length += 1
        self.states = (self.states * 31 + input_ids * 7 + 1) % len(self.table)
        return self.table[self.states] * np.float32(1 + self.length / 16)

    def spread(self, num_captions: int) -> None:
        self.states = np.repeat(self.states, num_captions, axis=1)

    def reorder(self, captions: np.ndarray) -> None:
        self.states = np.take_along_axis(self.states, captions, axis=1)

    def keep(self, photos: np.ndarray) -> None:
        self.states = self.states[photos]


def _photos() -> list[Image.Image]:
    """Noise, in which every weight of a filter matters."""
    random = np.random.default_rng(0)
    return [Image.fromarray(random.integers(0, 256, (height, width, 3), dtype=np.uint8)) for width, height in SIZES]


def _resize_cases(images: list[Image.Image]) -> list[dict[str, Any]]:
    cases = []
    for (number, image), (place, size) in itertools.product(enumerate(images), enumerate(TARGETS)):
        resample = 1 + (number + place) % 5
        for chosen in {Image.Resampling.BILINEAR.value, resample}:
            digest = _digest(np.asarray(image.resize(size, Image.Resampling(chosen))))
            cases.append({"image": number, "width": size[0], "height": size[1], "resample": chosen, "digest": digest})
    return cases


def _preprocessing_cases(images: list[Image.Image]) -> list[dict[str, Any]]:
    cases = []
    for name, settings in IMAGE_PROCESSORS.items():
        fields = json.loads(json.dumps(build_image_processor(settings).to_dict()))
        prepare = PhotoPreprocessor(fields)
        for number in (0, 1, 3, 5):
            pixels = prepare([images[number]])[0]
            shape, digest = list(pixels.shape), _digest(pixels)
            cases.append({"name": name, "image": number, "settings": fields, "shape": shape, "digest": digest})
    return cases


def _search_case(random: np.random.Generator) -> dict[str, Any]:
    vocab_size, num_states = int(random.integers(6, 40)), int(random.integers(3, 60))
    table = (random.standard_normal((num_states, vocab_size)) * random.choice([0.5, 2, 5])).astype(np.float32)
    table[:, 2] += np.float32(random.choice([-2, 0, 2, 4]))  # captions of all lengths
    settings = _random_settings(random, vocab_size)
    special = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
    resolved = GenerationSettings(**{**special, **settings})
    output = generate(TableReader(table), np.array([[1]]), vocab_size, resolved)
    scores = [None] * len(output.sequences) if output.sequences_scores is None else output.sequences_scores.tolist()
    captions = [
        {"ids": _up_to_the_end(ids, resolved.end_ids), "score": score}
        for ids, score in zip(output.sequences.tolist(), scores, strict=True)
        if score is None or score > -1e8  # below, a place for which there was no caption
    ]
    sizes = {"vocabSize": vocab_size, "numStates": num_states}
    return {**sizes, "table": _base64(table), "settings": settings, "captions": captions}


def _random_settings(random: np.random.Generator, vocab_size: int) -> dict[str, Any]:
    """Random settings of a captioner, mostly with default values."""
    beams = int(random.integers(1, 7))
    words = random.integers(3, vocab_size, 6).tolist()
    choices: dict[str, list[Any]] = {
        "length_penalty": [0.7, 0.0, 2.0, -1.0],
        "early_stopping": [True, "never"],
        "repetition_penalty": [1.3, 0.8],
        "no_repeat_ngram_size": [1, 2, 3],
        "bad_words_ids": [[[words[0]]], [[words[1], words[2]], [2]]],
        "suppress_tokens": [[0, 1, 3]],
        "begin_suppress_tokens": [[2, words[3]]],
        "min_new_tokens": [2, 5],
        "min_length": [4],
        "max_length": [2, 9],
        "eos_token_id": [[2, words[4]]],
    }
    settings = {
        name: values[random.integers(len(values))] for name, values in choices.items() if random.random() < 0.25
    }
    settings |= {"num_beams": beams, "num_return_sequences": int(random.integers(1, beams + 1))}
    return settings if "max_length" in settings else {**settings, "max_new_tokens": int(random.integers(1, 21))}


def _up_to_the_end(ids: list[int], ends: list[int]) -> list[int]:
    place = next((place for place, word in enumerate(ids) if place > 0 and word in ends), len(ids))
    return ids[: place + 1]


def _word_cases() -> list[dict[str, Any]]:
    random = np.random.default_rng(0)
    captions = [*CAPTIONS, "The dog's (wet) ball, no. 1: $5 [new] #tag!", "a café's naïve 50% sign; o'clock at&t?"]
    chinese = ["一只狗，戴着red帽子 (3岁)。", "两个孩子在沙滩上玩耍"]
    cases = []
    for learned, keep_punctuation in itertools.product((captions, [*captions, *chinese]), (False, True)):
        tokenizer = train_tokenizer(learned, min_frequency=1, keep_punctuation=keep_punctuation)
        file = json.loads(tokenizer.backend_tokenizer.to_str())
        drawn = [random.integers(0, len(tokenizer), 9).tolist() for _ in range(40)]
        said = [tokenizer(caption)["input_ids"] for caption in learned]
        for ids in [*drawn, *said, []]:
            text = tokenizer.backend_tokenizer.decode(ids, skip_special_tokens=True)
            cases.append({"tokenizer": file, "ids": ids, "text": text})
    return cases


def _base64(array: np.ndarray) -> str:
    return base64.b64encode(np.ascontiguousarray(array).tobytes()).decode("ascii")


def _digest(array: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()
