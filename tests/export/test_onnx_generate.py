"""`NICOnnxCaptioner.generate` compared with `generate()` of the same weights in PyTorch."""

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import tiny_features, tiny_model, tiny_photos, tiny_pixels, tiny_processor
from transformers import GenerationConfig

import nic_hf
from nic_hf import ImageToTextPipeline, NICForConditionalGeneration
from nic_hf.export import NICOnnxCaptioner

SEARCHES: list[dict[str, Any]] = [
    {},
    {"num_beams": 1},
    {"num_beams": 1, "max_new_tokens": 1},
    {"num_beams": 1, "min_new_tokens": 4, "max_new_tokens": 9},
    {"num_beams": 1, "min_length": 6},
    {"num_beams": 1, "repetition_penalty": 3.0},
    {"num_beams": 1, "no_repeat_ngram_size": 1},
    {"num_beams": 1, "no_repeat_ngram_size": 2, "max_new_tokens": 30},
    {"num_beams": 2, "length_penalty": 0.0},
    {"num_beams": 4, "length_penalty": 2.0, "num_return_sequences": 4},
    {"num_beams": 3, "length_penalty": -1.0},
    {"num_beams": 3, "early_stopping": True, "num_return_sequences": 2},
    {"num_beams": 3, "early_stopping": "never", "length_penalty": 0.5},
    {"num_beams": 5, "early_stopping": "never", "length_penalty": -0.5},
    {"num_beams": 9, "max_new_tokens": 6, "num_return_sequences": 9},
    {"num_beams": 3, "repetition_penalty": 1.7, "no_repeat_ngram_size": 2},
    {"num_beams": 3, "bad_words_ids": [[5], [6, 7], [8, 9, 10], [2]]},
    {"num_beams": 3, "suppress_tokens": [0, 1, 3, 12, 13], "begin_suppress_tokens": [4, 2]},
    {"num_beams": 3, "max_new_tokens": None, "max_length": 7},
    {"num_beams": 3, "max_length": 7, "suppress_tokens": None},
    {"num_beams": 1, "max_length": 40},
    {"num_beams": 2, "eos_token_id": [2, 9, 11], "num_return_sequences": 2},
    {"num_beams": 1, "eos_token_id": [2, 9, 11], "pad_token_id": 3},
]


def told(settings: dict[str, Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in settings.items()) or "as the checkpoint says"


@torch.no_grad()
def in_pytorch(model: NICForConditionalGeneration, **settings: Any) -> tuple[np.ndarray, np.ndarray | None]:
    given = {name: torch.from_numpy(value) for name, value in settings.items() if isinstance(value, np.ndarray)}
    output = model.generate(**{**settings, **given}, return_dict_in_generate=True, output_scores=True)
    scores = getattr(output, "sequences_scores", None)
    return output.sequences.numpy(), None if scores is None else scores.numpy()


def compare(captioner: NICOnnxCaptioner, model: NICForConditionalGeneration, **settings: Any) -> np.ndarray:
    expected, scores = in_pytorch(model, **settings)
    found = captioner.generate(**settings, return_dict_in_generate=True)
    np.testing.assert_array_equal(found.sequences, expected)
    if scores is None:
        assert found.sequences_scores is None
    else:
        np.testing.assert_allclose(found.sequences_scores, scores, rtol=1e-5)
    return found.sequences


@pytest.mark.parametrize("settings", SEARCHES, ids=told)
def test_a_search_finds_the_captions_of_pytorch(tiny_onnx: NICOnnxCaptioner, settings: dict[str, Any]) -> None:
    model = tiny_model(num_hidden_layers=2)
    for size in (1, 13):
        found = compare(tiny_onnx, model, encoder_outputs=tiny_features(size, seed=size).numpy(), **settings)
    # Captions of different lengths, so that photos leave the batch at different times.
    if settings.get("max_new_tokens") != 1:
        assert len({tuple(row) for row in found}) > 1


@pytest.mark.parametrize("num_beams", [1, 3])
def test_photos_go_through_the_encoder(tiny_onnx: NICOnnxCaptioner, num_beams: int) -> None:
    model, pixels = tiny_model(num_hidden_layers=2), tiny_pixels(5)
    with torch.no_grad():
        expected = model.get_image_features(pixels)
    np.testing.assert_allclose(tiny_onnx.get_image_features(pixels), expected, atol=1e-5)
    found = tiny_onnx.generate(pixel_values=pixels.numpy(), num_beams=num_beams)
    np.testing.assert_array_equal(found, model.generate(pixel_values=pixels, num_beams=num_beams))
    # Tensors and lists work too.
    for form in (pixels, pixels.tolist()):
        np.testing.assert_array_equal(tiny_onnx.generate(form, num_beams=num_beams), found)


@pytest.mark.parametrize("settings", SEARCHES, ids=told)
def test_threads_that_share_a_batch_find_the_same_captions(
    tiny_onnx: NICOnnxCaptioner, settings: dict[str, Any]
) -> None:
    alone = NICOnnxCaptioner(tiny_onnx.folder, num_threads=1)
    shared = NICOnnxCaptioner(tiny_onnx.folder, num_threads=3)
    pixels = tiny_pixels(14).numpy()
    features = alone.get_image_features(pixels)
    prompts = np.array([[1, word] for word in range(4, 18)])
    for given in ({}, {"decoder_input_ids": prompts}):
        if settings.get("begin_suppress_tokens") and given:
            continue
        for images in ({"pixel_values": pixels}, {"encoder_outputs": features}):
            found = shared.generate(**images, **given, **settings, return_dict_in_generate=True)
            expected = alone.generate(**images, **given, **settings, return_dict_in_generate=True)
            np.testing.assert_array_equal(found.sequences, expected.sequences)
            if expected.sequences_scores is None:
                assert found.sequences_scores is None
            else:
                np.testing.assert_allclose(found.sequences_scores, expected.sequences_scores, rtol=1e-5)
    assert "_one_thread" in vars(shared) and "_one_thread" not in vars(alone)
    with pytest.raises(ValueError, match=r"shape \(14, prompt_length\), got \(3, 1\)"):
        shared.generate(pixels, decoder_input_ids=[[1]] * 3)
    with pytest.raises(ValueError, match="that was exported, got"):
        shared.generate(pixels[:, :, :-1])


@pytest.mark.parametrize("num_beams", [1, 3])
def test_a_caption_goes_on_from_a_prefix(tiny_onnx: NICOnnxCaptioner, num_beams: int) -> None:
    prefix = np.array([[1, 7, 5], [1, 4, 4], [1, 20, 9]])
    model, features = tiny_model(num_hidden_layers=2), tiny_features(3).numpy()
    settings = {"encoder_outputs": features, "decoder_input_ids": prefix, "num_beams": num_beams}
    found = compare(tiny_onnx, model, **settings)
    np.testing.assert_array_equal(found[:, :3], prefix)
    compare(tiny_onnx, model, **settings, begin_suppress_tokens=[int(found[0, 3])], repetition_penalty=1.5)


@pytest.mark.parametrize("settings", [{}, {"num_beams": 1}, {"num_beams": 4, "num_return_sequences": 4}], ids=told)
def test_prefixes_of_several_lengths_are_continued(
    tiny_onnx: NICOnnxCaptioner, attentive_onnx: NICOnnxCaptioner, settings: dict[str, Any]
) -> None:
    texts = ["two children", "", "a man rides his", "the"] * 4
    prefixes = dict(tiny_processor()(text=texts, return_tensors="np"))
    pixels = tiny_pixels(len(texts)).numpy()
    for captioner, model in (
        (tiny_onnx, tiny_model(num_hidden_layers=2)),
        (attentive_onnx, tiny_model(attention="soft")),
    ):
        compare(captioner, model, pixel_values=pixels, **prefixes, **settings)
        without_mask = captioner.generate(pixels, decoder_input_ids=prefixes["decoder_input_ids"], **settings)
        assert not np.array_equal(without_mask, captioner.generate(pixels, **prefixes, **settings))


@pytest.mark.parametrize(
    "settings",
    [{}, {"num_beams": 1}, {"num_beams": 4, "num_return_sequences": 4, "length_penalty": 0.3, "max_new_tokens": 8}],
    ids=told,
)
def test_attention_finds_the_captions_of_pytorch(attentive_onnx: NICOnnxCaptioner, settings: dict[str, Any]) -> None:
    model = tiny_model(attention="soft")
    pixels = tiny_pixels(7).numpy()
    found = compare(attentive_onnx, model, pixel_values=pixels, **settings)
    assert len({tuple(row) for row in found}) > 1
    features = attentive_onnx.get_image_features(pixels)
    np.testing.assert_array_equal(attentive_onnx.generate(encoder_outputs=features, **settings), found)


def test_a_generation_config_is_taken(tiny_onnx: NICOnnxCaptioner) -> None:
    model, features = tiny_model(num_hidden_layers=2), tiny_features(6).numpy()
    config = GenerationConfig(num_beams=2, length_penalty=0.2, max_new_tokens=7, num_return_sequences=2)
    found = compare(tiny_onnx, model, encoder_outputs=features, generation_config=config)
    same = {"num_beams": 2, "length_penalty": 0.2, "max_new_tokens": 7, "num_return_sequences": 2}
    np.testing.assert_array_equal(tiny_onnx.generate(encoder_outputs=features, generation_config=same), found)
    # Its length, in either form, takes precedence over the checkpoint's, and arguments over both.
    short = compare(tiny_onnx, model, encoder_outputs=features, generation_config=GenerationConfig(max_length=4))
    assert short.shape[1] == 4
    np.testing.assert_array_equal(
        tiny_onnx.generate(encoder_outputs=features, generation_config={"max_new_tokens": 9}, max_length=4), short
    )
    one = tiny_onnx.generate(encoder_outputs=features, generation_config=same, num_return_sequences=1)
    np.testing.assert_array_equal(one, found[::2])


def next_word_probabilities(features: torch.Tensor, **settings: Any) -> np.ndarray:
    """The distribution of the first word, by Transformers' logits processors."""
    model = tiny_model(num_hidden_layers=2)
    with torch.no_grad():
        output = model.generate(
            encoder_outputs=features,
            do_sample=True,
            num_beams=1,
            max_new_tokens=1,
            return_dict_in_generate=True,
            output_scores=True,
            **settings,
        )
    return output.scores[0].softmax(dim=-1)[0].numpy()


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"temperature": 2.5},
        {"top_k": None},
        {"top_k": 3},
        {"top_k": 0, "top_p": 0.7},
        {"temperature": 3.0, "top_p": 0.9},
    ],
    ids=told,
)
def test_sampling_draws_words_by_their_probability(tiny_onnx: NICOnnxCaptioner, settings: dict[str, Any]) -> None:
    features, draws = tiny_features(1), 8000
    expected = next_word_probabilities(features, **settings)
    found = tiny_onnx.generate(
        encoder_outputs=features,
        do_sample=True,
        num_beams=1,
        max_new_tokens=1,
        num_return_sequences=draws,
        seed=0,
        **settings,
    )
    counts = np.bincount(found[:, 1], minlength=len(expected))
    assert not counts[expected == 0].any(), "a word was drawn that the library excludes"
    assert (expected > 0).sum() > 2
    # Five standard deviations of a binomial count.
    assert (np.abs(counts - draws * expected) <= 5 * np.sqrt(draws * expected) + 1e-6).all()


def test_a_seed_gives_the_same_captions_again(tiny_onnx: NICOnnxCaptioner) -> None:
    def sampled(seed: int | None) -> list[str]:
        return tiny_onnx.caption(tiny_photos(3), do_sample=True, num_beams=1, temperature=3.0, seed=seed)

    assert sampled(1) == sampled(1) != sampled(2)
    assert len({tuple(sampled(None)) for _ in range(5)}) > 1


def test_beam_sampling_draws_pairs_of_words_without_replacement(tiny_onnx: NICOnnxCaptioner) -> None:
    # With two beams and one word, the better of the two samples is returned first.
    features, draws = tiny_features(1), 3000
    p = next_word_probabilities(features, top_k=4)
    words = np.flatnonzero(p)
    pairs = {(a, b): p[a] * p[b] / (1 - p[a]) + p[b] * p[a] / (1 - p[b]) for a in words for b in words if p[a] > p[b]}
    found = tiny_onnx.generate(
        encoder_outputs=np.repeat(features.numpy(), draws, axis=0),
        do_sample=True,
        num_beams=2,
        num_return_sequences=2,
        max_new_tokens=1,
        top_k=4,
        seed=3,
    )
    counts = Counter(tuple(pair) for pair in found[:, 1].reshape(-1, 2).tolist())
    assert set(counts) <= set(pairs)
    for pair, probability in pairs.items():
        assert abs(counts[pair] - draws * probability) <= 5 * np.sqrt(draws * probability) + 1


def test_pipelines_take_it(tiny_onnx: NICOnnxCaptioner) -> None:
    photos = tiny_photos(4)
    in_onnx = ImageToTextPipeline(model=tiny_onnx, processor=tiny_processor())
    in_torch = ImageToTextPipeline(model=tiny_model(num_hidden_layers=2), processor=tiny_processor())
    for settings in ({}, {"num_beams": 2, "num_return_sequences": 2}, {"prompt": "two children", "max_new_tokens": 4}):
        assert in_onnx(photos, batch_size=3, **settings) == in_torch(photos, batch_size=3, **settings)
    assert in_onnx(photos[0], return_dict_in_generate=True) == in_torch(photos[0])
    assert [entry[0]["generated_text"] for entry in in_onnx(photos)] == tiny_onnx.caption(photos)


def test_photos_are_captioned_one_by_one_or_many_together(tiny_onnx: NICOnnxCaptioner) -> None:
    photos = tiny_photos(5)
    captions = tiny_onnx.caption(photos)
    assert all(isinstance(caption, str) and caption for caption in captions)
    assert tiny_onnx.caption(photos[0]) == captions[0]
    assert tiny_onnx.caption(tuple(photos), batch_size=2) == captions
    assert tiny_onnx.caption([]) == []
    several = tiny_onnx.caption(photos, num_return_sequences=3, batch_size=4)
    assert [len(texts) for texts in several] == [3] * 5
    assert [texts[0] for texts in several] == captions
    assert tiny_onnx.caption(photos[1], num_return_sequences=3) == several[1]
    assert tiny_onnx.generate(np.empty((0, 3, 32, 32))).shape[0] == 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_beam_groups": 2}, "does not support `num_beam_groups`"),
        ({"penalty_alpha": 0.6}, "does not support `penalty_alpha`"),
        ({"logits_processor": [len]}, "does not support `logits_processor`"),
        ({"stop_strings": "dog"}, "does not support `stop_strings`"),
        ({"output_scores": True}, "does not support `output_scores`"),
        ({"num_baems": 3}, "does not support `num_baems`"),
        ({"num_beams": 0}, "`num_beams` must be an integer of at least 1, got 0"),
        ({"num_beams": 2.0}, "`num_beams` must be an integer"),
        ({"num_beams": 1, "num_return_sequences": 2}, "returns at most one caption per beam"),
        ({"do_sample": True, "temperature": 0.0}, "`temperature` must be a number above 0, got 0"),
        ({"do_sample": True, "top_p": 1.5}, "`top_p` must be a number above 0, at most 1, got 1.5"),
        ({"length_penalty": float("nan")}, "`length_penalty` must be a number"),
        ({"early_stopping": "soon"}, "must be True, False or 'never'"),
        ({"bad_words_ids": [4]}, "must be a list of lists"),
        ({"bad_words_ids": [[400]]}, "`bad_words_ids` has 400, which is not an id"),
        ({"suppress_tokens": [-1]}, "`suppress_tokens` has -1"),
        ({"max_new_tokens": None, "max_length": 1, "decoder_input_ids": [[1, 4]]}, "leaves no room"),
        ({"decoder_input_ids": [[1], [1]]}, r"must have the shape \(1, prompt_length\)"),
        ({"decoder_input_ids": [[27]]}, "outside the vocabulary of 0 to 26"),
        ({"encoder_outputs": np.zeros((1, 11))}, r"shape \(batch_size, 10\), got \(1, 11\)"),
        ({"encoder_outputs": None}, "no image: give `pixel_values`"),
        ({"encoder_outputs": None, "pixel_values": np.zeros((1, 3, 64, 64))}, r"\(batch_size, 3, 32, 32\)"),
        ({"encoder_outputs": "photo.jpg"}, "expected numbers"),
    ],
    ids=lambda value: told(value) if isinstance(value, dict) else None,
)
def test_what_it_cannot_do_is_refused(tiny_onnx: NICOnnxCaptioner, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny_onnx.generate(**{"encoder_outputs": tiny_features(1).numpy(), **settings})


def test_settings_without_effect_are_taken(tiny_onnx: NICOnnxCaptioner) -> None:
    features = tiny_features(3).numpy()
    expected = tiny_onnx.generate(encoder_outputs=features)
    neutral = {"use_cache": True, "num_beam_groups": 1, "typical_p": 1.0, "output_scores": False, "streamer": None}
    np.testing.assert_array_equal(tiny_onnx.generate(encoder_outputs=features, **neutral), expected)


def test_nic_caption_waits_for_neither_torch_nor_transformers(tiny_onnx: NICOnnxCaptioner, tmp_path: Path) -> None:
    (photo,) = tiny_photos(1)
    photo.save(tmp_path / "photo.png")
    arguments = ["caption", str(tmp_path / "photo.png"), "--model", str(tiny_onnx.folder)]
    code = (
        f"import sys\nfrom nic_hf.cli import app\ntry:\n    app({arguments!r})\nexcept SystemExit as end:\n"
        "    assert not end.code, end.code\n"
        "found = {'torch', 'transformers', 'datasets', 'pandas', 'pyarrow', 'scipy'} & set(sys.modules)\n"
        "assert not found, found\n"
        "import gc\n"
        "assert gc.isenabled() and gc.get_freeze_count() > 10_000"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(nic_hf.__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().split("\t")[1] == tiny_onnx.caption(photo)


def test_features_of_a_photo_do_not_depend_on_its_batch(tiny_onnx: NICOnnxCaptioner) -> None:
    """A CPU encodes one photo after the other, in one thread or several, so all bits are the same."""
    pixels = tiny_pixels(7).numpy()
    alone = NICOnnxCaptioner(tiny_onnx.folder, num_threads=1)
    together = alone.get_image_features(pixels)
    one_by_one = np.concatenate([alone.get_image_features(pixels[i : i + 1]) for i in range(7)])
    np.testing.assert_array_equal(together, one_by_one)
    for threads in (2, 3):
        captioner = NICOnnxCaptioner(tiny_onnx.folder, num_threads=threads)
        np.testing.assert_array_equal(captioner.get_image_features(pixels), together)
