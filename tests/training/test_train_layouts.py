"""`nic train --data FOLDER` on the layouts that people have, in a process; the shortest of runs."""

from pathlib import Path

import pytest
import yaml
from layouts import LAYOUTS
from transformers import ResNetConfig, ResNetModel
from typer.testing import CliRunner

from nic_hf import NICForConditionalGeneration
from nic_hf.cli import app
from nic_hf.model.processor import build_image_processor


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("backbone")
    sizes = ResNetConfig(embedding_size=4, hidden_sizes=[4, 8], depths=[1, 1], layer_type="basic")
    ResNetModel(sizes).save_pretrained(folder)
    settings = {"image_processor_type": "ViTImageProcessor", "size": {"height": 32, "width": 32}}
    build_image_processor(settings).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout_is_trained_by_one_command(
    name: str, backbone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("NIC_HF_CACHE", str(tmp_path / "features"))
    layout = LAYOUTS[name]
    layout.draw(tmp_path / "data")
    command = ["train", "--data", str(tmp_path / "data" / layout.source), "--backbone", str(backbone)]
    command += [f"--{option}={value}" for option, value in layout.options]
    command += ["--output_dir", str(tmp_path / "run"), "--num_train_epochs", "1", "--hidden_size", "16", "--use_cpu"]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    assert "(validation)" in done.stdout
    recipe = yaml.safe_load((tmp_path / "run" / "recipe.yaml").read_text("utf-8"))
    assert ("split" in recipe) == (layout.own_splits is None)
    assert NICForConditionalGeneration.from_pretrained(tmp_path / "run").config.vocab_size > 4
