"""ImageToTextPipeline: the contract of the pipeline that Transformers 4 had."""

import base64
import threading
import time
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tiny import save_tiny_checkpoint, tiny_model, tiny_photos, tiny_processor
from transformers import pipeline
from transformers.pipelines.pt_utils import KeyDataset

from nic_hf import ImageToTextPipeline

PHOTOS = tiny_photos(4)


def caption_by_hand(photo: Image.Image, size: dict[str, int] | None = None, **settings: Any) -> list[str]:
    processor, model = tiny_processor(), tiny_model()
    options = {} if size is None else {"size": size}
    with torch.no_grad():
        ids = model.generate(**processor(images=photo, return_tensors="pt", **options), **settings)
    return processor.batch_decode(ids, skip_special_tokens=True)


@pytest.fixture(scope="module")
def captions() -> list[str]:
    captions = [caption_by_hand(photo)[0] for photo in PHOTOS]
    assert len(set(captions)) > 2
    return captions


@pytest.fixture(scope="module")
def captioner() -> ImageToTextPipeline:
    return ImageToTextPipeline(model=tiny_model(), processor=tiny_processor())


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    save_tiny_checkpoint(folder)
    return folder


def answers(captions: list[str]) -> list[list[dict[str, str]]]:
    return [[{"generated_text": caption}] for caption in captions]


def test_one_photo_gives_a_list_of_one_caption(captioner: Any, captions: list[str], tmp_path: Path) -> None:
    PHOTOS[0].save(tmp_path / "photo.png")
    content = (tmp_path / "photo.png").read_bytes()
    for form in (
        PHOTOS[0],
        str(tmp_path / "photo.png"),
        tmp_path / "photo.png",
        content,
        base64.b64encode(content).decode(),
    ):
        assert captioner(form) == answers(captions)[0]
    assert captioner(images=PHOTOS[0]) == answers(captions)[0]


@pytest.mark.parametrize("batch_size", [1, 2, 3, 8])
def test_a_list_of_photos_gives_a_list_of_lists(captioner: Any, captions: list[str], batch_size: int) -> None:
    assert captioner(PHOTOS, batch_size=batch_size) == answers(captions)
    assert captioner(tuple(PHOTOS), batch_size=batch_size) == answers(captions)
    assert captioner(PHOTOS[:1], batch_size=batch_size) == answers(captions)[:1]
    assert captioner([]) == []


@pytest.mark.parametrize("batch_size", [1, 3])
def test_a_generator_is_answered_as_it_goes(captioner: Any, captions: list[str], batch_size: int) -> None:
    read = []

    def photos() -> Iterator[Image.Image]:
        for number, photo in enumerate(PHOTOS):
            read.append(number)
            yield photo

    found = captioner(photos(), batch_size=batch_size)
    first = next(iter(found))
    assert first == answers(captions)[0]
    assert len(read) < len(PHOTOS), "all photos were read before the first answer"
    assert list(captioner(photos(), batch_size=batch_size)) == answers(captions)


def test_a_data_set_is_captioned(captioner: Any, captions: list[str]) -> None:
    class Photos(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return len(PHOTOS)

        def __getitem__(self, index: int) -> Image.Image:
            return PHOTOS[index]

    assert list(captioner(Photos(), batch_size=2)) == answers(captions)


@pytest.fixture
def web(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Address of a server on this machine: photos, a page, and `/slow`, which never answers."""
    monkeypatch.setenv("NIC_HF_ALLOW_PRIVATE_URLS", "1")
    stop = threading.Event()
    for number, photo in enumerate(PHOTOS):
        photo.save(tmp_path / f"{number}.png")
    (tmp_path / "page.html").write_text("<html><body>No photo.</body></html>")

    class Handler(SimpleHTTPRequestHandler):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments, directory=str(tmp_path))

        def do_GET(self) -> None:
            if self.path == "/slow":
                stop.wait(20)
            else:
                super().do_GET()

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    stop.set()
    server.shutdown()
    server.server_close()


def test_photos_are_downloaded(captioner: Any, captions: list[str], web: str) -> None:
    assert captioner(f"{web}/0.png") == answers(captions)[0]
    assert captioner([f"{web}/{number}.png" for number in range(4)], batch_size=2, timeout=10) == answers(captions)


def test_a_download_that_fails_is_named_in_time(captioner: Any, web: str) -> None:
    start = time.monotonic()
    with pytest.raises(OSError, match=f"{web}/slow: cannot read it as an image"):
        captioner(f"{web}/slow", timeout=0.5)
    assert time.monotonic() - start < 10
    for name in ("missing.png", "page.html"):
        with pytest.raises(OSError, match=f"{web}/{name}: cannot read it as an image"):
            captioner(f"{web}/{name}", timeout=10)


@pytest.mark.parametrize("batch_size", [1, 3])
def test_a_column_of_photos_is_captioned_as_it_is_read(captioner: Any, captions: list[str], batch_size: int) -> None:
    datasets = pytest.importorskip("datasets")
    table = datasets.Dataset.from_dict({"id": list("abcd"), "image": PHOTOS})
    table = table.cast_column("image", datasets.Image())
    for column in (KeyDataset(table, "image"), table["image"]):
        found = captioner(column, batch_size=batch_size)
        assert not isinstance(found, list)
        assert list(found) == answers(captions)


@pytest.mark.parametrize("batch_size", [1, 3])
def test_several_captions_a_photo(captioner: Any, batch_size: int) -> None:
    found = captioner(PHOTOS, num_beams=3, num_return_sequences=3, batch_size=batch_size)
    for photo, answer in zip(PHOTOS, found, strict=True):
        expected = caption_by_hand(photo, num_beams=3, num_return_sequences=3)
        assert [caption["generated_text"] for caption in answer] == expected


def test_generation_is_steered_in_three_ways(captioner: Any) -> None:
    expected = caption_by_hand(PHOTOS[1], num_beams=1, max_new_tokens=3)[0]
    assert len(expected.split()) == 3
    answer = [{"generated_text": expected}]
    assert captioner(PHOTOS[1], num_beams=1, max_new_tokens=3) == answer
    assert captioner(PHOTOS[1], generate_kwargs={"num_beams": 1, "max_new_tokens": 3}) == answer
    assert captioner(PHOTOS[1], max_new_tokens=3, generate_kwargs={"num_beams": 1}) == answer
    built = ImageToTextPipeline(model=tiny_model(), processor=tiny_processor(), num_beams=1, max_new_tokens=3)
    assert built(PHOTOS[1]) == answer
    assert len(built(PHOTOS[1], max_new_tokens=2)[0]["generated_text"].split()) == 2


def test_scores_may_be_asked_for(captioner: Any, captions: list[str]) -> None:
    assert captioner(PHOTOS[0], return_dict_in_generate=True, output_scores=True) == answers(captions)[0]


@pytest.mark.parametrize("batch_size", [1, 2])
def test_a_caption_goes_on_from_a_prompt(captioner: Any, batch_size: int) -> None:
    found = captioner(PHOTOS, prompt="two children", batch_size=batch_size)
    assert all(answer[0]["generated_text"].startswith("two children ") for answer in found)
    assert len({answer[0]["generated_text"] for answer in found}) > 1


def test_a_photo_that_cannot_be_read_is_named(captioner: Any, tmp_path: Path) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"not an image")
    with pytest.raises(OSError, match=r"broken\.jpg: cannot read it as an image"):
        captioner(str(tmp_path / "broken.jpg"))
    with pytest.raises(OSError, match=r"missing\.jpg: cannot read it as an image"):
        captioner([PHOTOS[0], str(tmp_path / "missing.jpg")], timeout=3)
    with pytest.raises(ValueError, match="no photo: give a path"):
        captioner()


def test_every_door_leads_to_the_same_pipeline(checkpoint: Path, captions: list[str], tmp_path: Path) -> None:
    doors: list[dict[str, Any]] = [
        {"task": "image-to-text", "pipeline_class": ImageToTextPipeline},
        {"task": "image-captioning"},
        {"task": "image-to-text", "trust_remote_code": True},
        {"trust_remote_code": True},
    ]
    for door in doors:
        captioner = pipeline(model=str(checkpoint), **door)
        assert type(captioner).__name__ == "ImageToTextPipeline", door
        assert captioner(PHOTOS) == answers(captions), door


def test_a_loaded_model_may_be_given(captions: list[str]) -> None:
    captioner = pipeline("image-captioning", model=tiny_model(), processor=tiny_processor())
    assert captioner(PHOTOS[0]) == answers(captions)[0]


def test_a_saved_pipeline_loads(checkpoint: Path, captions: list[str], tmp_path: Path) -> None:
    pipeline("image-captioning", model=str(checkpoint)).save_pretrained(tmp_path / "copy")
    again = pipeline("image-captioning", model=str(tmp_path / "copy"))
    assert again(PHOTOS[0]) == answers(captions)[0]
    assert {file.name for file in (tmp_path / "copy").iterdir()} == {file.name for file in checkpoint.iterdir()}


@pytest.fixture(scope="module")
def native(checkpoint: Path) -> Any:
    return pipeline("image-text-to-text", model=str(checkpoint))


def test_the_native_pipeline_takes_a_photo_with_empty_text(native: Any, captions: list[str]) -> None:
    assert native(images=PHOTOS[0], text="")[0]["generated_text"] == captions[0]
    assert native(images=PHOTOS[0], text="", return_full_text=False)[0]["generated_text"] == captions[0]
    found = native(images=PHOTOS, text=[""] * len(PHOTOS))
    assert [answer["generated_text"] for answer in found] == captions
    expected = caption_by_hand(PHOTOS[1], num_beams=1, max_new_tokens=3)[0]
    assert native(images=PHOTOS[1], text="", generate_kwargs={"num_beams": 1}, max_new_tokens=3) == [
        {"input_text": "", "generated_text": expected}
    ]


def test_the_native_pipeline_takes_a_photo_alone_in_a_chat(native: Any, captions: list[str], tmp_path: Path) -> None:
    PHOTOS[0].save(tmp_path / "photo.png")
    text = base64.b64encode((tmp_path / "photo.png").read_bytes()).decode()
    photo = str(tmp_path / "photo.png")
    for part in ({"image": PHOTOS[0]}, {"image": photo}, {"url": photo}, {"path": photo}, {"base64": text}):
        answer = native([{"role": "user", "content": [{"type": "image", **part}]}])
        assert answer[0]["generated_text"][-1] == {"role": "assistant", "content": captions[0]}
    chats = [[{"role": "user", "content": [{"type": "image", "image": photo}]}] for photo in PHOTOS]
    found = native(chats, return_full_text=False, batch_size=1)
    assert [answer[0]["generated_text"] for answer in found] == captions


def test_in_a_chat_the_caption_goes_on_from_the_assistants_words(native: Any, captioner: Any) -> None:
    chat = [
        {"role": "user", "content": [{"type": "image", "image": PHOTOS[0]}, {"type": "text", "text": ""}]},
        {"role": "assistant", "content": [{"type": "text", "text": "two children"}]},
    ]
    expected = captioner(PHOTOS[0], prompt="two children")[0]["generated_text"]
    assert native(chat)[0]["generated_text"][-1]["content"][0]["text"] == expected


def test_a_chat_that_is_no_photo_alone_is_refused(native: Any) -> None:
    photo = {"type": "image", "image": PHOTOS[0]}
    with pytest.raises(ValueError, match=r"takes no instructions \('Describe this'\): give the photo alone"):
        native([{"role": "user", "content": [photo, {"type": "text", "text": "Describe this"}]}])
    with pytest.raises(ValueError, match="takes no instructions"):
        native([{"role": "system", "content": "Be brief."}, {"role": "user", "content": [photo]}])
    with pytest.raises(ValueError, match="describes one photo; the chat shows 2"):
        native([{"role": "user", "content": [photo, photo]}])
    with pytest.raises(ValueError, match="describes one photo; the chat shows 0"):
        native([{"role": "user", "content": []}])


def test_in_a_chat_keywords_reach_the_processor(native: Any) -> None:
    chat = [{"role": "user", "content": [{"type": "image", "image": PHOTOS[0]}]}]
    size = {"height": 16, "width": 24}
    for options in ({"size": size}, {"processor_kwargs": {"size": size}}, {"images_kwargs": {"size": size}}):
        found = native.processor.apply_chat_template(
            chat, tokenize=True, return_dict=True, add_generation_prompt=True, return_tensors="pt", **options
        )
        assert found.pixel_values.shape == (1, 3, 16, 24)
    smaller = caption_by_hand(PHOTOS[0], size={"height": 16, "width": 16})[0]
    assert smaller != caption_by_hand(PHOTOS[0])[0]
    assert native(chat, size={"height": 16, "width": 16})[0]["generated_text"][-1]["content"] == smaller
