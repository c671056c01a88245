"""generate(), as GenerationMixin gives it: every way of decoding does what its name says."""

from typing import Any

import pytest
import torch
from tiny import tiny_features, tiny_model, tiny_pixels, tiny_tokenizer
from transformers import LogitsProcessor, LogitsProcessorList, TextStreamer
from transformers.generation.streamers import BaseStreamer
from transformers.modeling_outputs import BaseModelOutput

from nic_hf import NICForConditionalGeneration

BOS, EOS, PAD = 1, 2, 0
NEVER = [0, 1, 3]
GREEDY = {"num_beams": 1, "do_sample": False, "max_new_tokens": 9}


@pytest.fixture(scope="module")
def model() -> NICForConditionalGeneration:
    return tiny_model()


@torch.no_grad()
def next_scores(model: NICForConditionalGeneration, features: torch.Tensor, words: torch.Tensor) -> torch.Tensor:
    """Scores of shape `(batch_size, vocab_size)` of the next words, by a pass over everything, without a cache."""
    scores = model(encoder_outputs=features, decoder_input_ids=words, use_cache=False).logits[:, -1]
    scores[:, NEVER] = -torch.inf
    return scores


def decode_by_hand(
    model: NICForConditionalGeneration, features: torch.Tensor, words: torch.Tensor, choose: Any
) -> Any:
    """Append what `choose` makes of the scores, nine times; `<pad>` after `<eos>`."""
    ended = torch.zeros(len(features), dtype=torch.bool)
    for _ in range(9):
        word = choose(next_scores(model, features, words)).masked_fill(ended, PAD)
        words = torch.cat([words, word[:, None]], dim=1)
        ended |= word == EOS
        if ended.all():
            break
    return words


def log_likelihood(model: NICForConditionalGeneration, features: torch.Tensor, words: torch.Tensor) -> torch.Tensor:
    """log p of each whole caption, from one forward pass; `words` holds `<bos>`."""
    with torch.no_grad():
        scores = model(encoder_outputs=features, decoder_input_ids=words[:, :-1]).logits.log_softmax(dim=-1)
    each = scores.gather(2, words[:, 1:, None]).squeeze(2)
    after_eos = (words[:, 1:] == EOS).cumsum(dim=1) - (words[:, 1:] == EOS).int() > 0
    return each.masked_fill(after_eos, 0.0).sum(dim=1)


def test_greedy_decoding_takes_the_most_likely_word(model: NICForConditionalGeneration) -> None:
    features = tiny_features(6)
    bos = torch.full((6, 1), BOS)
    expected = decode_by_hand(model, features, bos, lambda scores: scores.argmax(dim=-1))
    found = model.generate(encoder_outputs=features, **GREEDY)
    assert torch.equal(found, expected)
    assert len({tuple(row) for row in found.tolist()}) > 1
    assert (found == EOS).any(), "no caption ended, so that the test shows nothing of <eos>"


def test_sampling_draws_from_the_models_distribution(model: NICForConditionalGeneration) -> None:
    features = tiny_features(6)

    def draw(scores: torch.Tensor) -> torch.Tensor:
        return torch.multinomial(scores.softmax(dim=-1), num_samples=1).squeeze(1)

    def sample(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return model.generate(encoder_outputs=features, do_sample=True, num_beams=1, top_k=0, max_new_tokens=9)

    torch.manual_seed(5)
    expected = decode_by_hand(model, features, torch.full((6, 1), BOS), draw)
    assert torch.equal(sample(5), expected)
    assert sample(6).shape != expected.shape or not torch.equal(sample(6), expected)


def test_sampling_from_one_word_is_greedy(model: NICForConditionalGeneration) -> None:
    features = tiny_features(4)
    sampled = model.generate(encoder_outputs=features, do_sample=True, num_beams=1, top_k=1, max_new_tokens=9)
    assert torch.equal(sampled, model.generate(encoder_outputs=features, **GREEDY))


def test_beam_sampling_is_reproducible_and_scores_what_it_drew(model: NICForConditionalGeneration) -> None:
    features = tiny_features(4)
    settings = {"do_sample": True, "num_beams": 4, "num_return_sequences": 3, "max_new_tokens": 6, "top_k": 0}

    def sample(seed: int) -> Any:
        torch.manual_seed(seed)
        return model.generate(
            encoder_outputs=features, output_scores=True, return_dict_in_generate=True, length_penalty=0.0, **settings
        )

    first, again, other = sample(1), sample(1), sample(2)
    assert torch.equal(first.sequences, again.sequences)
    assert first.sequences.shape[0] == 12
    assert first.sequences.tolist() != other.sequences.tolist()
    expected = log_likelihood(model, features.repeat_interleave(3, dim=0), first.sequences)
    torch.testing.assert_close(first.sequences_scores, expected)


def test_several_captions_of_a_photo_differ_and_come_best_first(model: NICForConditionalGeneration) -> None:
    found = model.generate(
        encoder_outputs=tiny_features(4),
        num_beams=5,
        num_return_sequences=5,
        max_new_tokens=9,
        output_scores=True,
        return_dict_in_generate=True,
    )
    captions = found.sequences.view(4, 5, -1)
    scores = found.sequences_scores.view(4, 5)
    assert (scores.diff(dim=1) <= 0).all()
    assert all(len({tuple(row) for row in photo.tolist()}) == 5 for photo in captions)
    best = model.generate(encoder_outputs=tiny_features(4), num_beams=5, max_new_tokens=9)
    assert torch.equal(captions[:, 0, : best.shape[1]], best)


@pytest.mark.parametrize("width", [1, 4])
def test_transition_scores_add_up_to_the_captions_log_likelihood(
    model: NICForConditionalGeneration, width: int
) -> None:
    features = tiny_features(4)
    found = model.generate(
        encoder_outputs=features,
        num_beams=width,
        max_new_tokens=9,
        suppress_tokens=None,
        length_penalty=0.0,
        output_scores=True,
        return_dict_in_generate=True,
    )
    transitions = model.compute_transition_scores(
        found.sequences, found.scores, found.get("beam_indices"), normalize_logits=width == 1
    )
    # A word after <eos> has no score of its own.
    words = found.sequences[:, 1 : 1 + transitions.shape[1]]
    after_eos = (words == EOS).cumsum(dim=1) - (words == EOS).int() > 0
    sums = transitions.masked_fill(after_eos, 0.0).sum(dim=1)
    torch.testing.assert_close(sums, log_likelihood(model, features, found.sequences))
    if width > 1:
        torch.testing.assert_close(sums, found.sequences_scores)


def test_a_streamer_gets_each_word_as_it_comes(model: NICForConditionalGeneration) -> None:
    class Recorder(BaseStreamer):
        def __init__(self) -> None:
            self.calls: list[Any] = []

        def put(self, value: torch.Tensor) -> None:
            self.calls.append(value.flatten().tolist())

        def end(self) -> None:
            self.calls.append("end")

    recorder = Recorder()
    found = model.generate(encoder_outputs=tiny_features(1), streamer=recorder, **GREEDY)
    assert recorder.calls == [*([word] for word in found[0].tolist()), "end"]


def test_a_text_streamer_prints_the_caption(
    model: NICForConditionalGeneration, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer = tiny_tokenizer()
    streamer = TextStreamer(tokenizer, skip_special_tokens=True)
    found = model.generate(encoder_outputs=tiny_features(1), streamer=streamer, **GREEDY)
    assert capsys.readouterr().out.strip() == tokenizer.decode(found[0], skip_special_tokens=True)


@pytest.mark.parametrize("use_cache", [True, False])
def test_a_caption_goes_on_from_a_prefix(model: NICForConditionalGeneration, use_cache: bool) -> None:
    features = tiny_features(4)
    prefix = torch.tensor([[BOS, 5, 6], [BOS, 9, 10], [BOS, 5, 7], [BOS, 20, 21]])
    expected = decode_by_hand(model, features, prefix, lambda scores: scores.argmax(dim=-1))
    found = model.generate(encoder_outputs=features, decoder_input_ids=prefix, use_cache=use_cache, **GREEDY)
    assert torch.equal(found, expected)
    without = model.generate(encoder_outputs=features, **GREEDY)
    assert found[:, 3:].tolist() != without[:, 3:].tolist()


def test_a_prefix_without_bos_gets_one(model: NICForConditionalGeneration) -> None:
    with_bos = model.generate(
        encoder_outputs=tiny_features(1), decoder_input_ids=torch.tensor([[BOS, 5, 6]]), max_new_tokens=4
    )
    without = model.generate(
        encoder_outputs=tiny_features(1), decoder_input_ids=torch.tensor([[5, 6]]), max_new_tokens=4
    )
    assert torch.equal(with_bos, without)


def test_a_beam_goes_on_from_a_prefix(model: NICForConditionalGeneration) -> None:
    features = tiny_features(2)
    prefix = torch.tensor([[BOS, 5, 6], [BOS, 9, 10]])
    found = model.generate(
        encoder_outputs=features,
        decoder_input_ids=prefix,
        num_beams=3,
        max_new_tokens=5,
        length_penalty=0.0,
        output_scores=True,
        return_dict_in_generate=True,
    )
    assert torch.equal(found.sequences[:, :3], prefix)
    of_prefix = log_likelihood(model, features, prefix)
    expected = log_likelihood(model, features, found.sequences) - of_prefix
    torch.testing.assert_close(found.sequences_scores, expected)


class Forbid(LogitsProcessor):
    def __init__(self, word: int) -> None:
        self.word = word

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        scores = scores.clone()
        scores[:, self.word] = -torch.inf
        return scores


@pytest.mark.parametrize("width", [1, 3])
def test_a_logits_processor_is_obeyed(model: NICForConditionalGeneration, width: int) -> None:
    usual = model.generate(encoder_outputs=tiny_features(4), num_beams=width)
    word = int(usual[0, 1])
    found = model.generate(
        encoder_outputs=tiny_features(4), num_beams=width, logits_processor=LogitsProcessorList([Forbid(word)])
    )
    assert (usual == word).any()
    assert not (found == word).any()


@pytest.mark.parametrize("settings", [{"num_beams": 1}, {"num_beams": 3}, {"num_beams": 1, "do_sample": True}])
def test_special_tokens_are_never_part_of_a_caption(settings: dict[str, Any]) -> None:
    model = tiny_model()
    model.lm_head.bias.data[NEVER] = 50.0  # by far the most likely
    found = model.generate(encoder_outputs=tiny_features(4), **settings)
    captions = [row[: row.index(EOS)] if EOS in row else row for row in found[:, 1:].tolist()]
    assert not any(set(NEVER) & set(caption) for caption in captions)


def test_lengths_are_kept(model: NICForConditionalGeneration) -> None:
    assert model.generate(encoder_outputs=tiny_features(4)).shape[1] <= 21
    assert model.generate(encoder_outputs=tiny_features(4), max_new_tokens=3).shape[1] <= 4
    long = model.generate(encoder_outputs=tiny_features(4), min_new_tokens=15, num_beams=1)
    assert not (long[:, 1:15] == EOS).any()


def test_image_features_may_stand_for_photos(model: NICForConditionalGeneration) -> None:
    pixel_values = tiny_pixels(3)
    expected = model.generate(pixel_values=pixel_values)
    features = model.get_image_features(pixel_values)
    assert torch.equal(model.generate(pixel_values), expected)
    for form in (
        features,
        features.unsqueeze(1),
        (features,),
        (features.unsqueeze(1),),
        [features],
        {"last_hidden_state": features},
        BaseModelOutput(last_hidden_state=features),
        BaseModelOutput(last_hidden_state=features.unsqueeze(1)),
        model.get_encoder()(pixel_values),
    ):
        assert torch.equal(model.generate(encoder_outputs=form), expected)
        with torch.no_grad():
            from_form = model(encoder_outputs=form, decoder_input_ids=expected).logits
            from_photo = model(pixel_values=pixel_values, decoder_input_ids=expected).logits
        torch.testing.assert_close(from_form, from_photo, rtol=0, atol=0)


@pytest.mark.parametrize(
    "wrong",
    [torch.zeros(3, 4), torch.zeros(3, 2, 10), torch.zeros(10), (), {"pooler_output": torch.zeros(3, 10)}, "x"],
)
def test_other_things_than_features_are_refused(model: NICForConditionalGeneration, wrong: Any) -> None:
    with pytest.raises(ValueError, match=r"`encoder_outputs` must be features of shape \(batch_size, 10\), got"):
        model.generate(encoder_outputs=wrong)
    with pytest.raises(ValueError, match=r"`encoder_outputs` must be features of shape \(batch_size, 10\), got"):
        model(encoder_outputs=wrong, decoder_input_ids=torch.ones(3, 1, dtype=torch.long))


def test_a_missing_photo_or_missing_words_are_named(model: NICForConditionalGeneration) -> None:
    with pytest.raises(ValueError, match="no image: give `pixel_values`"):
        model(decoder_input_ids=torch.tensor([[BOS]]))
    with pytest.raises(ValueError, match="no words: give `labels`"):
        model(pixel_values=tiny_pixels(1))
    with pytest.raises(ValueError, match="no image: give `pixel_values`"):
        model.generate()


@pytest.mark.parametrize("width", [1, 3, 6])
@pytest.mark.parametrize("returned", [1, 3])
def test_the_backbone_runs_once_whatever_the_beam(width: int, returned: int) -> None:
    model = tiny_model()
    batches = []
    model.encoder.backbone.register_forward_hook(
        lambda module, args, kwargs, output: batches.append(len(kwargs["pixel_values"])), with_kwargs=True
    )
    sampling = {"do_sample": True} if width == 1 else {}
    found = model.generate(
        pixel_values=tiny_pixels(2), num_beams=width, num_return_sequences=min(returned, max(width, 3)), **sampling
    )
    assert len(found) == 2 * min(returned, max(width, 3))
    assert batches == [2]


@pytest.mark.parametrize("width", [1, 3])
def test_a_batch_gives_what_single_photos_give(model: NICForConditionalGeneration, width: int) -> None:
    pixel_values = tiny_pixels(5)
    together = model.generate(pixel_values=pixel_values, num_beams=width)
    for row, photo in zip(together, pixel_values, strict=True):
        alone = model.generate(pixel_values=photo[None], num_beams=width)[0]
        assert torch.equal(row[: len(alone)], alone)
        assert set(row[len(alone) :].tolist()) <= {PAD, EOS}


@pytest.mark.parametrize("width", [1, 4])
@pytest.mark.parametrize("layers", [1, 2])
def test_decoding_without_a_cache_gives_the_same(width: int, layers: int) -> None:
    model = tiny_model(num_hidden_layers=layers, seed=49 if layers == 1 else 7)
    settings = {"encoder_outputs": tiny_features(4), "num_beams": width, "output_scores": True}
    cached = model.generate(return_dict_in_generate=True, **settings)
    uncached = model.generate(return_dict_in_generate=True, use_cache=False, **settings)
    assert torch.equal(cached.sequences, uncached.sequences)
    for ours, theirs in zip(cached.scores, uncached.scores, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_a_model_in_training_mode_decodes_too() -> None:
    """With dropout, as self-critical training samples."""
    model = tiny_model(dropout=0.5).train()
    torch.manual_seed(0)
    found = model.generate(encoder_outputs=tiny_features(4), do_sample=True, num_beams=1)
    assert found.shape[0] == 4


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_and_autocast_decode(dtype: torch.dtype) -> None:
    half = tiny_model().to(dtype).generate(pixel_values=tiny_pixels(2))
    assert half.shape[0] == 2
    with torch.autocast("cpu", dtype):
        assert tiny_model().generate(pixel_values=tiny_pixels(2)).shape[0] == 2
