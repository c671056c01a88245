"""Captions in Chinese, from `nic train` to the ONNX captioner."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import ResNetModel
from typer.testing import CliRunner

from nic_hf import NICForConditionalGeneration, NICProcessor
from nic_hf.cli import app
from nic_hf.data.scenes import Scene, draw_scene, make_scene, scene_backbone_config
from nic_hf.evaluation.scores import _say_once
from nic_hf.model.processor import build_image_processor
from nic_hf.tokenizer_style import cuts_unspaced

pytestmark = pytest.mark.filterwarnings("ignore:Glyph")  # plots have no letters for them

WORDS = {
    **{"small": "小", "large": "大", "circle": "圆形", "square": "正方形", "triangle": "三角形", "star": "星星"},
    **{"cross": "十字", "red": "红色", "yellow": "黄色", "green": "绿色", "blue": "蓝色", "purple": "紫色"},
    **{"black": "黑色", "left": "左边", "above": "上面"},
}
OPTIONS: dict[str, Any] = {
    "hidden_size": 128,
    "embedding_size": 64,
    "dropout": 0.0,
    "min_frequency": 1,
    "feature_layers": "all",
    "label_smoothing": 0.0,
    "num_train_epochs": 100,
    "per_device_train_batch_size": 16,
    "learning_rate": 1e-2,
    "num_sample_photos": 2,
    "eval_strategy": "no",
    "save_strategy": "no",
    "load_best_model_at_end": "false",
    "use_cpu": "true",
    "report_to": "none",
}


def in_chinese(scene: Scene) -> str:
    """What is seen, such as 一个小红色的圆形在一个大蓝色的星星的左边。"""
    things = [f"一个{WORDS[d.size or '']}{WORDS[d.colour]}的{WORDS[d.shape]}" for d in scene.descriptions]
    return f"{things[0]}。" if scene.relation is None else f"{things[0]}在{things[1]}的{WORDS[scene.relation]}。"


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A vision model of random weights, whose features differ from photo to photo all the same."""
    folder = tmp_path_factory.mktemp("backbone")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        ResNetModel(scene_backbone_config()).save_pretrained(folder)
    settings = {"image_processor_type": "ViTImageProcessor", "size": {"height": 32, "width": 32}}
    build_image_processor(settings).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of scenes with captions in Chinese."""
    folder = tmp_path_factory.mktemp("chinese") / "scenes"
    for split, number in (("train", 32), ("validation", 16)):
        (folder / split).mkdir(parents=True)
        lines = []
        for index in range(number):
            scene, _ = make_scene(split, index)
            draw_scene(scene).save(folder / split / f"{index}.png")
            lines.append(
                json.dumps({"file_name": f"{index}.png", "captions": [in_chinese(scene)]}, ensure_ascii=False)
            )
        (folder / split / "metadata.jsonl").write_text("\n".join(lines), "utf-8")
    return folder


def nic(*arguments: Any) -> Any:
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert done.exit_code == 0, done.output[-3000:] + str(done.exception)
    return done


def nic_train(data: Path, backbone: Path, output: Path, **changes: Any) -> Any:
    flags = [text for name, value in {**OPTIONS, **changes}.items() for text in (f"--{name}", value)]
    os.environ["HF_HOME"] = os.environ.get("HF_HOME", str(output.parent / "hf"))
    return nic("train", "--recipe", "paper", "--data", data, "--backbone", backbone, "--output_dir", output, *flags)


@pytest.fixture(scope="module", params=["words", "characters"])
def run(request: Any, scenes: Path, backbone: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a captioner trained on them."""
    if request.param == "words":
        pytest.importorskip("icu4py")
    output = tmp_path_factory.mktemp("run") / request.param
    nic_train(scenes, backbone, output, segmentation=request.param)
    return output


def test_a_captioner_describes_photos_in_chinese(run: Path, scenes: Path) -> None:
    done = nic("caption", scenes / "train", "--model", run, "--output", run / "captions.jsonl")
    assert "32 photos captioned" in done.output
    said = [json.loads(line) for line in (run / "captions.jsonl").read_text("utf-8").splitlines()]
    assert len(said) == 32
    right = 0
    for line in said:
        scene, _ = make_scene("train", int(Path(line["image_id"]).stem))
        right += f"{line['caption']}。" == in_chinese(scene)
    assert right > 24, said[:5]


def test_its_scores_are_not_0(run: Path, scenes: Path, tmp_path: Path) -> None:
    done = nic("evaluate", run, "--data", scenes, "--split", "validation", "--output", tmp_path / "report", "--json")
    scores = json.loads(done.stdout)["scores"]
    assert min(scores["bleu_4"], scores["rouge_l"], scores["cider"]) > 0.2, scores
    said = (tmp_path / "report" / "predictions-beam3.jsonl").read_text("utf-8").splitlines()
    assert len(said) == 16 and all(" " not in json.loads(line)["caption"] for line in said)


def test_captions_are_as_long_as_the_language_needs(run: Path) -> None:
    model = NICForConditionalGeneration.from_pretrained(run)
    tokenizer = NICProcessor.from_pretrained(run).tokenizer
    assert cuts_unspaced(tokenizer)
    lengths = [len(tokenizer(in_chinese(make_scene("train", index)[0])).input_ids) for index in range(32)]
    fitting = [length <= model.generation_config.max_new_tokens for length in lengths]
    assert sum(fitting) >= 31
    assert 20 <= model.generation_config.max_new_tokens <= max(20, *lengths)
    assert ("红色" in tokenizer.get_vocab()) == (run.name == "words")


def test_the_onnx_captioner_says_the_same(run: Path, scenes: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    from nic_hf.export import NICOnnxCaptioner

    nic("export", "onnx", run, tmp_path / "onnx")
    photos = [str(scenes / "train" / f"{index}.png") for index in range(4)]
    model, processor = NICForConditionalGeneration.from_pretrained(run).eval(), NICProcessor.from_pretrained(run)
    ids = model.generate(**processor(images=photos, return_tensors="pt"))
    expected = processor.tokenizer.batch_decode(ids, skip_special_tokens=True)
    assert NICOnnxCaptioner.from_pretrained(tmp_path / "onnx").caption(photos) == expected
    assert all(expected) and not any(" " in caption for caption in expected)


def test_four_photos_with_the_same_captions_train_and_say_why_cider_is_0(
    backbone: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    captions = ["一只棕色的狗跳过木头", "两个孩子在沙滩上玩耍", "一个男人穿着红色外套", "一只鸟停在电线上"]
    (tmp_path / "data").mkdir()
    lines = []
    for index in range(4):
        draw_scene(make_scene("train", index)[0]).save(tmp_path / "data" / f"p{index}.png")
        lines.append(json.dumps({"file_name": f"p{index}.png", "captions": captions}, ensure_ascii=False))
    (tmp_path / "data" / "metadata.jsonl").write_text("\n".join(lines), "utf-8")
    _say_once.cache_clear()
    done = nic_train(tmp_path / "data", backbone, tmp_path / "run", num_train_epochs=30)
    assert "CIDEr-D of a single photo is 0" in caplog.text
    assert "captions in a script without spaces" in caplog.text and "scored by character" in caplog.text
    assert float(done.stdout.split("BLEU-4 ")[1].split(" %")[0]) > 50
    said = nic("caption", tmp_path / "data" / "p3.png", "--model", tmp_path / "run").stdout
    assert set(said.split("\t")[1].strip()) <= set("".join(captions))


def test_captions_that_are_cut_are_counted(scenes: Path, backbone: Path, tmp_path: Path, caplog: Any) -> None:
    few = {"num_train_epochs": 1, "max_train_photos": 4, "max_eval_photos": 2}
    nic_train(scenes, backbone, tmp_path / "run", max_caption_length=5, segmentation="characters", **few)
    assert "100% of the training captions have 5 words or more: max_caption_length truncates them" in caplog.text
