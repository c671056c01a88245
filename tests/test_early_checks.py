"""Arguments are checked before torch and Transformers are imported, and a run that never began leaves nothing."""

import dataclasses
import socket
from pathlib import Path

import pytest
from early_commands import nic
from tiny import save_tiny_checkpoint, tiny_photos
from transformers import TrainingArguments

from nic_hf.training import SelfCriticalTrainingArguments
from nic_hf.training.recipe_files import check_values, missing_settings, recipe_names, setting_types
from nic_hf.training.recipe_settings import DataSettings, ModelSettings
from nic_hf.training.recipes import load_recipe, resolve
from nic_hf.writing import check_writable

TRAIN = ["train", "--data", "photos", "--backbone", "captioner"]
MISTAKES = {
    "recipe": (
        ["train", "--recipe", "frozn"],
        "frozn: no such recipe; did you mean frozen? use adapt, compact, distill, finetune, frozen",
    ),
    "setting": ([*TRAIN, "--learning_rat", "1"], "no setting 'learning_rat'; did you mean 'learning_rate'?"),
    "number": ([*TRAIN, "--num_train_epochs", "abc"], "num_train_epochs must be a number, got 'abc'"),
    "start": (
        [*TRAIN, "--recipe", "adapt"],
        "the teacher 'start' is the captioner that training starts from: give --from_checkpoint",
    ),
    "whole number": ([*TRAIN, "--frozen.hidden_size=1.5"], "hidden_size must be a whole number, got '1.5'"),
    "number of Transformers": ([*TRAIN, "--max_steps", "many"], "max_steps must be a whole number, got 'many'"),
    "switch": ([*TRAIN, "--use_cpu", "maybe"], "use_cpu must be true or false, got 'maybe'"),
    "choice": ([*TRAIN, "--on_error", "ignore"], "on_error must be raise or skip, got 'ignore'"),
    "recipe of a file": (["train", "--recipe", "mine.yaml"], "learning_rate must be a number, got 'fast'"),
    "stage": ([*TRAIN, "--first.dropout", "1"], "the recipe has no stage 'first'; its stages are frozen"),
    "no backbone": (["train", "--data", "photos"], "give --backbone, a pretrained vision model, such as google/"),
    "nothing": (["train"], "--data, captioned photos (a folder, a file or a Hub id)"),
    "no data": (["train", "--data", "./nowhere", "--backbone", "captioner"], "./nowhere: no such file or folder"),
    "vectors": ([*TRAIN, "--word_vectors", "glove.txt"], "glove.txt: no such file or folder of word vectors"),
    "output is a file": ([*TRAIN, "--output_dir", "photo.png/run"], "cannot write to photo.png/run: "),
    "has a run": ([*TRAIN, "--output_dir", "run"], "run already contains a run; resume it with --resume"),
    "app port": (["app", "captioner", "--port", "{taken}"], "cannot listen on port {taken} of 127.0.0.1: "),
    "app host": (["app", "captioner", "--host", "256.1.1.1"], "cannot listen on 256.1.1.1: "),
    "caption output": (["caption", "photo.png", "--model", "captioner", "--output", "photo.png/a.csv"], "is a file"),
    "caption list": (["caption", "--model", "captioner", "--list", "a.txt"], "a.txt: no such file"),
    "sheet": (
        ["caption", "photo.png", "--model", "captioner", "--contact-sheet", "photo.png/a.png"],
        "cannot be written",
    ),
    "export": (["export", "onnx", "captioner", "photo.png/out"], "cannot write to photo.png/out: "),
    "evaluation": (["evaluate", "captioner", "--data", "photos", "--output", "photo.png"], "photo.png is a file"),
    "captions": (["evaluate", "a.jsonl", "--references", "b.json"], "a.jsonl: no such file; --references"),
    "beams": (["evaluate", "captioner", "--data", "photos", "--beams", "x"], "--beams is 'x'"),
    "run": (
        ["evaluate", "captioner", "--data", "photos", "--run", "nowhere"],
        "nowhere: no such folder of a training",
    ),
    "card photo": (["card", "captioner", "--photo", "a.png"], "a.png: no such file"),
    "card output": (["card", "captioner", "--output", "photo.png/a.md"], "is a file"),
    "demo": (["demo", "--data", "photos"], "--data and --backbone: give both, or neither"),
    "demo output": (["demo", "--output", "photo.png"], "photo.png is a file"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("early")
    save_tiny_checkpoint(folder / "captioner")
    (folder / "photos").mkdir()
    (folder / "run" / "1-frozen" / "checkpoint-1").mkdir(parents=True)
    tiny_photos(1)[0].save(folder / "photo.png")
    (folder / "mine.yaml").write_text("data: photos\nbackbone: captioner\nstages: {only: {learning_rate: fast}}")
    return folder


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_line_before_anything_heavy_is_imported(name: str, folder: Path) -> None:
    arguments, message = MISTAKES[name]
    before = sorted(folder.rglob("*"))
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = str(server.getsockname()[1])
        done = nic([argument.format(taken=port) for argument in arguments], folder)
    assert done.code == 2 and done.stdout == ""
    assert message.format(taken=port) in done.stderr and "\n" not in done.stderr
    assert done.imported == ""
    assert sorted(folder.rglob("*")) == before


def test_names_of_settings_are_those_of_the_classes() -> None:
    kinds = (ModelSettings, DataSettings, SelfCriticalTrainingArguments, TrainingArguments)
    names = {field.name for kind in kinds for field in dataclasses.fields(kind) if field.init}
    found = setting_types()
    assert found is not None and names <= found.keys()
    assert len(found.keys() - names - {"objective"}) < 5  # such as constants of the class
    assert {"int", "float", "bool", "int | None"} <= set(found.values())
    assert missing_settings({"data": "photos"}) == ["backbone"]


@pytest.mark.parametrize("recipe", recipe_names())
def test_values_that_training_takes_are_not_refused(recipe: str) -> None:
    types = setting_types()
    assert types is not None
    for stage in resolve(load_recipe(recipe), {"data": "photos", "backbone": "captioner", "use_cpu": "true"}):
        of_arguments = {name: value for name, value in stage.args.to_dict().items() if name in types}
        assert {"seed", "bf16", "num_train_epochs"} <= of_arguments.keys()
        for settings in (stage.settings(), of_arguments):
            check_values(settings, types)
            check_values({name: str(value) for name, value in settings.items() if value is not None}, types)


def test_a_folder_that_can_be_written_is_not_made(tmp_path: Path) -> None:
    check_writable(tmp_path / "a" / "b")
    check_writable(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_photos_that_cannot_be_captioned_end_with_the_code_that_help_promises(folder: Path) -> None:
    (folder / "broken.jpg").write_bytes(b"no photo")
    one = nic(["caption", "broken.jpg", "--model", "captioner"], folder)
    assert one.code == 2 and one.stdout == ""
    assert one.stderr == "broken.jpg: cannot read it as an image: it is in no format that Pillow knows"
    some = nic(["caption", "broken.jpg", "photo.png", "--model", "captioner"], folder)
    assert some.code == 1 and some.stdout.startswith("photo.png\t")
    assert some.stderr.splitlines()[1:] == ["1 photos captioned; 1 could not be read"]
    for code in (1, 1):  # the second time the other photo has its caption already
        again = nic(["caption", "broken.jpg", "photo.png", "--model", "captioner", "--output", "a.csv"], folder)
        assert again.code == code
