"""The grammar of captions of the built-in scenes, and a check whether a caption is true.

A caption is parsed by the grammar and compared with the facts of the scene, so it may be correct without being one of
the scene's own captions.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from random import Random
from typing import Protocol

SIZES = ("small", "large")
COLOURS = ("red", "yellow", "green", "blue", "purple", "black")
SHAPES = ("circle", "square", "triangle", "star", "cross")
OPPOSITES: Mapping[str, str] = {"left": "right", "right": "left", "above": "below", "below": "above"}
NUM_CAPTIONS = 5

_SENTENCES_FOR_ONE = (
    "{first}",
    "there is {first}",
    "the picture shows {first}",
    "nothing but {first}",
    "{first} on a plain background",
)
_SENTENCES_FOR_TWO = (
    "{first} {stands} {second}",
    "there is {first} {stands} {second}",
    "{first} is {stands} {second}",
    "{first} with {second} {beside}",
    "{first} and {beyond} {second}",
    "{first} {here} and {second} {there}",
)
# Keys: the position of the object named first relative to the one named second.
_RELATION_WORDS: Mapping[str, Mapping[str, str]] = {
    "left": {
        "stands": "to the left of",
        "beside": "on its right",
        "beyond": "to its right",
        "here": "on the left",
        "there": "on the right",
    },
    "right": {
        "stands": "to the right of",
        "beside": "on its left",
        "beyond": "to its left",
        "here": "on the right",
        "there": "on the left",
    },
    "above": {
        "stands": "above",
        "beside": "below it",
        "beyond": "below it",
        "here": "at the top",
        "there": "at the bottom",
    },
    "below": {
        "stands": "below",
        "beside": "above it",
        "beyond": "above it",
        "here": "at the bottom",
        "there": "at the top",
    },
}


@dataclass(frozen=True)
class Description:
    """The words for one object; `size` is None if the caption leaves it out."""

    colour: str
    shape: str
    size: str | None = None

    def __str__(self) -> str:
        return " ".join(word for word in (self.size, self.colour, self.shape) if word)


@dataclass(frozen=True)
class Statement:
    """The content of a caption: one object, or the position of the first object relative to the second."""

    first: Description
    relation: str | None = None
    second: Description | None = None


class SceneFacts(Protocol):
    """The facts of a scene that captions describe."""

    @property
    def descriptions(self) -> tuple[Description, ...]:
        """One or two objects, with their sizes."""

    @property
    def relation(self) -> str | None:
        """Position of the first object relative to the second: a key of `OPPOSITES`, or None for a single object."""


def write_captions(scene: SceneFacts, rng: Random) -> list[str]:
    """Write five true captions of a scene, each with another sentence; four of them name the sizes.

    Objects are named in the order of the scene. With a random order, every word after the first object would depend on
    that choice, and a small LSTM would need many times the training.
    """
    sentences = _SENTENCES_FOR_ONE if scene.relation is None else _SENTENCES_FOR_TWO
    words = {} if scene.relation is None else _RELATION_WORDS[scene.relation]
    without_sizes = rng.randrange(NUM_CAPTIONS)
    captions = []
    for position, sentence in enumerate(rng.sample(sentences, NUM_CAPTIONS)):
        descriptions = scene.descriptions
        if position == without_sizes:
            descriptions = tuple(Description(each.colour, each.shape) for each in descriptions)
        nouns = {role: f"a {each}" for role, each in zip(("first", "second"), descriptions, strict=False)}
        captions.append(sentence.format(**nouns, **words))
    return captions


def parse_caption(caption: str) -> Statement | None:
    """Parse a caption of lower-case words without punctuation; None if it is not a sentence of the grammar.

    ```python
    >>> parse_caption("a red circle above a small blue star").relation
    'above'
    >>> parse_caption("a red circle above a small") is None
    True

    ```
    """
    words = " ".join(caption.split())
    for relation, pattern in _PATTERNS:
        match = pattern.fullmatch(words)
        if match is not None:
            return Statement(_describe(match, "first"), relation, _describe(match, "second") if relation else None)
    return None


def explain_caption(caption: str, scene: SceneFacts) -> str | None:
    """Explain why a caption of a scene is wrong; None if it is correct.

    A caption is correct if it is a sentence of the grammar, names every object of the scene, and states only true
    sizes, colours, shapes and relations.
    """
    statement = parse_caption(caption)
    if statement is None:
        return f"not a sentence of the grammar: {caption!r}"
    stated = [statement.first] if statement.second is None else [statement.first, statement.second]
    for description in stated:
        if not any(_agrees(description, each) for each in scene.descriptions):
            return f"the scene has no {description}"
    if len(stated) != len(scene.descriptions):
        return f"objects named: {len(stated)}, objects in the scene: {len(scene.descriptions)}"
    relation, objects = scene.relation, scene.descriptions
    if relation is None:
        return None
    if not _agrees(statement.first, objects[0]):
        relation, objects = OPPOSITES[relation], objects[::-1]
    if not all(_agrees(*pair) for pair in zip(stated, objects, strict=True)):
        return f"the {stated[0]} is named twice"
    if statement.relation != relation:
        return f"the {stated[0]} is {_RELATION_WORDS[relation]['stands']} the {stated[1]}"
    return None


def caption_is_correct(caption: str, scene: SceneFacts) -> bool:
    """Whether a caption names every object of a scene and states nothing false (see `explain_caption`)."""
    return explain_caption(caption, scene) is None


def _agrees(stated: Description, actual: Description) -> bool:
    """Whether a description fits an object."""
    same_kind = (stated.colour, stated.shape) == (actual.colour, actual.shape)
    return same_kind and stated.size in (None, actual.size)


def _describe(match: re.Match[str], role: str) -> Description:
    """Return the description in one of the two noun phrases."""
    return Description(*(match[f"{role}_{fact}"] for fact in ("colour", "shape", "size")))


def _compile_sentence(sentence: str, relation: str | None) -> re.Pattern[str]:
    """Compile a sentence about a relation to a pattern, with a group for each fact of each noun phrase."""
    nouns = {
        role: f"a (?:(?P<{role}_size>{'|'.join(SIZES)}) )?"
        f"(?P<{role}_colour>{'|'.join(COLOURS)}) (?P<{role}_shape>{'|'.join(SHAPES)})"
        for role in ("first", "second")
    }
    return re.compile(sentence.format(**nouns, **_RELATION_WORDS.get(relation or "", {})))


_PATTERNS: tuple[tuple[str | None, re.Pattern[str]], ...] = (
    *((None, _compile_sentence(sentence, None)) for sentence in _SENTENCES_FOR_ONE),
    *((relation, _compile_sentence(sentence, relation)) for relation in OPPOSITES for sentence in _SENTENCES_FOR_TWO),
)
