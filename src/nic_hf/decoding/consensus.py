"""Consensus decoding for `generate(custom_generate=...)`: of many captions, choose the one most similar to the others.

This is minimum Bayes risk decoding (Kumar and Byrne 2004, https://aclanthology.org/N04-1022) with CIDEr-D as the gain.
"""

import copy
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from transformers import LogitsProcessorList, PreTrainedTokenizerBase, StoppingCriteriaList
from transformers.generation import GenerateBeamEncoderDecoderOutput

from ..evaluation.cider import DocumentFrequencies, pair_similarities
from ..evaluation.ngrams import Caption, CaptionTable
from ..model.cache import cache_field
from ..modeling_nic import CACHE_NAME
from .diverse_beam import NEVER, end_ids


class CaptionSimilarity:
    """CIDEr-D between captions given as token ids, without its factor of 10: 0 to 1.

    Args:
        photos: the reference captions of each photo, to compute document frequencies from. Without them all n-grams
            have the same weight.

    Raises:
        ValueError: if `photos` is empty.
    """

    def __init__(self, photos: Iterable[Sequence[Caption]] | None = None) -> None:
        self.frequencies = None if photos is None else DocumentFrequencies(photos, tokenize=list)

    def __call__(self, predictions: Sequence[Caption], references: Sequence[Caption]) -> np.ndarray:
        """Compare each prediction with each reference, in an array of shape `(num_predictions, num_references)`.

        It is not symmetric: words that a prediction repeats do not count.
        """
        table = CaptionTable(predictions, [references], np.zeros(len(predictions), np.int64))
        if self.frequencies is None:
            weights = [np.ones(len(keys)) for keys in table.index.keys]
        else:
            weights = self.frequencies.weights(table.index)
        return pair_similarities(table, weights).reshape(len(predictions), len(references))


class ConsensusDecoding:
    """Find `num_beams` captions of each photo, and choose the one with the highest expected CIDEr-D.

    ```python
    consensus = ConsensusDecoding.from_captions(load_captions("flickr8k", "train")["captions"], processor.tokenizer)
    model.generate(pixel_values=pixel_values, custom_generate=consensus, num_beams=20, length_penalty=0.0)
    ```

    The most probable caption is often short and unusual. Here every caption found is compared with all others, as if
    these were references. A caption of probability p has the weight p to the power of `sharpness`: with 0 all captions
    have the same weight. `length_penalty=0.0` lets the beam search keep captions of all lengths.

    Args:
        similarity: similarity of captions. By default all words have the same weight;
            [`~ConsensusDecoding.from_captions`] gives rare words more weight, as in CIDEr-D.
        sharpness: exponent of the probabilities.

    Raises:
        ValueError: if `sharpness` is negative.
    """

    def __init__(self, similarity: CaptionSimilarity | None = None, sharpness: float = 0.1) -> None:
        if sharpness < 0:
            raise ValueError(f"`sharpness` must be at least 0, got {sharpness}")
        self.similarity = similarity or CaptionSimilarity()
        self.sharpness = sharpness

    @classmethod
    def from_captions(
        cls, captions: Iterable[Sequence[str]], tokenizer: PreTrainedTokenizerBase, sharpness: float = 0.1
    ) -> "ConsensusDecoding":
        """Use the document frequencies of captions: a list for each photo of the training split."""
        photos = (tokenizer(list(own)).input_ids for own in captions)
        return cls(CaptionSimilarity(photos), sharpness)

    @torch.no_grad()
    def __call__(
        self,
        model: Any,
        input_ids: torch.Tensor,
        logits_processor: LogitsProcessorList,
        stopping_criteria: StoppingCriteriaList,
        generation_config: Any,
        **model_kwargs: Any,
    ) -> Any:
        """Called by `generate()`.

        Args:
            model: a captioner or an ensemble.
            input_ids (`torch.LongTensor` of shape `(batch_size * num_beams, prompt_length)`): the prompts, passed by
                `generate()` like all other arguments.
            logits_processor: modifies log probabilities.
            stopping_criteria: decide which captions have ended.
            generation_config: settings of the beam search. The `num_return_sequences` captions with the highest
                expected CIDEr-D are returned.
            **model_kwargs: inputs of the model.

        Returns:
            Captions of shape `(batch_size * num_return_sequences, sequence_length)`, starting with `<bos>`, or with
            `return_dict_in_generate` the output of beam search. `sequences_scores` are those of the beam search.

        Raises:
            ValueError: if `do_sample` is True, or there are fewer than 2 beams.
        """
        config = copy.deepcopy(generation_config)
        if config.do_sample or config.num_beams < 2:
            raise ValueError(
                "consensus decoding chooses among the captions of a beam search: give `num_beams`, for example 20"
            )
        config.num_return_sequences = config.num_beams
        config.return_dict_in_generate = config.output_scores = True
        # The arguments are prepared already; calling generate() would prepare them twice.
        found = model._beam_search(input_ids, logits_processor, stopping_criteria, config, **model_kwargs)
        number, prompt_length = config.num_beams, input_ids.shape[1]
        captions, log_probs = searched_captions(found, end_ids(config), config.length_penalty, prompt_length)
        chosen = [
            start + place
            for start in range(0, len(captions), number)
            for place in self.rank(captions[start : start + number], log_probs[start : start + number])[
                : generation_config.num_return_sequences
            ]
        ]
        rows = torch.tensor(chosen, device=found.sequences.device)
        sequences = found.sequences[rows]
        longest = prompt_length + max(len(captions[row]) for row in chosen)
        if not generation_config.return_dict_in_generate:
            return sequences[:, :longest]
        return GenerateBeamEncoderDecoderOutput(
            sequences=sequences[:, :longest],
            sequences_scores=found.sequences_scores[rows] if generation_config.output_scores else None,
            scores=found.scores if generation_config.output_scores else None,
            logits=found.logits,
            beam_indices=found.beam_indices[rows, : longest - prompt_length],
            **cache_field(found[CACHE_NAME]),
        )

    def rank(self, captions: Sequence[Caption], log_probs: np.ndarray) -> list[int]:
        """Rank the captions of one photo by expected similarity, and return their indices.

        Args:
            captions: token ids. Duplicates count once; placeholders of the beam search do not count.
            log_probs: log probabilities in nats, of shape `(num_captions,)`.
        """
        found = [place for place in range(len(captions)) if log_probs[place] > NEVER / 2] or [0]
        places = sorted({tuple(captions[place]): place for place in reversed(found)}.values())
        compared = [captions[place] for place in places]
        weights = np.exp(self.sharpness * (log_probs[places] - log_probs[places].max()))
        order = np.argsort(-(self.similarity(compared, compared) @ weights), kind="stable")
        others = [place for place in range(len(captions)) if place not in set(places)]
        return [places[rank] for rank in order] + others


def searched_captions(
    found: Any, ends: Sequence[int], length_penalty: float, prompt_length: int = 1
) -> tuple[list[Caption], np.ndarray]:
    """The captions of a beam search without padding, and their log probabilities in nats.

    Args:
        found: output of the beam search, with `sequences_scores`.
        ends: ids of the tokens that end a caption.
        length_penalty: length penalty of the search.
        prompt_length: number of tokens of the prompt, including `<bos>`.
    """
    captions = [_words(row, ends) for row in found.sequences[:, prompt_length:].tolist()]
    lengths = np.array([max(len(caption), 1) for caption in captions])
    return captions, found.sequences_scores.double().cpu().numpy() * lengths**length_penalty


def _words(row: list[int], ends: Sequence[int]) -> Caption:
    """The tokens of a caption up to its end token."""
    end = next((place + 1 for place, word in enumerate(row) if word in ends), len(row))
    return tuple(row[:end])
