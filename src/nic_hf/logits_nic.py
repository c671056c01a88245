"""Logits processors of `generate()`, for a model whose step takes less time than Transformers' own take."""

import inspect
from functools import cache
from typing import Any

import torch
from transformers import LogitsProcessorList, SuppressTokensLogitsProcessor


class QuickLogitsProcessors(LogitsProcessorList):
    """What `LogitsProcessorList` does, without reading the signature of each processor at each word."""

    def __init__(self, processors: LogitsProcessorList, vocab_size: int) -> None:
        super().__init__(
            _QuickSuppression(processor.suppress_tokens, vocab_size)
            if type(processor) is SuppressTokensLogitsProcessor
            else processor
            for processor in processors
        )

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        """Scores `(rows, vocab_size)` after all processors; see `LogitsProcessorList`."""
        if not all(_takes_words_and_scores(processor.__class__) for processor in self):
            return super().__call__(input_ids, scores, **kwargs)  # type: ignore[arg-type]
        for processor in self:
            scores = processor(input_ids, scores)
        return scores


class _QuickSuppression(SuppressTokensLogitsProcessor):
    """The same scores, by writing to the columns of the words alone."""

    def __init__(self, words: torch.Tensor, vocab_size: int) -> None:
        self.suppress_tokens = words[(words >= 0) & (words < vocab_size)]

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        return scores.index_fill(-1, self.suppress_tokens.to(scores.device), -float("inf"))


@cache
def _takes_words_and_scores(kind: Any) -> bool:
    return len(inspect.signature(kind.__call__).parameters) == 3  # and itself
