"""Load captioners that are to be combined, and check that their vocabularies and preprocessing agree."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerFast

from ..configuration_nic import NICConfig
from ..model.captioner import NICForConditionalGeneration
from ..model.processor import load_image_processor

Member = str | PathLike | NICForConditionalGeneration

TOKEN_IDS = ("pad_token_id", "bos_token_id", "eos_token_id", "unk_token_id", "decoder_start_token_id")
HUB_ARGUMENTS = ("revision", "token", "subfolder", "cache_dir", "local_files_only", "force_download")


@dataclass
class _Traits:
    """What must agree between captioners; `None` if the checkpoint does not contain it."""

    name: str
    config: NICConfig
    vocabulary: dict[str, int] | None
    pixel_values: torch.Tensor | None


def load_members(members: Sequence[Member], **kwargs: Any) -> Iterator[NICForConditionalGeneration]:
    """Yield the captioners one by one, so that only those that the caller keeps are in memory.

    Args:
        members: checkpoints (paths or Hub ids) or loaded models. Tokenizers and preprocessing are compared too if the
            checkpoints contain them.
        **kwargs: passed to `from_pretrained` for each checkpoint.

    Raises:
        ValueError: if there is no member, or one differs from the first in its words, token ids or preprocessing; the
            message names the member and the difference.
        OSError: if a checkpoint does not exist or is damaged.
    """
    if isinstance(members, str | PathLike | NICForConditionalGeneration):
        raise ValueError(f"give a list of checkpoints or models, not a single one: {members!r:.80}")
    if not len(members):
        raise ValueError("give at least one checkpoint or model")
    return _load(members, kwargs)


def _load(members: Sequence[Member], kwargs: dict[str, Any]) -> Iterator[NICForConditionalGeneration]:
    first = None
    for number, member in enumerate(members, start=1):
        if isinstance(member, NICForConditionalGeneration):
            model = member
            traits = _Traits(f"model {number}", model.config, None, None)
        else:
            model = NICForConditionalGeneration.from_pretrained(member, **kwargs)
            hub = {key: value for key, value in kwargs.items() if key in HUB_ARGUMENTS}
            traits = _Traits(str(member), model.config, _vocabulary(member, hub), _pixels_of_a_photo(member, hub))
        if first is None:
            first = traits
        _check_same_traits(traits, first)
        yield model


def _vocabulary(name: str | PathLike, hub: dict[str, Any]) -> dict[str, int] | None:
    folder = Path(name, hub.get("subfolder") or "")
    if folder.is_dir() and not (folder / "tokenizer.json").is_file():
        return None
    try:
        return PreTrainedTokenizerFast.from_pretrained(name, **hub).get_vocab()
    except OSError:
        return None


def _pixels_of_a_photo(name: str | PathLike, hub: dict[str, Any]) -> torch.Tensor | None:
    """The preprocessed pixels of a test photo, since different settings may have the same effect."""
    try:
        processor = load_image_processor(name, **hub)
    except OSError:
        return None
    photo = torch.randint(256, (60, 80, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return processor(photo.numpy(), return_tensors="pt")["pixel_values"]


def _check_same_traits(member: _Traits, first: _Traits) -> None:
    for name in ("vocab_size", *TOKEN_IDS):
        value, expected = getattr(member.config, name), getattr(first.config, name)
        if value != expected:
            raise ValueError(f"{member.name}: `{name}` is {value}, but {expected} in {first.name}")
    if member.vocabulary is not None and first.vocabulary is not None and member.vocabulary != first.vocabulary:
        words, expected_words = _by_id(member.vocabulary), _by_id(first.vocabulary)
        ids = sorted(words.keys() | expected_words.keys())
        index = next(index for index in ids if words.get(index) != expected_words.get(index))
        raise ValueError(
            f"{member.name}: the vocabulary differs from {first.name}: word {index} is {words.get(index)!r} instead "
            f"of {expected_words.get(index)!r}"
        )
    if member.pixel_values is not None and first.pixel_values is not None:
        shape, expected_shape = tuple(member.pixel_values.shape[1:]), tuple(first.pixel_values.shape[1:])
        if shape != expected_shape:
            raise ValueError(
                f"{member.name}: preprocessed photos have shape {shape}, but {expected_shape} in {first.name}"
            )
        difference = (member.pixel_values - first.pixel_values).abs().max().item()
        if difference > 1e-4:
            raise ValueError(
                f"{member.name}: the preprocessing differs from {first.name}: pixel values of the same photo differ "
                f"by up to {difference:.3g} (resizing, mean or standard deviation)"
            )


def _by_id(vocabulary: dict[str, int]) -> dict[int, str]:
    return {index: word for word, index in vocabulary.items()}
