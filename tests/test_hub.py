"""Captioners and data sets on a Hub: pushed and loaded by id through huggingface_hub, in processes of their own."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hub_process import run
from hub_server import TOKEN, HubServer, check_card
from huggingface_hub import ModelCard
from tiny import CAPTIONS, save_tiny_checkpoint, tiny_model, tiny_photos, tiny_processor

import nic_hf

SOURCE = str(Path(nic_hf.__file__).parents[1])
CHANGED_CODE = b"raise RuntimeError('the changed code ran')\n"

# What a user with the package and a token does. Each answer is the last line's JSON.
AUTHOR = """
import json, urllib.request
from pathlib import Path

import datasets
from tiny import CAPTIONS, save_tiny_checkpoint, tiny_model, tiny_photos, tiny_processor

from typer.testing import CliRunner

from nic_hf import ImageToTextPipeline, NICForConditionalGeneration, NICProcessor
from nic_hf.cli import app
from nic_hf.data import load_captions
from nic_hf.training import push_captioner


def failure(act):
    try:
        act()
    except Exception as error:
        return type(error).__name__, str(error)


def cut_off(path):
    urllib.request.urlopen(f"{URL}/tests/cut-off?path={path}")


def caption(repo, **options):
    model = NICForConditionalGeneration.from_pretrained(repo, **options)
    processor = NICProcessor.from_pretrained(repo, **options)
    captioner = ImageToTextPipeline(model=model, processor=processor)
    return [answer[0]["generated_text"] for answer in captioner(tiny_photos(3))]


answers = {}
save_tiny_checkpoint(Path("captioner"))
(Path("captioner") / "samples").mkdir()
tiny_photos(1)[0].save("captioner/samples/step-00000001.png")
Path("captioner/training_args.bin").write_bytes(b"arguments")
(Path("captioner") / "onnx").mkdir()
Path("captioner/onnx/decoder.onnx").write_bytes(b"onnx")

push_captioner("captioner", "someone/captioner", message="first")
save_tiny_checkpoint(Path("other"), seed=50)
push_captioner("other", "someone/captioner", revision="next", message="other weights")
push_captioner("captioner", "someone/secret", private=True, onnx=True)
done = CliRunner().invoke(app, ["push", "captioner", "someone/by-command", "--private", "--message", "by command"])
answers["by command"] = done.output
answers["no onnx"] = failure(lambda: push_captioner("other", "someone/captioner", onnx=True))
answers["no captioner"] = failure(lambda: push_captioner("captioner/samples", "someone/captioner"))
answers["bad token"] = failure(lambda: push_captioner("captioner", "someone/captioner", token="hf_wrong"))

# Transformers' own way, object by object.
tiny_model().push_to_hub("someone/by-parts")
tiny_processor().push_to_hub("someone/by-parts")
ImageToTextPipeline(model=tiny_model(), processor=tiny_processor()).push_to_hub("someone/pipeline")
tiny_model().save_pretrained("saved-and-pushed", push_to_hub=True, repo_id="someone/saved-and-pushed")

push_captioner("captioner", "someone/interrupted", message="before")
cut_off("someone/interrupted/commit")
answers["interrupted"] = failure(lambda: push_captioner("other", "someone/interrupted", message="cut off"))
answers["after the interruption"] = caption("someone/interrupted")
push_captioner("other", "someone/interrupted", message="again")
cut_off("large-files/")
save_tiny_checkpoint(Path("third"), seed=51)
push_captioner("third", "someone/retried")  # huggingface_hub sends a large file again by itself

for repo in ("captioner", "secret", "by-parts", "pipeline", "retried"):
    answers[repo] = caption(f"someone/{repo}")
answers["next"] = caption("someone/captioner", revision="next")
answers["secret by token"] = caption("someone/secret", token=TOKEN, cache_dir="fresh")
answers["secret without token"] = failure(lambda: caption("someone/secret", token=False, cache_dir="fresher"))
answers["no such revision"] = failure(lambda: caption("someone/captioner", revision="v9"))
answers["no such repository"] = failure(lambda: caption("someone/nothing"))

features = {"image": datasets.Image(), "image_id": datasets.Value("string")}
features |= {f"caption_{k}": datasets.Value("string") for k in range(2)}
rows = {"image": tiny_photos(4), "image_id": list("abcd"), "caption_0": CAPTIONS, "caption_1": CAPTIONS[::-1]}
photos = datasets.Dataset.from_dict(rows, features=datasets.Features(features))
datasets.DatasetDict(train=photos.select([0, 1, 2]), test=photos.select([3])).push_to_hub("someone/photos")
photos.push_to_hub("someone/secret-photos", private=True)
photos = load_captions("someone/photos", "train", dev_share=0)
answers["photos"] = [[row["image_id"], row["captions"]] for row in photos]
answers["secret photos"] = len(load_captions("someone/secret-photos"))
answers["no such photos"] = failure(lambda: load_captions("someone/no-photos"))
"""

# What a user without the package, without a token and in a fresh cache does, after the code on main was changed.
STRANGER = """
import sys
sys.modules["nic_hf"] = None  # any import of it fails
from transformers import pipeline
from tiny_photos import tiny_photos


def failure(act):
    try:
        act()
    except Exception as error:
        return type(error).__name__, str(error)


def caption(repo, *task, **options):
    captioner = pipeline(*task, model=repo, trust_remote_code=True, **options)
    return [answer[0]["generated_text"] for answer in captioner(tiny_photos())]


answers = {}
answers["pinned"] = caption("someone/captioner", "image-to-text", revision=FIRST)
answers["task inferred"] = caption("someone/by-parts")
answers["next"] = caption("someone/captioner", "image-to-text", revision="next")
answers["changed"] = failure(lambda: caption("someone/captioner", "image-to-text"))
answers["secret"] = failure(lambda: caption("someone/secret", "image-to-text"))
answers["secret by token"] = caption("someone/secret", "image-to-text", token=TOKEN)
"""

# What is found without a network: by the stranger, and then by one who has the package.
OFFLINE = """
answers = {"pinned": caption("someone/captioner", "image-to-text", revision=FIRST)}
answers["next"] = caption("someone/captioner", "image-to-text", revision="next")
answers["not in the cache"] = failure(lambda: caption("someone/pipeline", "image-to-text"))

del sys.modules["nic_hf"]
from nic_hf import ImageToTextPipeline, NICForConditionalGeneration, NICProcessor
from nic_hf.data import load_captions

model = NICForConditionalGeneration.from_pretrained("someone/captioner", revision=FIRST)
processor = NICProcessor.from_pretrained("someone/captioner", revision=FIRST)
captioner = ImageToTextPipeline(model=model, processor=processor)
answers["by the package"] = [answer[0]["generated_text"] for answer in captioner(tiny_photos())]
photos = load_captions("someone/photos", "train", dev_share=0)
answers["photos"] = [[row["image_id"], row["captions"]] for row in photos]
"""


@pytest.fixture(scope="module")
def hub() -> Iterator[HubServer]:
    with HubServer() as server:
        yield server


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def author(hub: HubServer, home: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("author")
    path = os.pathsep.join([SOURCE, str(Path(__file__).parent)])
    return run(AUTHOR, folder, home, hub, HF_TOKEN=TOKEN, PYTHONPATH=path)


@pytest.fixture(scope="module")
def first(hub: HubServer, author: dict[str, Any]) -> str:
    """The commit of the captioner before its code was changed on the Hub; this changes it."""
    repository = hub.repository("someone/captioner")
    commit = repository.head
    assert commit.title == "first"
    files = commit.files
    changed = {name: CHANGED_CODE + text if name.endswith(".py") else text for name, text in files.items()}
    repository.commit("main", "changed code", changed)
    return commit.oid


@pytest.fixture(scope="module")
def stranger_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stranger")
    module = ["from PIL import Image", "def tiny_photos():", "    return [Image.open(f'{n}.png') for n in range(3)]"]
    (folder / "tiny_photos.py").write_text("\n".join(module))
    for number, photo in enumerate(tiny_photos(3)):
        photo.save(folder / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def stranger(hub: HubServer, first: str, stranger_home: Path) -> dict[str, Any]:
    return run(f"FIRST = {first!r}\n{STRANGER}", stranger_home, stranger_home / "home", hub, PYTHONPATH="")


def captions(seed: int = 49) -> list[str]:
    """What a tiny captioner says without any Hub."""
    with torch.no_grad():
        ids = tiny_model(seed).generate(**tiny_processor()(images=tiny_photos(3), return_tensors="pt"))
    return tiny_processor().batch_decode(ids, skip_special_tokens=True)


def test_a_push_is_one_commit_of_all_that_is_needed_and_no_photos(
    hub: HubServer, author: dict[str, Any], tmp_path: Path
) -> None:
    commits = hub.repository("someone/captioner").refs["main"]
    assert [commit.title for commit in commits[:2]] == ["initial commit", "first"]
    save_tiny_checkpoint(tmp_path)
    expected = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    found = dict(commits[1].files)
    card = found.pop("README.md")
    assert found == expected
    assert {"model.safetensors", "tokenizer.json", "processor_config.json", "generation_config.json"} <= found.keys()
    assert "modeling_nic.py" in found
    assert ModelCard(card.decode()).data.library_name == "transformers"


def test_nic_push_says_where_it_is(hub: HubServer, author: dict[str, Any]) -> None:
    repository = hub.repository("someone/by-command")
    assert repository.private and repository.head.title == "by command"
    assert author["by command"].strip() == f"{hub.url}/someone/by-command/commit/{repository.head.oid}"


def test_onnx_files_are_pushed_on_request(hub: HubServer, author: dict[str, Any]) -> None:
    assert hub.repository("someone/secret").head.files["onnx/decoder.onnx"] == b"onnx"
    assert not [name for name in hub.repository("someone/captioner").refs["main"][1].files if "onnx" in name]
    assert author["no onnx"] == ["ValueError", "other: no ONNX files; run nic export first"]


def test_what_is_pushed_says_the_same_when_it_is_loaded_by_id(author: dict[str, Any]) -> None:
    assert captions() != captions(50)
    for repository in ("captioner", "secret", "by-parts", "pipeline"):
        assert author[repository] == captions(), repository


def test_transformers_own_way_works_too(hub: HubServer, author: dict[str, Any]) -> None:
    titles = {name: len(hub.repository(f"someone/{name}").refs["main"]) - 1 for name in ("pipeline", "by-parts")}
    assert titles == {"pipeline": 1, "by-parts": 2}
    files = hub.repository("someone/pipeline").head.files
    assert {"model.safetensors", "tokenizer.json", "processor_config.json", "pipeline_nic.py"} <= files.keys()
    assert "modeling_nic.py" in hub.repository("someone/saved-and-pushed").head.files


def test_a_revision_has_its_own_weights(author: dict[str, Any], stranger: dict[str, Any]) -> None:
    assert author["next"] == stranger["next"] == captions(50)
    kind, message = author["no such revision"]
    assert kind == "OSError" and "v9" in message and "someone/captioner" in message


def test_a_private_repository_needs_a_token(hub: HubServer, author: dict[str, Any], stranger: dict[str, Any]) -> None:
    assert hub.repository("someone/secret").private
    assert not hub.repository("someone/captioner").private
    assert author["secret by token"] == stranger["secret by token"] == captions()
    for kind, message in (author["secret without token"], stranger["secret"]):
        assert kind in ("OSError", "FileNotFoundError") and "someone/secret" in message and "token" in message
    kind, message = author["bad token"]
    assert kind == "PermissionError"
    assert message.startswith("cannot push captioner to someone/captioner: the token is missing, invalid")


def test_a_push_that_breaks_off_leaves_the_repository_as_it_was(hub: HubServer, author: dict[str, Any]) -> None:
    kind, message = author["interrupted"]
    assert kind == "ConnectionError"
    assert message.startswith("cannot push other to someone/interrupted: the connection was lost")
    assert "The repository is unchanged; push again" in message and "\n" not in message
    assert author["after the interruption"] == captions()
    titles = [commit.title for commit in hub.repository("someone/interrupted").refs["main"]]
    assert titles == ["initial commit", "before", "again"]


def test_a_large_file_that_breaks_off_is_sent_again(author: dict[str, Any]) -> None:
    assert author["retried"] == captions(51)


def test_a_wrong_folder_is_refused_before_anything_is_sent(author: dict[str, Any]) -> None:
    kind, message = author["no captioner"]
    assert kind == "ValueError"
    assert message == f"{Path('captioner/samples')}: not a captioner: there is no config.json, tokenizer.json"
    kind, message = author["no such repository"]
    assert kind == "FileNotFoundError"
    assert message.startswith("someone/nothing: no such folder, and no such repository on the Hub")


def test_the_pipeline_works_by_id_where_the_package_is_not_installed(stranger: dict[str, Any]) -> None:
    assert stranger["pinned"] == stranger["task inferred"] == captions()


def test_code_changed_on_the_hub_does_not_run_where_the_revision_is_pinned(stranger: dict[str, Any]) -> None:
    assert stranger["pinned"] == captions()
    assert "the changed code ran" in stranger["changed"][1]


def test_what_was_loaded_once_loads_without_a_network(
    hub: HubServer, author: dict[str, Any], stranger: dict[str, Any], first: str, home: Path, stranger_home: Path
) -> None:
    before = len(hub.requests)
    script = f"FIRST = {first!r}\n{STRANGER[: STRANGER.index('answers = {}')]}{OFFLINE}"
    environment = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(home / "datasets"), "PYTHONPATH": SOURCE}
    answers = run(script, stranger_home, stranger_home / "home", hub, **environment)
    assert answers["pinned"] == answers["by the package"] == captions()
    assert answers["next"] == captions(50)
    assert answers["photos"] == author["photos"]
    kind, message = answers["not in the cache"]
    assert kind == "OSError" and "couldn't find them in the cached files" in message
    assert len(hub.requests) == before, hub.requests[before:]


def test_a_data_set_is_loaded_by_id(author: dict[str, Any]) -> None:
    assert author["photos"] == [[name, [CAPTIONS[k], CAPTIONS[3 - k]]] for k, name in enumerate("abc")]
    assert author["secret photos"] == 4
    kind, message = author["no such photos"]
    assert kind == "CaptionDataError"
    assert message.startswith("someone/no-photos: no such file or folder, and no such repository on the Hub")


def test_the_card_on_the_hub_is_one_the_hub_takes(hub: HubServer, author: dict[str, Any]) -> None:
    for name in ("someone/captioner", "someone/by-parts", "someone/pipeline"):
        card = ModelCard(hub.repository(name).refs["main"][-1].files["README.md"].decode())
        assert check_card(card.data.to_dict()) == [], name
    card = ModelCard(hub.repository("someone/captioner").refs["main"][1].files["README.md"].decode())
    assert 'model="someone/captioner"' in card.text
    assert card.data.pipeline_tag == "image-to-text"
