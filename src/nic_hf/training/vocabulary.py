"""Check and extend the vocabulary of a captioner that is trained further."""

import logging
import math
from collections.abc import Iterable

import torch
from transformers import PreTrainedTokenizerFast

from ..model.captioner import NICForConditionalGeneration
from ..tokenization import Segmentation, extend_tokenizer, unknown_words
from ..word_vectors import load_word_vectors

logger = logging.getLogger(__name__)

# A vocabulary usually covers 0.9 or more of the words of another dataset in the same language.
USUAL_COVERAGE = 0.9
_SHARE_OF_NEW_WORDS = 0.01
_EXAMPLES = 8


def check_coverage(
    tokenizer: PreTrainedTokenizerFast, captions: Iterable[str], minimum: float, name: str, advice: str
) -> float:
    """Refuse captions that the vocabulary hardly covers, and warn if the coverage is low.

    Args:
        tokenizer: tokenizer of the captioner.
        captions: captions to train on.
        minimum: minimum coverage, a share of all word occurrences from 0 to 1.
        name: name of the captioner, for messages.
        advice: what to do, for messages.

    Returns:
        The coverage.

    Raises:
        ValueError: if the coverage is below the minimum; the message names the most frequent unknown words.
    """
    unknown, total = unknown_words(tokenizer, captions)
    coverage = 1 - unknown.total() / total
    if coverage >= max(minimum, USUAL_COVERAGE):
        return coverage
    more = len(unknown) - _EXAMPLES
    examples = ", ".join(word for word, _ in unknown.most_common(_EXAMPLES))
    found = (
        f"{name} knows {100 * coverage:.0f}% of the words of the training captions; unknown are {examples}"
        f"{f' and {more:,} more' if more > 0 else ''}"
    )
    if coverage < minimum:
        raise ValueError(f"{found}. min_vocabulary_coverage requires {100 * minimum:.0f}%: {advice}")
    logger.warning(f"{found}. They become <unk>: {advice}")
    return coverage


def extend_vocabulary(
    model: NICForConditionalGeneration,
    tokenizer: PreTrainedTokenizerFast,
    captions: Iterable[str],
    min_frequency: int | None = 5,
    *,
    segmentation: Segmentation = "auto",
    word_vectors: str | None = None,
) -> PreTrainedTokenizerFast:
    """Add the frequent words of other captions to a captioner.

    Known words keep their ids and weights. The vector of a new word is drawn at random around the mean of the word
    vectors. Its output weights are the mean of the others, and its bias is so far below their mean that all new words
    together have a probability of at most 1% until they are trained.

    Args:
        model: the captioner, changed in place.
        tokenizer: its tokenizer, not changed.
        captions: the captions to learn words from.
        min_frequency, segmentation: as for [`nic_hf.tokenization.extend_tokenizer`].
        word_vectors: source of vectors for the new words, as for [`nic_hf.word_vectors.load_word_vectors`].

    Returns:
        The tokenizer with the new words.

    Raises:
        ValueError: if the tokenizer cannot be extended, the word vectors have another size, or word vectors are frozen
            and none are given for the new words.
    """
    extended = extend_tokenizer(tokenizer, captions, min_frequency, segmentation=segmentation)
    old, new = len(tokenizer), len(extended)
    if new == old:
        logger.info("no new words: all words of the training captions are known or rarer than min_frequency")
        return extended
    vectors = _new_vectors(model, extended, old, word_vectors)
    model.resize_token_embeddings(new, mean_resizing=False)
    with torch.no_grad():
        model.decoder.embed_tokens.weight[old:] = vectors.to(model.decoder.embed_tokens.weight)
        head = model.lm_head
        # The mean of exponentials is at least the exponential of the mean, so this bounds their probability.
        head.weight[old:] = head.weight[:old].mean(dim=0)
        head.bias[old:] = head.bias[:old].mean() - math.log(max(1, (new - old) / old) / _SHARE_OF_NEW_WORDS)
    more = new - old - _EXAMPLES
    words = extended.convert_ids_to_tokens(list(range(old, min(new, old + _EXAMPLES))))
    logger.info(f"{new - old:,} new words: {', '.join(words)}{f' and {more:,} more' if more > 0 else ''}")
    return extended


def _new_vectors(
    model: NICForConditionalGeneration, tokenizer: PreTrainedTokenizerFast, old: int, source: str | None
) -> torch.Tensor:
    """Vectors of the words with ids from `old` on, of shape `(num_words, embedding_size)`."""
    known = model.decoder.embed_tokens.weight.detach()
    if source is not None:
        vectors = load_word_vectors(source, tokenizer).weights[old:]
        if vectors.shape[1] != known.shape[1]:
            raise ValueError(
                f"{source} has word vectors of size {vectors.shape[1]}, but the captioner needs {known.shape[1]}"
            )
        return vectors
    if model.config.freeze_word_embeddings:
        raise ValueError(
            "the word vectors of the captioner are frozen, so new words could not learn theirs: set word_vectors to"
            " the source of its word vectors"
        )
    mean, std = known.mean(dim=0), known.std(dim=0)
    return mean + std * torch.randn(len(tokenizer) - old, len(mean), device=known.device, dtype=known.dtype)
