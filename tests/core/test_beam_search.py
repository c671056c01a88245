"""Beam search against exhaustive search and against a plain beam written here."""

import itertools

import pytest
import torch
from tiny import tiny_features, tiny_model

from nic_hf import NICCache, NICForConditionalGeneration

BOS, EOS = 1, 2
# What the checkpoint's generation configuration suppresses.
NEVER = [0, 1, 3]


@torch.no_grad()
def next_word_scores(model: NICForConditionalGeneration, feature: torch.Tensor, words: list[int]) -> torch.Tensor:
    """log p of each next word, of shape `(vocab_size,)`, by a forward pass over everything, without a cache."""
    result = model(encoder_outputs=feature[None], decoder_input_ids=torch.tensor([[BOS, *words]]), use_cache=False)
    scores = result.logits[0, -1].log_softmax(dim=-1)
    scores[NEVER] = -torch.inf
    return scores


def caption_score(
    model: NICForConditionalGeneration, feature: torch.Tensor, words: tuple[int, ...], length_penalty: float
) -> float:
    """Sum of log p over the words, divided by their number to the power of `length_penalty`."""
    total = sum(next_word_scores(model, feature, list(words[:t]))[word].item() for t, word in enumerate(words))
    return total / len(words) ** length_penalty


def beam_by_hand(
    model: NICForConditionalGeneration, feature: torch.Tensor, width: int, length_penalty: float, max_words: int
) -> tuple[list[int], float]:
    """Beam search over lists of words: the best caption and its score."""
    running: list[tuple[float, list[int]]] = [(0.0, [])]
    finished: list[tuple[float, list[int]]] = []
    for length in range(1, max_words + 1):
        candidates = []
        for total, words in running:
            scores = total + next_word_scores(model, feature, words)
            candidates += [(score, [*words, word]) for word, score in enumerate(scores.tolist())]
        candidates.sort(key=lambda candidate: -candidate[0])
        candidates = candidates[: 2 * width]
        done = [candidate[1][-1] == EOS or length == max_words for candidate in candidates]
        finished += [
            (total / length**length_penalty, words)
            for (total, words), is_done in list(zip(candidates, done, strict=True))[:width]
            if is_done
        ]
        finished = sorted(finished, key=lambda caption: -caption[0])[:width]
        running = [candidate for candidate, is_done in zip(candidates, done, strict=True) if not is_done][:width]
        if not running:
            break
        if len(finished) == width and running[0][0] / length**length_penalty <= finished[-1][0]:
            break
    score, words = finished[0]
    return words, score


def words_of(row: torch.Tensor) -> list[int]:
    """The words generated, up to `<eos>`, without `<bos>` and padding."""
    words = row[1:].tolist()
    return words[: words.index(EOS) + 1] if EOS in words else words


@pytest.mark.parametrize("length_penalty", [0.0, 0.7, 1.0, 2.0])
@pytest.mark.parametrize("seed", [0, 1])
def test_a_beam_of_full_width_ranks_captions_as_exhaustive_search_does(seed: int, length_penalty: float) -> None:
    model = tiny_model(seed=seed, vocab_size=6, hidden_size=5)
    feature = tiny_features(1, seed=seed)[0]
    # All captions of at most four of the words 4 and 5: ended by <eos>, or cut off.
    ended = [(*words, EOS) for length in range(4) for words in itertools.product((4, 5), repeat=length)]
    captions = ended + list(itertools.product((4, 5), repeat=4))
    expected = sorted(
        ((caption_score(model, feature, words, length_penalty), words) for words in captions), reverse=True
    )

    found = model.generate(
        encoder_outputs=feature[None],
        num_beams=len(captions),
        num_return_sequences=len(captions),
        length_penalty=length_penalty,
        max_new_tokens=4,
        output_scores=True,
        return_dict_in_generate=True,
    )
    torch.testing.assert_close(found.sequences_scores, torch.tensor([score for score, _ in expected]))
    assert [tuple(words_of(row)) for row in found.sequences] == [words for _, words in expected]


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize(("width", "length_penalty"), [(2, 1.0), (3, 0.0), (3, 0.7), (5, 1.0)])
def test_a_beam_finds_what_a_plain_beam_finds(width: int, length_penalty: float, layers: int) -> None:
    model = tiny_model(num_hidden_layers=layers, seed=49 if layers == 1 else 7)
    features = tiny_features(4)
    found = model.generate(
        encoder_outputs=features,
        num_beams=width,
        length_penalty=length_penalty,
        max_new_tokens=9,
        output_scores=True,
        return_dict_in_generate=True,
    )
    expected = [beam_by_hand(model, feature, width, length_penalty, max_words=9) for feature in features]
    assert [words_of(row) for row in found.sequences] == [words for words, _ in expected]
    torch.testing.assert_close(found.sequences_scores, torch.tensor([score for _, score in expected]))


def test_a_beam_whose_states_are_not_reordered_goes_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the test above would miss if beams never changed places."""
    model = tiny_model()
    features = tiny_features(4)
    expected = [beam_by_hand(model, feature, 5, 1.0, max_words=9)[0] for feature in features]

    def found() -> list[list[int]]:
        return [words_of(row) for row in model.generate(encoder_outputs=features, num_beams=5, max_new_tokens=9)]

    assert found() == expected
    monkeypatch.setattr(NICCache, "reorder_cache", lambda self, beam_idx: None)
    assert found() != expected
