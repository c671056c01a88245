"""Each way to break a captioner is found, called by its name, and answered with what to do."""

import csv
import importlib.metadata
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny import CAPTIONS, tiny_model, tiny_photos, tiny_processor
from typer.testing import CliRunner

from nic_hf import NICForConditionalGeneration
from nic_hf.cli import app
from nic_hf.doctor import Finding, Status, examine

COPIES = 10


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty photos of four kinds, each kind with a caption of its own."""
    folder = tmp_path_factory.mktemp("data")
    generator = np.random.default_rng(0)
    rows = []
    for number, photo in enumerate(tiny_photos(len(CAPTIONS)) * COPIES):
        noise = generator.normal(0, 6, (photo.height, photo.width, 3))
        pixels = (np.asarray(photo) + noise).clip(0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:02d}.png")
        rows.append((f"{number:02d}.png", CAPTIONS[number % len(CAPTIONS)]))
    with (folder / "metadata.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("file_name", "caption"), *rows])
    return folder


@pytest.fixture(scope="module")
def healthy(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A captioner that has learned those captions, and the backbone that it was built on."""
    folder = tmp_path_factory.mktemp("healthy")
    model = trained(data, CAPTIONS * COPIES, folder / "captioner")
    model.encoder.backbone.save_pretrained(folder / "backbone")
    tiny_processor().image_processor.save_pretrained(folder / "backbone")
    return folder


def trained(data: Path, captions: list[str], folder: Path, steps: int = 150) -> NICForConditionalGeneration:
    """Train on the photos with these captions, and save."""
    model, processor = tiny_model(hidden_size=24, embedding_size=16, initializer_range=0.1), tiny_processor()
    photos = [Image.open(path) for path in sorted(data.glob("*.png"))]
    with torch.no_grad():
        features = model.get_image_features(processor(images=photos, return_tensors="pt")["pixel_values"])
    model.set_feature_statistics(features.mean(0), features.std(0))
    labels = processor(text_target=captions, return_tensors="pt")["labels"]
    optimizer = torch.optim.Adam([weight for weight in model.parameters() if weight.requires_grad], lr=0.02)
    model.train()
    for _ in range(steps):
        optimizer.zero_grad()
        loss = model(encoder_outputs=features, labels=labels).loss
        loss.backward()
        optimizer.step()
    assert loss < 0.5 or steps < 150
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return model


@pytest.fixture
def broken(healthy: Path, tmp_path: Path) -> Path:
    """A copy to break."""
    shutil.copytree(healthy / "captioner", tmp_path / "captioner")
    return tmp_path / "captioner"


def change_weights(checkpoint: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    weights = load_file(checkpoint / "model.safetensors")
    change(weights)
    save_file(weights, checkpoint / "model.safetensors", metadata={"format": "pt"})
    (checkpoint / "weights.sha256").unlink(missing_ok=True)  # changed on purpose


def change_json(file: Path, change: Callable[[dict], Any]) -> None:
    document = json.loads(file.read_text("utf-8"))
    change(document)
    file.write_text(json.dumps(document), "utf-8")


def problems(checkpoint: Path, **arguments: Any) -> dict[str, Finding]:
    findings = examine(str(checkpoint), **arguments)
    wrong = {finding.check: finding for finding in findings if finding.status == Status.PROBLEM}
    assert all(finding.message and len(finding.advice) > 20 for finding in wrong.values())
    return wrong


def test_a_healthy_captioner_has_nothing_wrong(healthy: Path, data: Path) -> None:
    findings = examine(str(healthy / "captioner"), data=str(data), backbone=str(healthy / "backbone"))
    assert [finding for finding in findings if finding.status in (Status.PROBLEM, Status.SKIPPED)] == []
    names = {finding.check for finding in findings}
    assert {
        "versions",
        "vocabulary",
        "preprocessing",
        "backbone drift",
        "use of the photo",
        "distinct captions",
    } <= names
    assert problems(healthy / "captioner") == {}


def test_one_caption_for_all_photos(broken: Path, data: Path) -> None:
    def always_smile(weights: dict[str, torch.Tensor]) -> None:
        weights["lm_head.bias"][7] += 50

    change_weights(broken, always_smile)
    found = problems(broken, data=str(data))
    assert "1 distinct captions for 40 photos" in found["distinct captions"].message
    assert "distinct captions" in problems(broken)


def test_a_tokenizer_of_another_size(broken: Path) -> None:
    from nic_hf.tokenization import train_tokenizer

    train_tokenizer([*CAPTIONS, "zebra"], min_frequency=1).save_pretrained(broken)
    found = problems(broken)
    assert "28 words and the model 27" in found["vocabulary"].message


def test_a_tokenizer_with_the_words_in_another_order(broken: Path, data: Path) -> None:
    def turn(document: dict) -> None:
        vocabulary = document["model"]["vocab"]
        document["model"]["vocab"] = {
            word: number if number < 4 else 4 + (number + 5) % (len(vocabulary) - 4)
            for word, number in vocabulary.items()
        }

    change_json(broken / "tokenizer.json", turn)
    found = problems(broken, data=str(data))
    assert "word frequencies alone" in found["fit to the captions"].message
    assert "tokenizer.json of another training run" in found["fit to the captions"].advice


def test_captions_of_other_words(broken: Path, data: Path, tmp_path: Path) -> None:
    shutil.copytree(data, tmp_path / "other")
    text = (tmp_path / "other" / "metadata.csv").read_text()
    (tmp_path / "other" / "metadata.csv").write_text(text.replace("a ", "un ").replace("dog", "chien"))
    assert "are unknown" in problems(broken, data=str(tmp_path / "other"))["words of the data"].message


def test_a_small_set_is_not_taken_for_another_tokenizer(broken: Path, data: Path, tmp_path: Path) -> None:
    """Each caption has words of its own, as in a small set, which no tokenizer of these captions would know."""
    shutil.copytree(data, tmp_path / "small")
    header, *rows = (tmp_path / "small" / "metadata.csv").read_text().splitlines()
    rows = [f"{row} near {'abcdefgh'[n % 8]}{n}x" for n, row in enumerate(rows)]
    (tmp_path / "small" / "metadata.csv").write_text("\n".join([header, *rows]))
    findings = {finding.check: finding for finding in examine(str(broken), data=str(tmp_path / "small"))}
    words = findings["words of the data"]
    assert words.status == Status.PROBLEM, "the word 'near' is frequent, and unknown"
    rows = [row.replace(" near ", " ") + f" {'abcdefgh'[n % 8]}{n}y" for n, row in enumerate(rows)]
    (tmp_path / "small" / "metadata.csv").write_text("\n".join([header, *rows]))
    findings = {finding.check: finding for finding in examine(str(broken), data=str(tmp_path / "small"))}
    words = findings["words of the data"]
    assert words.status == Status.NOTE and words.advice.startswith("too few photos")
    share = re.search(
        r"; ([\d.]+)% of the words of the data are, because they occur there fewer than 5", words.message
    )
    number = sum(len(row.split(",")[1].split()) for row in rows)
    assert share and float(share[1]) == pytest.approx(100 * 2 * len(rows) / number, abs=0.1)


def test_a_captioner_that_was_trained_for_too_few_steps(data: Path, tmp_path: Path) -> None:
    trained(data, CAPTIONS * COPIES, tmp_path / "early", steps=1)
    found = problems(tmp_path / "early", data=str(data))
    assert found["fit to the captions"].advice.startswith("too few photos or steps")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_mean": [0.0, 0.0, 0.0]}, "image_mean is [0.0, 0.0, 0.0], but [0.5, 0.4, 0.3] for the backbone"),
        ({"do_rescale": False}, "do_rescale is off"),
        ({"image_mean": [123.7, 116.3, 103.5], "image_std": [58.4, 57.1, 57.4]}, "for pixel values up to 255"),
        ({"do_normalize": False}, "do_normalize is False, but True for the backbone"),
    ],
)
def test_preprocessing_that_is_not_the_backbones(
    change: dict, message: str, broken: Path, healthy: Path, data: Path
) -> None:
    change_json(broken / "processor_config.json", lambda document: document["image_processor"].update(change))
    assert message in problems(broken, backbone=str(healthy / "backbone"))["preprocessing"].message


def test_preprocessing_shows_in_the_features_without_the_backbone_at_hand(broken: Path, data: Path) -> None:
    changed = {"image_mean": [0.0] * 3, "image_std": [0.05] * 3}
    change_json(broken / "processor_config.json", lambda document: document["image_processor"].update(changed))
    found = problems(broken, data=str(data))
    assert "standard deviations from the training photos" in found["features"].message


def test_photos_of_another_size_than_the_backbones(broken: Path) -> None:
    def expect_64(document: dict) -> None:
        document["backbone_config"]["image_size"] = 64

    change_json(broken / "config.json", expect_64)
    assert "photos are resized to (32, 32) pixels, but the backbone needs (64, 64)" in (
        problems(broken)["preprocessing"].message
    )


def test_batch_norm_of_a_frozen_backbone_that_moved(broken: Path, healthy: Path, data: Path) -> None:
    """As training it in training mode moves it."""
    model = NICForConditionalGeneration.from_pretrained(broken)
    model.encoder.backbone.train()
    photos = [Image.open(path) for path in sorted(data.glob("*.png"))[:8]]
    with torch.no_grad():
        model.encoder.backbone(tiny_processor()(images=photos, return_tensors="pt")["pixel_values"])
    model.save_pretrained(broken)
    found = problems(broken, backbone=str(healthy / "backbone"))
    assert "BatchNorm statistics changed" in found["backbone drift"].message
    assert "eval mode" in found["backbone drift"].advice
    change_json(broken / "config.json", lambda document: document.update(freeze_backbone=False))
    assert "backbone drift" not in problems(broken, backbone=str(healthy / "backbone"))


def test_a_backbone_that_is_not_the_one(broken: Path, healthy: Path, tmp_path: Path) -> None:
    other = tiny_model(seed=1).encoder.backbone
    other.save_pretrained(tmp_path / "other")
    assert "weights differ" in problems(broken, backbone=str(tmp_path / "other"))["backbone drift"].message


def test_a_backbone_without_weights(broken: Path, data: Path) -> None:
    def lose(weights: dict[str, torch.Tensor]) -> None:
        for name, tensor in weights.items():
            if name.startswith("encoder.") and tensor.is_floating_point():
                tensor.zero_()

    change_weights(broken, lose)
    assert "the same features for 40 different photos" in problems(broken, data=str(data))["use of the photo"].message


def test_an_lstm_that_does_not_read_the_photo(broken: Path) -> None:
    change_weights(broken, lambda weights: weights["image_projection.linear.weight"].zero_())
    found = problems(broken)
    assert "the first word does not depend on them" in found["use of the photo"].message
    assert "distinct captions" in found


def test_a_captioner_that_was_trained_on_mixed_up_captions(data: Path, tmp_path: Path) -> None:
    mixed = [CAPTIONS[(number // 4 + number % 4) % 4] for number in range(4 * COPIES)]
    trained(data, mixed, tmp_path / "mixed")
    found = problems(tmp_path / "mixed", data=str(data))
    assert "the right photo lowers the loss by" in found["captions and photos"].message
    assert "photos and captions of the training data match" in found["captions and photos"].advice
    assert "fit to the captions" not in found


def test_weights_that_are_no_numbers_or_missing(broken: Path) -> None:
    change_weights(broken, lambda weights: weights["lm_head.bias"].fill_(float("nan")))
    assert "lm_head.bias" in problems(broken)["weights"].message
    change_weights(broken, lambda weights: weights.pop("lm_head.bias"))
    assert "lacks 1 tensors: lm_head.bias" in problems(broken)["weights"].message


def test_versions_that_do_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    import nic_hf.doctor.installation as installation

    real = importlib.metadata.version
    versions = {"transformers": "6.0.1", "torch": "2.13.0+cpu", "pillow": "9.5.0"}
    monkeypatch.setattr(installation, "version", lambda name: versions.get(name) or real(name))
    finding = installation.check_installation()[0]
    assert finding.status == Status.PROBLEM and finding.message == (
        "transformers 6.0.1, required 5.17 or later, before 6; pillow 9.5.0, required 11 or later"
    )
    monkeypatch.setattr(installation, "java_version", lambda: None)
    assert installation.check_installation()[2].status == Status.NOTE


def test_the_command(broken: Path, healthy: Path, data: Path) -> None:
    done = CliRunner().invoke(app, ["doctor", str(broken), "--data", str(data)])
    assert done.exit_code == 0 and "No problems found." in done.stdout, done.stdout
    change_weights(broken, lambda weights: weights["image_projection.linear.weight"].zero_())
    done = CliRunner().invoke(app, ["doctor", str(broken)])
    assert done.exit_code == 1 and "PROBLEM  use of the photo" in done.stdout and "-> " in done.stdout
    done = CliRunner().invoke(app, ["doctor", str(broken), "--json"])
    document = json.loads(done.stdout)
    assert done.exit_code == 1 and document["ok"] is False
    assert {"check", "status", "message", "advice"} == document["findings"][0].keys()
    for arguments in (["./nowhere/model"], [str(broken), "--data", "./nowhere/data"]):
        done = CliRunner().invoke(app, ["doctor", *arguments])
        assert done.exit_code == 2 and done.stderr.startswith("nic doctor: ") and "nowhere" in done.stderr
