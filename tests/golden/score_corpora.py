"""Predictions and references of the golden scores."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

from nic_hf.evaluation import load_predictions, load_references, load_token_captions

GOLDEN = Path(__file__).parent
Corpus = tuple[dict[str, str], dict[str, list[str]]]


def coco_example(data: Path) -> Corpus:
    """The example of coco-caption, which has published scores."""
    folder = data / "eval"
    return (
        load_predictions(folder / "coco_fakecap_results.json"),
        load_references(folder / "coco_fakecap_references.json"),
    )


def _flickr8k_test(data: Path) -> dict[str, list[str]]:
    captions = load_token_captions(data / "flickr8k" / "Flickr8k.token.txt")
    names = (data / "flickr8k" / "Flickr_8k.testImages.txt").read_text("utf-8").split()
    return {name: list(captions[name]) for name in names}


def _one_against_the_others(captions: dict[str, list[str]]) -> Corpus:
    predictions = {image_id: own[0] for image_id, own in captions.items()}
    return predictions, {image_id: own[1:] for image_id, own in captions.items()}


def flickr8k(data: Path) -> Corpus:
    """All test captions of Flickr8k: the first one of each photo, with the other four as references."""
    return _one_against_the_others(_flickr8k_test(data))


def coco_val2014(data: Path) -> Corpus:
    """All captions of COCO val2014: the first one of each photo, with the others as references."""
    return _one_against_the_others(load_references(data / "eval" / "coco_val2014_captions.json.gz"))


def model(beam: int, data: Path) -> Corpus:
    """Captions by a model trained with the paper's recipe for Flickr8k's test photos."""
    return load_predictions(GOLDEN / f"predictions-beam{beam}.jsonl"), _flickr8k_test(data)


def hard_strings(data: Path) -> Corpus:
    """Each difficult caption with the next four as references, for even indices also itself and others."""
    lines = (GOLDEN / "ptb_hard.jsonl").read_text("utf-8").splitlines()
    hard = [json.loads(line)[0] for line in lines]
    predictions, references = {}, {}
    for number, caption in enumerate(hard):
        others = [hard[(number + step) % len(hard)] for step in range(1, 5)]
        predictions[str(number)] = caption
        references[str(number)] = [caption, *others] if number % 2 == 0 else others
    plain = ["A brown dog runs on the grass .", "The dog is running outside ."]
    for name, caption in {"empty": "", "one word": "dog", "equal": plain[0], "loud": plain[0].upper()}.items():
        predictions[name], references[name] = caption, plain
    return predictions, references


CORPORA: dict[str, Callable[[Path], Corpus]] = {
    "coco example": coco_example,
    "flickr8k test": flickr8k,
    "model, beam 1": partial(model, 1),
    "model, beam 3": partial(model, 3),
    "model, beam 20": partial(model, 20),
    "hard strings": hard_strings,
    "coco val2014": coco_val2014,
}
