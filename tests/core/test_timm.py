"""Models of timm as backbones, by the command and from a Hub: trained, captioned, saved, loaded, exported.

timm and torchvision are in a virtual environment of their own (`timm_environment`); the weights are random.
"""

import importlib.util
import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hub_process import run
from hub_server import HubServer
from timm_environment import timm_environment
from tiny import save_tiny_data, tiny_photos
from typer.testing import CliRunner

import nic_hf
from nic_hf.cli import app
from nic_hf.model.processor import load_image_processor, squeeze_to

ARCHITECTURES = ["tf_efficientnet_lite0", "mobilenetv4_conv_small_035", "convnext_zepto_rms"]
FINETUNED = "mobilenetv4_conv_small_035"
PATHS = [str(Path(nic_hf.__file__).parents[1]), str(Path(__file__).parents[1])]

# What timm itself says: checkpoints in its own format, features of photos, and pixels.
BARE = """
import numpy as np, timm, torch
from PIL import Image
from timm.data import create_transform, resolve_data_config
from transformers import TimmWrapperConfig, TimmWrapperModel

from nic_hf import NICConfig, NICForConditionalGeneration
from nic_hf.model.processor import build_image_processor
from nic_hf.model.timm_models import image_processor_settings

answers = {}
photos = [Image.open(path) for path in sorted(Path("pets/validation").glob("*.png"))]
for name in ARCHITECTURES:
    torch.manual_seed(0)
    model = timm.create_model(name).eval()
    timm.models.save_for_hf(model, name, safe_serialization=True)
    model.reset_classifier(0)
    pixel_values = torch.rand(2, 3, 224, 224)
    with torch.no_grad():
        torch.save([pixel_values, model(pixel_values)], f"{name}/features.pt")

differences = []
for given in (
    {"input_size": [3, 224, 224], "crop_pct": 0.875, "interpolation": "bicubic"},
    {"input_size": [3, 160, 160], "crop_pct": 0.95, "interpolation": "bilinear", "mean": [0.5] * 3, "std": [0.5] * 3},
    {"input_size": [3, 96, 128], "crop_pct": 0.9, "crop_mode": "squash", "interpolation": "lanczos"},
    {"input_size": [3, 64, 64], "crop_pct": 1.0, "crop_mode": "center"},
    {},
):
    processor = build_image_processor(image_processor_settings(given))
    transform = create_transform(**resolve_data_config({}, given or {"input_size": None}))
    for photo in photos:
        for size in ((512, 384), (320, 480), (90, 90)):
            resized = photo.resize(size, Image.Resampling.BICUBIC)
            found = np.asarray(processor(resized)["pixel_values"][0])
            expected = transform(resized).numpy()
            assert found.shape == expected.shape
            differences.append(float(np.abs(found - expected).max()))
answers["differences"] = differences

def captioner(backbone, **options):
    return NICForConditionalGeneration.from_backbone_pretrained(
        backbone, vocab_size=27, embedding_size=7, hidden_size=9, **options
    ).eval()

def wrapper(name, size, **model_args):
    cfg = {"input_size": [3, size, size]}
    return TimmWrapperModel(TimmWrapperConfig(architecture=name, pretrained_cfg=cfg, model_args=model_args)).eval()

answers["of Transformers"] = []
with torch.no_grad():
    bare = wrapper("resnet10t", 64)
    bare.save_pretrained("wrapper")
    pixel_values = torch.rand(2, 3, 64, 64)
    expected = bare(pixel_values=pixel_values).pooler_output
    for source in (bare, "wrapper"):
        model = captioner(source)
        model.save_pretrained("captioner")
        loaded = NICForConditionalGeneration.from_pretrained("captioner")
        for each in (model, loaded):
            answers["of Transformers"].append(float((each.get_image_features(pixel_values) - expected).abs().max()))

    vit = wrapper("vit_tiny_patch16_384", 384, depth=1)
    answers["ViT"] = [captioner(vit).config.feature_size, captioner(vit).config.backbone_config.image_size]
    images = torch.rand(1, 3, 384, 384)
    regions = captioner(vit, attention="soft").get_image_features(images)
    last = vit(pixel_values=images).last_hidden_state
    answers["regions of ViT"] = [last.shape[1], regions.shape[1], torch.equal(regions, last[:, 1:])]
swin = wrapper("swin_tiny_patch4_window7_224", 224, depths=[1, 1], embed_dim=12, num_heads=[1, 1])
answers["Swin"] = captioner(swin).config.feature_size
try:
    captioner(swin, attention="soft")
except ValueError as error:
    answers["regions of Swin"] = str(error)
"""

# What a user does with one architecture.
USER = """
import torch
from PIL import Image
from typer.testing import CliRunner

from nic_hf import NICForConditionalGeneration, NICProcessor
from nic_hf.cli import app
from nic_hf.export import NICOnnxCaptioner

def nic(*arguments):
    done = CliRunner().invoke(app, list(map(str, arguments)))
    assert done.exit_code == 0, (done.output, done.exception)
    return done.stdout

def load(folder):
    return NICForConditionalGeneration.from_pretrained(folder).eval(), NICProcessor.from_pretrained(folder)

def captions(model, processor):
    ids = model.generate(**processor(images=list(map(str, photos)), return_tensors="pt"))
    return processor.batch_decode(ids, skip_special_tokens=True)

photos = sorted((DATA / "pets" / "validation").glob("*.png"))
short = ["--max_steps", 2, "--views", 1, "--use_cpu", "true", "--output_dir"]
sizes = ["--min_frequency", 1, "--hidden_size", 16, "--embedding_size", 16, "--initializer_range", 1.5]
nic("train", "--data", DATA / "pets", "--backbone", BACKBONE, *sizes, *short, "captioner")
answers = {"command": [line.split("\\t")[1] for line in nic("caption", *photos, "--model", "captioner").splitlines()]}
model, processor = load("captioner")
answers["loaded"] = captions(model, processor)
model.save_pretrained("copy")
processor.save_pretrained("copy")
answers["copied"] = captions(*load("copy"))
nic("export", "onnx", "captioner", "onnx")
answers["onnx"] = NICOnnxCaptioner.from_pretrained("onnx").caption(list(map(str, photos)))
answers["layers"], answers["frozen"] = model.config.feature_layers, model.config.freeze_backbone
answers["bytes of config.json"] = Path("captioner/config.json").stat().st_size
pixel_values, bare = torch.load(BARE)
with torch.no_grad():
    features = model.get_image_features(pixel_values)
answers["size"], answers["size of timm"] = features.shape[1], bare.shape[1]
answers["difference"] = float((features[:, : bare.shape[1]] - bare).abs().max() / bare.abs().max())
if FINETUNES:
    first = ["--from_checkpoint", "captioner"]
    nic("train", "--recipe", "finetune", "--data", DATA / "pets", *first, *short, "finetuned")
    tuned, _ = load("finetuned")
    before, after = (each.encoder.backbone.state_dict() for each in (model, tuned))
    answers["trained"] = sum(not torch.equal(before[name], after[name]) for name in before)
    answers["weights"] = len(list(tuned.encoder.backbone.parameters()))
    answers["finetuned"] = captions(*load("finetuned"))
"""

# What somebody with timm and without the package does.
STRANGER = """
import sys
sys.modules["nic_hf"] = None  # any import of it fails
from transformers import AutoModelForImageTextToText, AutoProcessor

photos = sorted(map(str, (DATA / "pets" / "validation").glob("*.png")))
remote, answers = {"trust_remote_code": True}, {}
for name in ARCHITECTURES:
    model = AutoModelForImageTextToText.from_pretrained(Path(name) / "captioner", **remote)
    processor = AutoProcessor.from_pretrained(Path(name) / "captioner", **remote)
    ids = model.generate(**processor(images=photos, return_tensors="pt"))
    assert type(model).__module__.startswith("transformers_modules"), type(model)
    answers[name] = processor.batch_decode(ids, skip_special_tokens=True)
"""


class Workshop:
    """Runs scripts in the environment with timm; the Hub holds the checkpoints of timm."""

    def __init__(self, folder: Path, hub: HubServer, python: str) -> None:
        self.folder, self.hub, self.python = folder, hub, python

    def run(self, script: str, place: str, **names: Any) -> dict[str, Any]:
        (self.folder / place).mkdir(exist_ok=True)
        start = "from pathlib import Path\n" + "".join(f"{name} = {value!r}\n" for name, value in names.items())
        start += f"DATA = Path({str(self.folder)!r})\nARCHITECTURES = {ARCHITECTURES!r}\n"
        given = {"PYTHONPATH": os.pathsep.join(PATHS), "HF_MODULES_CACHE": str(self.folder / "modules")}
        folder = self.folder / place
        return run(start + script, folder, self.folder / "hub", self.hub, self.python, **given)


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workshop]:
    folder = tmp_path_factory.mktemp("timm")
    try:
        python = timm_environment(folder / "environment")
    except OSError as error:
        pytest.skip(str(error))
    save_tiny_data(folder)
    with HubServer() as hub:
        yield Workshop(folder, hub, python)


@pytest.fixture(scope="module")
def bare(workshop: Workshop) -> dict[str, Any]:
    """What timm says; afterwards its checkpoints are on the Hub."""
    answers = workshop.run(BARE, ".")
    for name in ARCHITECTURES:
        files = {file.name: file.read_bytes() for file in (workshop.folder / name).iterdir()}
        workshop.hub.add(f"timm/{name}.random", files)
    return answers


@pytest.fixture(scope="module")
def used(workshop: Workshop, bare: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """What the commands gave for each architecture; two processes at a time."""

    def use(name: str) -> dict[str, Any]:
        features = str(workshop.folder / name / "features.pt")
        return workshop.run(USER, name, BACKBONE=f"timm/{name}.random", BARE=features, FINETUNES=name == FINETUNED)

    with ThreadPoolExecutor(2) as threads:
        return dict(zip(ARCHITECTURES, threads.map(use, ARCHITECTURES), strict=True))


def test_photos_are_prepared_as_by_timm(bare: dict[str, Any]) -> None:
    assert len(bare["differences"]) == 60
    assert max(bare["differences"]) < 1e-6


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_command_trains_a_captioner_that_is_the_same_saved_loaded_and_exported(
    name: str, used: dict[str, dict[str, Any]]
) -> None:
    found = used[name]
    assert found["layers"] == "all" and found["frozen"]
    assert len(found["command"]) == 4 and len(set(found["command"])) > 1
    for door in ("loaded", "copied", "onnx"):
        assert found[door] == found["command"], door
    assert found["bytes of config.json"] < 5000, "ImageNet's labels are in the captioner's config.json"


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_features_are_those_of_timm(name: str, used: dict[str, dict[str, Any]]) -> None:
    assert used[name]["size"] > used[name]["size of timm"] > 0  # those of earlier layers follow
    assert used[name]["difference"] < 1e-5


def test_finetuning_trains_the_backbone(used: dict[str, dict[str, Any]]) -> None:
    found = used[FINETUNED]
    assert found["trained"] == found["weights"] > 0
    assert len(found["finetuned"]) == 4


def test_checkpoints_work_without_the_package(workshop: Workshop, used: dict[str, dict[str, Any]]) -> None:
    captions = workshop.run(STRANGER, ".")
    assert captions == {name: found["command"] for name, found in used.items()}


def test_models_that_transformers_saved_are_backbones_too(bare: dict[str, Any]) -> None:
    assert bare["of Transformers"] == [0.0] * 4


def test_a_vit_of_another_size_has_its_regions_without_the_token_before_them(bare: dict[str, Any]) -> None:
    assert bare["ViT"] == [192, [384, 384]]
    assert bare["regions of ViT"] == [577, 576, True]


def test_channels_last_are_refused_with_attention_only(bare: dict[str, Any]) -> None:
    assert bare["Swin"] == 24
    assert "timm's swin_tiny_patch4_window7_224" in bare["regions of Swin"]


def save_config(folder: Path, **pretrained_cfg: Any) -> Path:
    """The `config.json` of a checkpoint in timm's own format."""
    config = {"architecture": "resnet10t", "num_classes": 1000, "pretrained_cfg": pretrained_cfg}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_the_image_processor_needs_no_timm(tmp_path: Path) -> None:
    folder = save_config(tmp_path, input_size=[3, 176, 176], crop_pct=0.95, interpolation="bilinear", std=[1, 1, 1])
    processor = load_image_processor(folder, image_mean=[0.1, 0.2, 0.3])
    assert processor.size == {"shortest_edge": 185} and processor.crop_size == {"height": 176, "width": 176}
    assert (processor.resample, processor.image_mean, processor.image_std) == (2, (0.1, 0.2, 0.3), (1, 1, 1))
    squeezed = squeeze_to(load_image_processor(folder), 64)(tiny_photos(1)[0])
    assert squeezed["pixel_values"][0].shape == (3, 64, 64)


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"interpolation": "random"}, "interpolation 'random'"),
        ({"crop_mode": "border"}, "crop_mode 'border'"),
        ({"input_size": [3, 64, 96]}, "'center' does to 64 x 96"),
        ({"input_size": 224}, "pretrained_cfg"),
    ],
    ids=str,
)
def test_what_no_image_processor_does_is_named(wrong: dict[str, Any], named: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=named) as failure:
        load_image_processor(save_config(tmp_path, **wrong))
    assert "config.json" in str(failure.value) and "\n" not in str(failure.value)


def test_a_folder_without_image_processor_is_no_model_of_timm(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "resnet"}')
    with pytest.raises(OSError, match=r"preprocessor_config\.json"):
        load_image_processor(tmp_path)


@pytest.mark.skipif(importlib.util.find_spec("timm") is not None, reason="timm is installed")
def test_the_command_says_what_to_install(tmp_path: Path) -> None:
    save_tiny_data(tmp_path)
    backbone = str(save_config(tmp_path / "backbone", input_size=[3, 32, 32]))
    options = ["--backbone", backbone, "--min_frequency", "1", "--output_dir", str(tmp_path / "run")]
    done = CliRunner().invoke(app, ["train", "--data", str(tmp_path / "pets"), *options])
    assert done.exit_code == 2
    assert "pip install timm" in done.stderr.splitlines()[-1]
