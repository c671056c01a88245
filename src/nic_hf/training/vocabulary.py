"""The vocabulary of a captioner that is trained further: whether it fits the new captions, and how it grows."""

import logging
import math
from collections.abc import Iterable

import torch
from transformers import PreTrainedTokenizerFast

from ..model.captioner import NICForConditionalGeneration
from ..tokenization import Segmentation, extend_tokenizer, unknown_words
from ..word_vectors import load_word_vectors

logger = logging.getLogger(__name__)

# Captions of another data set in the same language have 0.9 and more of their words in a vocabulary.
USUAL_COVERAGE = 0.9
_SHARE_OF_NEW_WORDS = 0.01
_EXAMPLES = 8


def check_coverage(
    tokenizer: PreTrainedTokenizerFast, captions: Iterable[str], minimum: float, name: str, advice: str
) -> float:
    """Refuse captions that a vocabulary hardly knows a word of; warn of those that it knows little of.

    Args:
        tokenizer: the captioner's.
        captions: those to train on.
        minimum: share of running words, from 0 to 1, below which they are refused.
        name: of the captioner, for messages.
        advice: what to do about it.

    Returns:
        The share of running words that the vocabulary knows.

    Raises:
        ValueError: naming the share and the most frequent of the unknown words.
    """
    unknown, total = unknown_words(tokenizer, captions)
    coverage = 1 - unknown.total() / total
    if coverage >= max(minimum, USUAL_COVERAGE):
        return coverage
    more = len(unknown) - _EXAMPLES
    examples = ", ".join(word for word, _ in unknown.most_common(_EXAMPLES))
    found = (
        f"{name} knows {100 * coverage:.0f} % of the words of the training captions; it does not know {examples}"
        f"{f' and {more:,} more' if more > 0 else ''}"
    )
    if coverage < minimum:
        raise ValueError(f"{found}. At least {100 * minimum:.0f} % are needed (min_vocabulary_coverage): {advice}")
    logger.warning(f"{found}. They are learned as <unk>: {advice}")
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
    """Let a captioner know the frequent words of other captions too.

    Words that it knows keep their ids and weights. A new word is read as a random draw around the mean of the word
    vectors. In the output layer it gets the mean of the others' weights, and a bias so far below the mean of theirs
    that all new words together have 1 % of the probability at most, until they are trained.

    Args:
        model: the captioner, which is changed.
        tokenizer: its tokenizer, which is left as it is.
        captions: the captions to learn words from.
        min_frequency, segmentation: as for [`nic_hf.tokenization.extend_tokenizer`].
        word_vectors: where the new words' vectors come from, as for [`nic_hf.word_vectors.load_word_vectors`].

    Returns:
        The tokenizer with the new words.

    Raises:
        ValueError: where the tokenizer cannot be extended, the word vectors have another size, or the captioner's are
            frozen and none are given for the new words.
    """
    extended = extend_tokenizer(tokenizer, captions, min_frequency, segmentation=segmentation)
    old, new = len(tokenizer), len(extended)
    if new == old:
        logger.info("no new words: the training captions' words are known, or rarer than min_frequency")
        return extended
    vectors = _new_vectors(model, extended, old, word_vectors)
    model.resize_token_embeddings(new, mean_resizing=False)
    with torch.no_grad():
        model.decoder.embed_tokens.weight[old:] = vectors.to(model.decoder.embed_tokens.weight)
        head = model.lm_head
        # The mean of exponentials is no less than the exponential of the mean, so that this bounds their share.
        head.weight[old:] = head.weight[:old].mean(dim=0)
        head.bias[old:] = head.bias[:old].mean() - math.log(max(1, (new - old) / old) / _SHARE_OF_NEW_WORDS)
    more = new - old - _EXAMPLES
    words = extended.convert_ids_to_tokens(list(range(old, min(new, old + _EXAMPLES))))
    logger.info(f"{new - old:,} new words: {', '.join(words)}{f' and {more:,} more' if more > 0 else ''}")
    return extended


def _new_vectors(
    model: NICForConditionalGeneration, tokenizer: PreTrainedTokenizerFast, old: int, source: str | None
) -> torch.Tensor:
    """Word vectors of the words from id `old` on, of shape `(num_words, embedding_size)`."""
    known = model.decoder.embed_tokens.weight.detach()
    if source is not None:
        vectors = load_word_vectors(source, tokenizer).weights[old:]
        if vectors.shape[1] != known.shape[1]:
            raise ValueError(
                f"{source} has word vectors of size {vectors.shape[1]}, and the captioner of size {known.shape[1]}"
            )
        return vectors
    if model.config.freeze_word_embeddings:
        raise ValueError(
            "the captioner's word vectors are frozen, so that new words could not learn theirs: give the source of"
            " its word vectors as word_vectors"
        )
    mean, std = known.mean(dim=0), known.std(dim=0)
    return mean + std * torch.randn(len(tokenizer) - old, len(mean), device=known.device, dtype=known.dtype)
