"""Names of models and data that lead nowhere: said at once, in one line, after at most one question to the Hub."""

import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from early_commands import nic
from hub_process import run
from hub_server import HubServer
from tiny import save_tiny_checkpoint, tiny_photos

import nic_hf
from nic_hf.lookup import look_up, look_up_captioner

# Every command that takes a model, with a name of one that is not there.
WRONG_MODELS = {
    "caption": ["caption", "photo.png", "--model", "runs/flickr8k"],
    "caption onnx": ["caption", "photo.png", "--model", "runs/flickr8k/onnx"],
    "app": ["app", "runs/flickr8k"],
    "evaluate": ["evaluate", "runs/flickr8k", "--data", "photos"],
    "export": ["export", "onnx", "runs/flickr8k", "out"],
    "doctor": ["doctor", "runs/flickr8k"],
    "card": ["card", "runs/flickr8k"],
    "push": ["push", "runs/flickr8k", "me/captioner"],
    "train from": ["train", "--data", "photos", "--from_checkpoint", "runs/flickr8k"],
    "train backbone": ["train", "--data", "photos", "--backbone", "runs/flickr8k"],
    "train vectors": ["train", "--data", "photos", "--backbone", "captioner", "--word_vectors", "runs/flickr8k"],
    "doctor backbone": ["doctor", "captioner", "--backbone", "runs/flickr8k"],
    "demo backbone": ["demo", "--data", "photos", "--backbone", "runs/flickr8k"],
    "train data": ["train", "--data", "runs/flickr8k", "--backbone", "captioner"],
    "evaluate data": ["evaluate", "captioner", "--data", "runs/flickr8k"],
    "caption data": ["caption", "--data", "runs/flickr8k", "--model", "captioner"],
    "evaluate transfer": ["evaluate", "captioner", "--data", "photos", "--transfer", "coco=runs/flickr8k"],
}


class DeadHub:
    """Takes connections and closes them, as a broken network does; counts them."""

    def __init__(self) -> None:
        self.connections = 0
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            self.connections += 1
            connection.close()

    def __enter__(self) -> "DeadHub":
        threading.Thread(target=self._serve, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lookup")
    save_tiny_checkpoint(folder / "captioner")
    (folder / "photos").mkdir()
    tiny_photos(1)[0].save(folder / "photo.png")
    return folder


@pytest.fixture
def dead_hub() -> Iterator[DeadHub]:
    with DeadHub() as hub:
        yield hub


@pytest.mark.parametrize("name", WRONG_MODELS)
def test_a_wrong_name_is_one_line_before_anything_heavy_is_imported(
    name: str, folder: Path, dead_hub: DeadHub
) -> None:
    before = sorted(folder.rglob("*"))
    done = nic(WRONG_MODELS[name], folder, dead_hub.url)
    assert done.code == 2 and done.stdout == "" and "\n" not in done.stderr, done.stderr
    assert "runs/flickr8k" in done.stderr and "no such f" in done.stderr and "; " in done.stderr  # what to do
    assert done.imported == ""
    assert dead_hub.connections <= 2  # huggingface_hub asks for something of its own
    assert sorted(folder.rglob("*")) == before


def test_a_name_that_the_hub_does_not_know_says_how_to_train_one(folder: Path) -> None:
    with HubServer() as hub:
        done = nic(WRONG_MODELS["caption"], folder, hub.url)
    assert done.code == 2 and sum("runs/flickr8k" in path for _, path in hub.requests) == 1, hub.requests
    assert "runs/flickr8k: no such folder, and no such repository on the Hub" in done.stderr
    assert "nic train --output_dir runs/flickr8k" in done.stderr


def test_a_folder_without_a_captioner_names_the_one_in_it(folder: Path) -> None:
    save_tiny_checkpoint(folder / "run" / "1-frozen")
    with pytest.raises(FileNotFoundError, match=r"run: holds no captioner, .*there is one in .*run.1-frozen$"):
        look_up_captioner(folder / "run")
    with pytest.raises(NotADirectoryError, match=r"photo.png: a file; give the folder"):
        look_up_captioner(folder / "photo.png")
    look_up_captioner(folder / "captioner")
    assert look_up(str(folder / "photo.png"), token="t") == {"token": "t"}


@pytest.mark.parametrize("name", ["my captioner", "runs/a/b", "./runs", "~/runs", "..", "größe", "/nowhere"])
def test_what_can_only_be_a_path_is_not_asked_for(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder / "captioner")
    if Path(name).exists():
        return
    with pytest.raises(FileNotFoundError, match="no such folder; give a folder or a Hub id"):
        look_up(name)


# As a user of the library: each kind of name is asked for once, and what is in the cache loads without a network.
LOADING = """
import time
from pathlib import Path
from nic_hf import NICForConditionalGeneration, NICProcessor
from nic_hf.data import load_captions, stream_captions
from nic_hf.export import NICOnnxCaptioner
from nic_hf.model.processor import load_image_processor
answers = {}
for load in (
    NICForConditionalGeneration.from_pretrained,
    NICForConditionalGeneration.from_backbone_pretrained,
    NICProcessor.from_pretrained,
    NICOnnxCaptioner.from_pretrained,
    load_image_processor,
    load_captions,
    stream_captions,
):
    try:
        load("someone/nothing")
    except Exception as error:
        answers[load.__qualname__] = [type(error).__name__, str(error)]
start = time.monotonic()
try:
    NICProcessor.from_pretrained("someone/captioner")
    NICForConditionalGeneration.from_pretrained("someone/captioner")
    answers["loaded"] = time.monotonic() - start
except OSError as error:
    answers["loaded"] = str(error)
"""


def test_the_library_asks_once_and_loads_from_the_cache(folder: Path, tmp_path: Path) -> None:
    files = {path.name: path.read_bytes() for path in (folder / "captioner").iterdir()}
    source = {"PYTHONPATH": str(Path(nic_hf.__file__).parents[1])}
    with HubServer() as hub:
        hub.add("someone/captioner", files)
        answers = run(LOADING, tmp_path, tmp_path / "home", hub, **source)
        asked = [path for _, path in hub.requests if "someone/nothing" in path]
    assert isinstance(answers.pop("loaded"), float)
    assert len(answers) == 7 and len(asked) == 7
    for kind, message in answers.values():
        assert kind in ("FileNotFoundError", "CaptionDataError") and "no such repository on the Hub" in message
    with DeadHub() as dead:
        hub.url = dead.url
        answers = run(LOADING, tmp_path, tmp_path / "home", hub, **source)
    seconds = answers.pop("loaded")
    assert isinstance(seconds, float) and seconds < 20, seconds  # six tries for one file would take 23 seconds
    for kind, message in answers.values():
        assert kind in ("ConnectionError", "CaptionDataError") and "the Hub cannot be reached" in message
    assert dead.connections <= 7 + 4 + 1
