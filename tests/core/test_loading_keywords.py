"""Keywords of loading: each reaches what knows it, in every door, and none is saved."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import save_tiny_checkpoint, tiny_model, tiny_photos, tiny_processor
from transformers import AutoImageProcessor, AutoProcessor, AutoTokenizer, pipeline

from nic_hf import ImageToTextPipeline, NICForConditionalGeneration, NICProcessor
from nic_hf.model.processor import load_image_processor

PHOTOS = tiny_photos(3)
NATIVE = {"task": "image-text-to-text"}
DOORS: list[dict[str, Any]] = [
    {"task": "image-to-text", "trust_remote_code": True},
    {"trust_remote_code": True},
    {"task": "image-to-text", "pipeline_class": ImageToTextPipeline},
    {"task": "image-captioning"},
    NATIVE,
]
DTYPES: list[tuple[dict[str, Any], torch.dtype]] = [
    ({"dtype": torch.float16}, torch.float16),
    ({"dtype": torch.bfloat16}, torch.bfloat16),
    ({"dtype": "float16"}, torch.float16),
    ({"dtype": "bfloat16"}, torch.bfloat16),
    ({"dtype": "auto"}, torch.float32),
    ({"torch_dtype": torch.float16}, torch.float16),
    ({"torch_dtype": "bfloat16"}, torch.bfloat16),
    ({"model_kwargs": {"dtype": torch.float16}}, torch.float16),
    ({"model_kwargs": {"dtype": "bfloat16"}}, torch.bfloat16),
    ({"model_kwargs": {"torch_dtype": torch.float16}}, torch.float16),
    ({"dtype": torch.bfloat16, "device_map": "auto"}, torch.bfloat16),
]
SOFT = [({"dtype": dtype}, dtype, "soft") for dtype in (torch.float16, torch.bfloat16)]
# What users of other models give `from_pretrained`, of every kind.
KEYWORDS: dict[str, Any] = {
    "dtype": torch.float16,
    "torch_dtype": "float16",
    "device_map": "auto",
    "max_memory": {"cpu": "1GB"},
    "attn_implementation": "sdpa",
    "low_cpu_mem_usage": True,
    "quantization_config": None,
    "use_safetensors": True,
    "use_fast": True,
    "backend": "pil",
    "variant": None,
    "revision": "main",
    "code_revision": "main",
    "token": False,
    "cache_dir": "cache",
    "local_files_only": True,
    "force_download": False,
    "subfolder": "",
    "return_tensors": "pt",
    "device": "cpu",
    "no_keyword_of_anything": 1,
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    save_tiny_checkpoint(folder)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def captions(captioner: Any, is_native: bool) -> list[str]:
    if is_native:
        return [answer["generated_text"] for answer in captioner(images=PHOTOS, text=[""] * len(PHOTOS))]
    return [answer[0]["generated_text"] for answer in captioner(PHOTOS)]


@pytest.mark.parametrize(("given", "dtype", "attention"), [(*case, None) for case in DTYPES] + SOFT, ids=str)
def test_a_number_format_is_taken_in_every_door(
    given: dict[str, Any], dtype: torch.dtype, attention: str | None, tmp_path: Path
) -> None:
    save_tiny_checkpoint(tmp_path, attention=attention)
    model = NICForConditionalGeneration.from_pretrained(tmp_path, dtype=dtype)
    ids = model.generate(tiny_processor()(images=PHOTOS, return_tensors="pt").pixel_values)
    expected = tiny_processor().batch_decode(ids, skip_special_tokens=True)
    for door in DOORS:
        # A copy, since a pipeline adds to what it is given.
        options = {name: dict(value) if isinstance(value, dict) else value for name, value in given.items()}
        captioner = pipeline(model=str(tmp_path), **door, **options)
        assert {weight.dtype for weight in captioner.model.parameters()} == {dtype}, door
        assert captions(captioner, door is NATIVE) == expected, door
        assert repr(captioner.processor)  # JSON, which holds no number format


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_class_itself_takes_a_captioner_of_any_number_format(dtype: torch.dtype) -> None:
    model = tiny_model().to(dtype)
    captioner = ImageToTextPipeline(model=model, processor=tiny_processor(), dtype=dtype)
    ids = model.generate(tiny_processor()(images=PHOTOS, return_tensors="pt").pixel_values)
    assert captions(captioner, False) == tiny_processor().batch_decode(ids, skip_special_tokens=True)


@pytest.mark.parametrize("loader", [NICProcessor, AutoProcessor])
@pytest.mark.parametrize("name", [None, *KEYWORDS])
def test_a_processor_is_saved_the_same_whatever_it_was_loaded_with(
    checkpoint: Path, tmp_path: Path, loader: Any, name: str | None
) -> None:
    loader.from_pretrained(checkpoint).save_pretrained(tmp_path / "plain")
    given = KEYWORDS if name is None else {name: KEYWORDS[name]}
    processor = loader.from_pretrained(checkpoint, **given)
    assert repr(processor)
    processor.save_pretrained(tmp_path / "with keywords")
    assert contents(tmp_path / "with keywords") == contents(tmp_path / "plain")


@pytest.mark.parametrize("door", DOORS, ids=str)
def test_a_pipeline_is_saved_the_same_whatever_it_was_loaded_with(
    checkpoint: Path, tmp_path: Path, door: dict[str, Any]
) -> None:
    model_kwargs = {"attn_implementation": "eager", "low_cpu_mem_usage": True, "cache_dir": str(tmp_path / "cache")}
    options = {"dtype": torch.float32, "device_map": "cpu", "revision": "main", "token": False}
    pipeline(model=str(checkpoint), **door).save_pretrained(tmp_path / "plain")
    captioner = pipeline(model=str(checkpoint), model_kwargs=model_kwargs, **options, **door)
    captioner.save_pretrained(tmp_path / "with keywords")
    assert contents(tmp_path / "with keywords") == contents(tmp_path / "plain")


def test_an_image_processor_is_loaded_without_keywords_of_models(checkpoint: Path) -> None:
    plain = load_image_processor(checkpoint)
    assert load_image_processor(checkpoint, **KEYWORDS).to_dict() == plain.to_dict()
    changed = load_image_processor(checkpoint, dtype=torch.float16, do_normalize=False)
    assert changed.to_dict() == {**plain.to_dict(), "do_normalize": False}


def test_parts_of_a_processor_know_their_own_keywords(checkpoint: Path, tmp_path: Path) -> None:
    tiny_processor().save_pretrained(tmp_path / "alone")  # a further token would not fit the model
    given = {"do_normalize": False, "padding_side": "left", "model_max_length": 7, "sep_token": "<sep>"}
    processor = NICProcessor.from_pretrained(tmp_path / "alone", **given, **KEYWORDS)
    assert processor.image_processor.do_normalize is False
    assert processor.tokenizer.padding_side == "left"
    assert processor.tokenizer.model_max_length == 7
    assert processor.tokenizer.sep_token == "<sep>"


def test_parts_may_be_given(checkpoint: Path, tmp_path: Path) -> None:
    image_processor = load_image_processor(checkpoint, size={"height": 16, "width": 16})
    processor = NICProcessor.from_pretrained(checkpoint, image_processor=image_processor)
    assert processor.image_processor is image_processor
    assert processor(images=PHOTOS, return_tensors="pt").pixel_values.shape == (3, 3, 16, 16)
    tokenizer = tiny_processor().tokenizer
    assert NICProcessor.from_pretrained(checkpoint, tokenizer=tokenizer, dtype="float16").tokenizer is tokenizer
    processor.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "processor_config.json").read_text())
    assert saved["image_processor"]["size"] == {"height": 16, "width": 16}
    with pytest.raises(ValueError, match="the tokenizer has 28 words and the model 27"):
        tokenizer.add_tokens("zebra")
        NICProcessor.from_pretrained(checkpoint, tokenizer=tokenizer)


def test_a_part_that_is_given_to_a_pipeline_is_used(checkpoint: Path) -> None:
    image_processor = load_image_processor(checkpoint, size={"height": 16, "width": 16})
    processor = NICProcessor(image_processor, tiny_processor().tokenizer)
    expected = captions(ImageToTextPipeline(model=tiny_model(), processor=processor), False)
    assert expected != captions(ImageToTextPipeline(model=tiny_model(), processor=tiny_processor()), False)
    for door in DOORS[:4]:
        captioner = pipeline(model=str(checkpoint), image_processor=image_processor, **door)
        assert captions(captioner, False) == expected, door
        assert [answer[0]["generated_text"] for answer in captioner(PHOTOS, batch_size=2)] == expected
    parts = {"image_processor": image_processor, "tokenizer": tiny_processor().tokenizer}
    assert captions(ImageToTextPipeline(model=tiny_model(), **parts), False) == expected


@pytest.mark.parametrize("keywords", [{}, {"dtype": torch.float16, "device_map": "auto"}], ids=str)
def test_parts_load_by_their_auto_classes(checkpoint: Path, keywords: dict[str, Any]) -> None:
    tokenizer = AutoTokenizer.from_pretrained(checkpoint, **keywords)
    assert tokenizer("a dog").input_ids == tiny_processor().tokenizer("a dog").input_ids
    try:
        image_processor = AutoImageProcessor.from_pretrained(checkpoint, backend="pil", **keywords)
    except ImportError as error:
        pytest.skip(f"this version of Transformers needs torchvision for it: {error}")
    pixels = image_processor(PHOTOS, return_tensors="pt").pixel_values
    assert torch.equal(pixels, tiny_processor()(images=PHOTOS, return_tensors="pt").pixel_values)


def test_settings_of_training_are_not_saved_as_settings_of_decoding(checkpoint: Path, tmp_path: Path) -> None:
    """An ONNX export refuses what it does not know."""
    model = NICForConditionalGeneration.from_pretrained(checkpoint, dropout=0.25, freeze_backbone=False)
    assert model.config.dropout == 0.25 and not model.config.freeze_backbone
    model.save_pretrained(tmp_path)
    saved, before = (json.loads((folder / "generation_config.json").read_text()) for folder in (tmp_path, checkpoint))
    assert saved == before
