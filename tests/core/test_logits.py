"""Scores after the quick processors: those of Transformers' own, to the bit."""

import pytest
import torch
from tiny import tiny_model
from transformers import LogitsProcessor, LogitsProcessorList, SuppressTokensLogitsProcessor
from transformers.generation.logits_process import MinLengthLogitsProcessor, RepetitionPenaltyLogitsProcessor

from nic_hf.model.generation import QuickLogitsProcessors

VOCABULARY = 11


def test_scores_are_those_of_transformers() -> None:
    theirs = LogitsProcessorList(
        [
            RepetitionPenaltyLogitsProcessor(1.3),
            SuppressTokensLogitsProcessor([0, 3, 99, -1]),  # words outside the vocabulary are no matter
            MinLengthLogitsProcessor(5, 2),
        ]
    )
    ours = QuickLogitsProcessors(theirs, VOCABULARY)
    words, scores = torch.randint(VOCABULARY, (4, 3)), torch.randn(4, VOCABULARY)
    before = scores.clone()
    assert torch.equal(ours(words, scores), theirs(words, scores))
    assert torch.equal(scores, before), "the model's own scores are left as they are"
    assert [isinstance(a, type(b)) for a, b in zip(ours, theirs, strict=True)] == [True] * 3


def test_a_processor_that_takes_more_gets_it_or_says_so() -> None:
    class Scaled(LogitsProcessor):
        def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, factor: float) -> torch.Tensor:
            return factor * scores

    processors = QuickLogitsProcessors(LogitsProcessorList([Scaled()]), VOCABULARY)
    words, scores = torch.zeros(1, 1, dtype=torch.long), torch.ones(1, VOCABULARY)
    assert torch.equal(processors(words, scores, factor=3.0), 3 * scores)
    with pytest.raises(ValueError, match="factor"):
        processors(words, scores)


@pytest.mark.parametrize("settings", [{"num_beams": 1}, {"num_beams": 3}, {"do_sample": True, "num_beams": 1}])
def test_generate_uses_them_and_processors_of_the_user(settings: dict) -> None:
    model, seen = tiny_model(), []

    class Recorder(LogitsProcessor):
        def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            seen.append(scores)
            return scores

    special = [model.config.pad_token_id, model.config.bos_token_id, model.config.unk_token_id]
    model.generate(
        encoder_outputs=torch.randn(2, model.config.feature_size),
        logits_processor=LogitsProcessorList([Recorder()]),
        suppress_tokens=special,
        **settings,
    )
    assert seen
    assert all(torch.isinf(scores[:, special]).all() for scores in seen)
    assert not any(torch.isinf(scores).all() for scores in seen)
