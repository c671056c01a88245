"""CLIP-S and RefCLIP-S of a tiny random CLIP model, compared with a plain computation for one photo at a time."""

import logging
from pathlib import Path

import pytest
import torch
from tiny import save_tiny_checkpoint, tiny_photos
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

from nic_hf.evaluation import EvaluationDataError
from nic_hf.evaluation.clip_score import clip_scores
from nic_hf.model.processor import build_image_processor

START, END = "<|startoftext|>", "<|endoftext|>"
LETTERS = "abcdefghijklmnopqrstuvwxyz"
# Like CLIP's: end of text has the highest id and is the padding; the last letter of a word is a separate token.
TOKENS = [*LETTERS, *(letter + "</w>" for letter in LETTERS), START, END]
IMAGE_SIZE, MAX_TOKENS = 24, 40
PHOTOS = dict(zip("xyz", tiny_photos(3, seed=1), strict=True))
CAPTIONS = {"z": "a dog runs", "x": "cat sits on grass", "y": "grass"}
REFERENCES = {"x": ["a dog", "dog sits on grass"], "y": ["a cat runs on grass"], "z": ["dog runs", "a dog", "a cat"]}


def tiny_clip_tokenizer() -> CLIPTokenizer:
    return CLIPTokenizer(vocab={token: number for number, token in enumerate(TOKENS)}, merges=[])


def tiny_clip_model() -> CLIPModel:
    shape = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {**shape, "vocab_size": len(TOKENS), "max_position_embeddings": MAX_TOKENS}
    text |= {"bos_token_id": TOKENS.index(START), "eos_token_id": TOKENS.index(END), "pad_token_id": 1}
    vision = {**shape, "image_size": IMAGE_SIZE, "patch_size": 8}
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=8, initializer_factor=8.0)
    with torch.random.fork_rng():
        torch.manual_seed(4)
        return CLIPModel(config).eval()


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("clip")
    tiny_clip_model().save_pretrained(folder)
    tiny_clip_tokenizer().save_pretrained(folder)
    size = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    settings = {"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": IMAGE_SIZE}, "crop_size": size}
    build_image_processor(settings).save_pretrained(folder)
    return folder


def plain_scores(photos, captions, references) -> dict[str, dict[str, float]]:
    """The formulas for one photo and one caption at a time, with the parts of the model."""
    model = tiny_clip_model()
    settings = {"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": IMAGE_SIZE}}
    prepare = build_image_processor({**settings, "crop_size": {"height": IMAGE_SIZE, "width": IMAGE_SIZE}})

    def text_feature(caption: str) -> torch.Tensor:
        words = ["a", "photo", "depicts", *caption.split()]
        tokens = [token for word in words for token in (*word[:-1], word[-1] + "</w>")][: MAX_TOKENS - 2]
        ids = torch.tensor([[TOKENS.index(token) for token in (START, *tokens, END)]])
        return model.text_projection(model.text_model(input_ids=ids).last_hidden_state[0, -1])

    def photo_feature(photo) -> torch.Tensor:
        pixels = prepare(photo.convert("RGB"), return_tensors="pt")["pixel_values"]
        return model.visual_projection(model.vision_model(pixel_values=pixels).pooler_output[0])

    def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
        return float(a @ b / (a.norm() * b.norm()))

    scores = {}
    with torch.no_grad():
        for image_id, caption in captions.items():
            feature = text_feature(caption)
            clip_s = 2.5 * max(cosine(feature, photo_feature(photos[image_id])), 0)
            closest = max(max(cosine(feature, text_feature(text)) for text in references[image_id]), 0)
            ref_clip_s = 2 / (1 / clip_s + 1 / closest) if clip_s and closest else 0.0
            scores[image_id] = {"clip_s": clip_s, "ref_clip_s": ref_clip_s}
    return scores


@pytest.mark.parametrize("batch_size", [1, 2, 64])
def test_scores_equal_a_plain_computation(clip, batch_size):
    expected = plain_scores(PHOTOS, CAPTIONS, REFERENCES)
    ours = clip_scores(clip, PHOTOS, CAPTIONS, REFERENCES, batch_size=batch_size, device="cpu", progress=False)
    assert list(ours) == list(CAPTIONS)
    for image_id, scores in expected.items():
        assert ours[image_id] == pytest.approx(scores, abs=1e-5)
    # Photos and captions matter: a formula without the photo or the factor of 2.5 would not pass.
    assert len({round(scores["clip_s"], 3) for scores in expected.values()}) == 3
    assert max(scores["clip_s"] for scores in expected.values()) > 0.1


def test_every_pair_of_a_photo_and_a_caption_has_the_plain_score(clip):
    pairs = [(image_id, caption) for image_id in PHOTOS for caption in CAPTIONS.values()]
    photos = {number: PHOTOS[image_id] for number, (image_id, _) in enumerate(pairs)}
    captions = {number: caption for number, (_, caption) in enumerate(pairs)}
    references = {number: REFERENCES[image_id] for number, (image_id, _) in enumerate(pairs)}
    expected = plain_scores(photos, captions, references)
    ours = clip_scores(clip, photos, captions, references, batch_size=4, device="cpu", progress=False)
    for number in captions:
        assert ours[number] == pytest.approx(expected[number], abs=1e-5)
    negative = [scores for scores in expected.values() if scores["clip_s"] == 0]
    assert 0 < len(negative) < len(pairs)
    assert all(scores["ref_clip_s"] == 0 for scores in negative)


def test_without_references_there_is_clip_s_alone(clip, tmp_path):
    PHOTOS["x"].save(tmp_path / "x.png")
    scores = clip_scores(str(clip), {"x": tmp_path / "x.png"}, {"x": CAPTIONS["x"]}, device="cpu", progress=False)
    with_references = clip_scores(clip, PHOTOS, CAPTIONS, REFERENCES, device="cpu", progress=False)
    assert scores["x"].keys() == {"clip_s"}
    assert scores["x"]["clip_s"] == pytest.approx(with_references["x"]["clip_s"], abs=1e-6)


def test_long_captions_are_cut_with_a_warning(clip, caplog):
    photos, captions = {"x": PHOTOS["x"]}, {"x": "a dog " * 20}
    with caplog.at_level(logging.WARNING):
        scores = clip_scores(clip, photos, captions, {"x": ["a dog"]}, device="cpu", progress=False)
    assert scores["x"] == pytest.approx(plain_scores(photos, captions, {"x": ["a dog"]})["x"], abs=1e-5)
    assert (
        f"1 captions are longer than the model's {MAX_TOKENS} tokens and are truncated; the first: 'a dog"
        in caplog.text
    )


def test_an_empty_caption_is_scored_with_a_warning(clip, caplog):
    clip_scores(clip, {"x": PHOTOS["x"]}, {"x": " "}, device="cpu", progress=False)
    assert "the caption of 'x' is empty" in caplog.text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"captions": {}}, "captions are empty"),
        ({"captions": {**CAPTIONS, "w": "a dog"}}, "'w' has a caption but is not in the photos"),
        ({"photos": {**PHOTOS, "w": PHOTOS["x"]}}, "'w' is in the photos but has no caption"),
        ({"references": {"x": ["a"], "y": ["a"]}}, "'z' has a caption but is not in the references"),
        ({"references": {**REFERENCES, "w": ["a"]}}, "'w' is in the references but has no caption"),
        ({"references": {**REFERENCES, "y": []}}, "references of 'y' are an empty list"),
        ({"references": {**REFERENCES, "y": "a dog"}}, "references of 'y' must be a list"),
        ({"references": {**REFERENCES, "y": [None]}}, "reference of 'y' is not text: None"),
        ({"captions": {**CAPTIONS, "y": float("nan")}}, "caption of 'y' is not text: nan"),
        ({"captions": ["a dog"]}, "captions must be a mapping by image id, not list"),
    ],
)
def test_ids_and_captions_that_cannot_be_scored_are_named(changes, message):
    # The check comes before loading the model.
    arguments = {"photos": PHOTOS, "captions": CAPTIONS, "references": REFERENCES, **changes}
    with pytest.raises(EvaluationDataError, match=message):
        clip_scores("/no/such/clip", **arguments, progress=False)


def assert_one_line(error: pytest.ExceptionInfo, *parts: str) -> None:
    assert "\n" not in str(error.value)
    for part in parts:
        assert part in str(error.value)


def test_a_missing_model_is_named_in_one_line(tmp_path):
    with pytest.raises(OSError) as error:
        clip_scores(tmp_path / "clip", PHOTOS, CAPTIONS, progress=False)
    assert_one_line(error, str(tmp_path / "clip"), "no such folder")
    with pytest.raises(ValueError) as error:
        clip_scores(tmp_path, PHOTOS, CAPTIONS, progress=False)
    assert_one_line(error, str(tmp_path), "a folder without a model's config.json")


def test_a_model_of_another_kind_is_named(tmp_path):
    save_tiny_checkpoint(tmp_path)
    with pytest.raises(ValueError, match="CLIP-S needs a CLIP model, and this is nic") as error:
        clip_scores(tmp_path, PHOTOS, CAPTIONS, progress=False)
    assert_one_line(error, str(tmp_path))


@pytest.mark.parametrize("lacking", ["preprocessor_config.json", "model.safetensors"])
def test_a_folder_that_lacks_a_file_is_named_in_one_line(clip, tmp_path, lacking):
    for file in clip.iterdir():
        if file.name != lacking:
            (tmp_path / file.name).write_bytes(file.read_bytes())
    with pytest.raises(OSError) as error:
        clip_scores(tmp_path, PHOTOS, CAPTIONS, progress=False)
    assert_one_line(error, str(tmp_path), "cannot be read as a CLIP model")


def test_a_folder_without_a_tokenizer_is_refused(clip, tmp_path):
    for name in ("config.json", "model.safetensors", "preprocessor_config.json"):
        (tmp_path / name).write_bytes((clip / name).read_bytes())
    with pytest.raises(ValueError, match="end-of-text token is 2 and the model expects 53") as error:
        clip_scores(tmp_path, PHOTOS, CAPTIONS, progress=False)
    assert_one_line(error, str(tmp_path))


def test_a_checkpoint_that_lacks_weights_is_refused(clip, tmp_path):
    model = tiny_clip_model()
    weights = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith("visual_projection")}
    model.save_pretrained(tmp_path, state_dict=weights)
    for name in ("tokenizer.json", "tokenizer_config.json", "preprocessor_config.json"):
        (tmp_path / name).write_bytes((clip / name).read_bytes())
    with pytest.raises(ValueError, match=r"lacks 1 tensors: visual_projection\.weight"):
        clip_scores(tmp_path, PHOTOS, CAPTIONS, progress=False)


def test_a_photo_that_cannot_be_read_is_named(clip, tmp_path):
    (tmp_path / "x.jpg").write_bytes(b"no photo")
    with pytest.raises(OSError, match=r"x\.jpg"):
        clip_scores(clip, {"x": tmp_path / "x.jpg"}, {"x": "a dog"}, progress=False)


def test_a_batch_holds_at_least_one_photo(clip):
    with pytest.raises(ValueError, match="batch_size must be at least 1, not 0"):
        clip_scores(clip, PHOTOS, CAPTIONS, batch_size=0)
