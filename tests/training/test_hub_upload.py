"""`nic train --push_to_hub` against a Hub, in a process of its own: what arrives, and what must not."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hub_server import TOKEN, HubServer, Repository, check_card
from huggingface_hub import ModelCard
from tiny import save_tiny_checkpoint, save_tiny_data
from typer.testing import CliRunner

import nic_hf
from nic_hf.cli import app
from nic_hf.training.hub_trainer import _linked
from nic_hf.training.hub_upload import published_files
from nic_hf.training.recipes import as_recipe, load_recipe, resolve

SETTINGS = {
    "hidden_size": 8,
    "embedding_size": 8,
    "min_frequency": 1,
    "views": 1,
    "feature_layers": "",
    "max_steps": 2,
    "per_device_train_batch_size": 4,
    "eval_strategy": "steps",
    "eval_steps": 1,
    "save_strategy": "steps",
    "save_steps": 1,
    "num_sample_photos": 2,
    "use_cpu": "true",
    "report_to": "tensorboard",
    "seed": 3,
    "push_to_hub": "true",
    "hub_strategy": "checkpoint",
    "hub_always_push": "true",
}


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Repository:
    """What a run of `nic train --push_to_hub` left on the Hub."""
    folder = tmp_path_factory.mktemp("work")
    save_tiny_data(folder)
    with HubServer() as hub:
        environment = {
            **{name: value for name, value in os.environ.items() if name != "HF_TOKEN"},
            "HF_ENDPOINT": hub.url,
            "HF_HUB_OFFLINE": "0",
            "HF_HOME": str(folder / "home"),
            "HF_HUB_DISABLE_XET": "1",
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(Path(nic_hf.__file__).parents[1]),
        }
        flags = [f"--{name}={value}" for name, value in SETTINGS.items() if value]
        flags += [
            "--hub_token",
            TOKEN,
            "--data",
            "pets",
            "--backbone",
            "backbone",
            "--output_dir",
            "runs/pets",
            "--recipe",
            "recipe.yaml",
        ]
        (folder / "recipe.yaml").write_text("stages: {frozen: {}}\n")
        command = [sys.executable, "-m", "nic_hf", "train", "--output_dir", "runs/pets", *flags]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=folder, timeout=300)
        assert done.returncode == 0, done.stderr[-3000:]
        assert (folder / "runs/pets/1-frozen/samples").is_dir()
        assert list((folder / "runs/pets/1-frozen").glob(".*")) == []  # nothing that was pushed from
        return hub.repository("someone/pets")


def test_the_final_captioner_arrives_with_its_card_and_recipe(repository: Repository) -> None:
    files = repository.head.files
    assert repository.head.title == "Upload captioner"
    own = {name for name in files if not name.startswith("last-checkpoint/")}
    code = {name for name in own if name.endswith("_nic.py")}
    assert {"modeling_nic.py", "processing_nic.py", "pipeline_nic.py"} <= code
    assert own - code == {
        "README.md",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "processor_config.json",
        "recipe.yaml",
        "tokenizer.json",
        "tokenizer_config.json",
        "weights.sha256",
    }
    card = ModelCard(files["README.md"].decode())
    assert check_card(card.data.to_dict()) == []
    assert card.data.model_name == "pets"
    assert {result.metric_type for result in card.data.eval_results} == {"bleu", "cider"}
    assert "| `seed` | 3 |" in card.text
    assert "| validation/0.png | " in card.text  # a sample caption


def test_checkpoints_are_pushed_while_it_trains_and_can_be_resumed(repository: Repository) -> None:
    titles = [commit.title for commit in repository.refs["main"]]
    assert titles[0] == "initial commit"
    for step in (1, 2):
        assert f"Training in progress, step {step}" in titles
        assert f"Training in progress, step {step}, checkpoint" in titles
    # `save_model()` calls the trainer's `push_to_hub()`; the last push is of the folder of all stages.
    order = ["Training in progress, step 1", "Model save", "Upload captioner"]
    assert [titles.index(title) for title in order] == sorted(titles.index(title) for title in order)
    checkpoint = {name for name in repository.head.files if name.startswith("last-checkpoint/")}
    assert {"last-checkpoint/optimizer.pt", "last-checkpoint/trainer_state.json"} <= checkpoint


def test_no_photo_of_the_data_no_log_and_no_token_is_ever_pushed(repository: Repository) -> None:
    for commit in repository.refs["main"]:
        for name, content in commit.files.items():
            assert not name.endswith((".png", ".jsonl")) and "tfevents" not in name and "samples" not in name, name
            assert TOKEN.encode() not in content, name
            assert name != "last-checkpoint/training_args.bin"


def test_a_token_is_never_written_into_a_recipe() -> None:
    changes = {"data": "pets", "backbone": "backbone", "output_dir": "x", "hub_token": "hf_x", "push_to_hub": "true"}
    stages = resolve(load_recipe("paper"), changes)
    assert stages[0].args.hub_token == "hf_x"
    assert "hf_x" not in json.dumps(as_recipe(stages)) and "hub" not in json.dumps(as_recipe(stages))


def test_nic_push_refuses_a_folder_without_a_captioner(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not a captioner"):
        published_files(tmp_path)
    done = CliRunner().invoke(app, ["push", str(tmp_path), "me/captioner"])
    assert done.exit_code == 2
    assert done.output == f"nic push: {tmp_path}: holds no captioner, as there is no config.json\n"


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    folder = tmp_path / "checkpoint-5"
    save_tiny_checkpoint(folder)
    (folder / "global_step5").mkdir()
    for name in ("optimizer.pt", "trainer_state.json", "training_args.bin", "global_step5/shard.pt"):
        (folder / name).write_bytes(name.encode())
    return folder


def test_a_push_holds_on_to_what_is_published_without_a_copy(checkpoint: Path) -> None:
    names = published_files(checkpoint)
    links = _linked(checkpoint, names)
    assert links.parent == checkpoint.parent and "optimizer.pt" not in names
    assert sorted(path.name for path in links.iterdir()) == sorted(names)
    assert all((links / name).samefile(checkpoint / name) for name in names)
    weights = (checkpoint / "model.safetensors").read_bytes()
    shutil.rmtree(checkpoint)  # as Trainer does with old ones
    assert (links / "model.safetensors").read_bytes() == weights


def test_a_checkpoint_to_resume_from_is_linked_whole_but_for_the_token(checkpoint: Path) -> None:
    links = _linked(checkpoint, None)
    files = {path.relative_to(links).as_posix() for path in links.rglob("*") if path.is_file()}
    assert {"optimizer.pt", "trainer_state.json", "global_step5/shard.pt", "model.safetensors"} <= files
    assert "training_args.bin" not in files
    assert (links / "optimizer.pt").samefile(checkpoint / "optimizer.pt")


def test_where_there_are_no_links_files_are_copied(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(source: Path, target: Path) -> None:
        raise OSError("no links on this disk")

    monkeypatch.setattr(os, "link", refuse)
    links = _linked(checkpoint, ["config.json"])
    assert (links / "config.json").read_bytes() == (checkpoint / "config.json").read_bytes()
