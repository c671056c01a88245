"""Consensus decoding, for `generate(custom_generate=...)`: of many good captions the one most like the others.

This is minimum Bayes risk decoding (Kumar and Byrne 2004, https://aclanthology.org/N04-1022) with CIDEr-D as the gain.
"""

import copy
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from transformers import LogitsProcessorList, PreTrainedTokenizerBase, StoppingCriteriaList
from transformers.generation import GenerateBeamEncoderDecoderOutput

from ..cache_nic import CACHE_NAME, cache_field
from ..evaluation.cider import DocumentFrequencies, pair_similarities
from ..evaluation.ngrams import Caption, CaptionTable
from .diverse_beam import NEVER


class CaptionSimilarity:
    """CIDEr-D between captions that are lists of token ids, without its factor 10: 0 to 1.

    Args:
        photos: the reference captions of each photo, which give the document frequencies; None to weigh all n-grams
            alike.

    Raises:
        ValueError: where there are no photos.
    """

    def __init__(self, photos: Iterable[Sequence[Caption]] | None = None) -> None:
        self.frequencies = None if photos is None else DocumentFrequencies(photos, tokenize=list)

    def __call__(self, predictions: Sequence[Caption], references: Sequence[Caption]) -> np.ndarray:
        """Of each prediction with each reference, shape `(num_predictions, num_references)`.

        Not symmetric: what a prediction repeats earns nothing.
        """
        table = CaptionTable(predictions, [references], np.zeros(len(predictions), np.int64))
        if self.frequencies is None:
            weights = [np.ones(len(keys)) for keys in table.index.keys]
        else:
            weights = self.frequencies.weights(table.index)
        return pair_similarities(table, weights).reshape(len(predictions), len(references))


class ConsensusDecoding:
    """Search `num_beams` captions of a photo, and choose the one with the highest expected CIDEr-D.

    ```python
    consensus = ConsensusDecoding.from_captions(load_captions("flickr8k", "train")["captions"], processor.tokenizer)
    model.generate(pixel_values=pixel_values, custom_generate=consensus, num_beams=20, length_penalty=0.0)
    ```

    The caption of the highest probability is often a short and unusual one. Here every caption found is compared with
    all others, as if these were what people said of the photo. The probability p of a caption counts as p to the power
    of `sharpness`: 0 counts all alike, 1 believes the captioner. `length_penalty=0.0` lets the search keep captions of
    all lengths.

    Args:
        similarity: of two captions. Defaults to one that weighs all words alike; [`~ConsensusDecoding.from_captions`]
            makes one by which rare words count more, as they do in CIDEr-D.
        sharpness: see above.

    Raises:
        ValueError: where `sharpness` is negative.
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
        """With document frequencies of the captions of each photo, those of the training split."""
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
            input_ids (`torch.LongTensor` of shape `(batch_size * num_beams, prompt_length)`): given by `generate()`,
                as are the logits processor, the stopping criteria, the generation config and `model_kwargs`.
            logits_processor: changes log-probabilities.
            stopping_criteria: say which captions have ended.
            generation_config: for the beam search. `num_return_sequences` captions come back, best consensus first.
            **model_kwargs: what the model takes.

        Returns:
            Captions of shape `(batch_size * num_return_sequences, sequence_length)`, `<bos>` first, or with
            `return_dict_in_generate` what the library's beam search returns; `sequences_scores` are that search's.

        Raises:
            ValueError: for sampling, or fewer than 2 beams.
        """
        config = copy.deepcopy(generation_config)
        if config.do_sample or config.num_beams < 2:
            raise ValueError(
                "consensus decoding chooses among the captions of a beam search: give `num_beams`, 20 say"
            )
        config.num_return_sequences = config.num_beams
        config.return_dict_in_generate = config.output_scores = True
        found = model._beam_search(input_ids, logits_processor, stopping_criteria, config, **model_kwargs)
        number, prompt_length = config.num_beams, input_ids.shape[1]
        ends = () if config._eos_token_tensor is None else config._eos_token_tensor.tolist()
        captions, log_probs = searched_captions(found, ends, config.length_penalty, prompt_length)
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
        """Places of the captions of one photo, the highest expected similarity first.

        Args:
            captions: token ids; those given twice count once, and the search's stand-ins for a caption never.
            log_probs: of shape `(num_captions,)`, in nats.
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
    """The captions of a beam search, their ends included and no padding, and their log-probabilities in nats.

    Args:
        found: what the search returned, with `sequences_scores`.
        ends: ids of the words that end a caption.
        length_penalty: of the search; its scores are divided by the length to this power.
        prompt_length: number of words that were given, `<bos>` included.
    """
    captions = [_words(row, ends) for row in found.sequences[:, prompt_length:].tolist()]
    lengths = np.array([max(len(caption), 1) for caption in captions])
    return captions, found.sequences_scores.double().cpu().numpy() * lengths**length_penalty


def _words(row: list[int], ends: Sequence[int]) -> Caption:
    """The words of a caption, its end included, without padding."""
    end = next((place + 1 for place, word in enumerate(row) if word in ends), len(row))
    return tuple(row[:end])
