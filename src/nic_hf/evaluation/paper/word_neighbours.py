"""Nearest neighbours of words in the learned embedding, the last table of *Show and Tell*."""

from collections.abc import Sequence

import torch
from torch.nn import functional as F
from transformers import PreTrainedTokenizerBase

from ...model.captioner import NICForConditionalGeneration


def nearest_words(
    model: NICForConditionalGeneration,
    tokenizer: PreTrainedTokenizerBase,
    words: Sequence[str],
    number: int = 5,
) -> dict[str, list[tuple[str, float]] | None]:
    """Find the words with the most similar embedding vectors, by cosine.

    Args:
        model: the captioner.
        tokenizer: its tokenizer.
        words: the words to look up, as the tokenizer spells them.
        number: number of neighbours per word.

    Returns:
        For each word its neighbours with their cosines, nearest first, without special tokens; None if the word is not
        in the vocabulary.

    Raises:
        ValueError: if `number` is below 1.
    """
    if number < 1:
        raise ValueError(f"number of neighbours must be at least 1, not {number}")
    vectors = F.normalize(model.decoder.embed_tokens.weight.detach().float(), dim=-1)
    found: dict[str, list[tuple[str, float]] | None] = {}
    for word in words:
        index = tokenizer.convert_tokens_to_ids(word)
        if index is None or index == tokenizer.unk_token_id:
            found[word] = None
            continue
        cosines = vectors @ vectors[index]
        cosines[[index, *tokenizer.all_special_ids]] = -torch.inf
        values, indices = cosines.topk(min(number, len(cosines) - 1 - len(tokenizer.all_special_ids)))
        neighbours = tokenizer.convert_ids_to_tokens(indices.tolist())
        found[word] = list(zip(neighbours, values.tolist(), strict=True))
    return found
