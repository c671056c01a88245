"""The confidence of captions: how it is computed, fitted and kept, and where it is given."""

import json
import shutil
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from one_thread import one_thread as one_thread
from subset import make_subset
from tiny import save_tiny_checkpoint, save_tiny_photos, tiny_model, tiny_photos, tiny_processor
from typer.testing import CliRunner

from nic_hf import ImageToTextPipeline, NICForConditionalGeneration
from nic_hf.app.caption_html import caption_html
from nic_hf.app.scored_captions import AppCaptioner, ScoredCaption, ScoredWord
from nic_hf.captioners import captioner_path
from nic_hf.captioning import load_captioner
from nic_hf.captioning.caption_formats import FORMATS, CaptionRecord
from nic_hf.captioning.captioners import caption_batch
from nic_hf.cli import app
from nic_hf.cli.checks import check_calibrated
from nic_hf.data import load_captions
from nic_hf.data.odd_pictures import ODD_KINDS, odd_pictures
from nic_hf.evaluation.calibration import acceptance, auroc, logistic_fit, reliability
from nic_hf.model.confidence import Calibration, mean_log_probabilities, unlikeness

NUMBERS = Calibration(intercept=1.5, log_probability=2.0, unlikeness=-3.0, familiar=0.25)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A calibrated captioner."""
    folder = tmp_path_factory.mktemp("calibrated")
    save_tiny_checkpoint(folder)
    NUMBERS.save(folder)
    return folder


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    save_tiny_photos(folder)
    return folder


@pytest.mark.parametrize("attention", [None, "soft"])
def test_the_mean_counts_the_words_and_one_end(attention: str | None) -> None:
    model, processor = tiny_model(attention=attention), tiny_processor()
    pixels = processor(images=tiny_photos(4), return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        features = model.get_image_features(pixels)
        ids = model.generate(encoder_outputs=features, num_beams=3, num_return_sequences=2)
        found = mean_log_probabilities(model, features, ids)
        for row, caption in enumerate(ids.tolist()):
            words = caption[1:]
            words = (
                words[: words.index(model.config.eos_token_id) + 1] if model.config.eos_token_id in words else words
            )
            labels = torch.tensor([words])
            loss = model(pixel_values=pixels[row // 2 : row // 2 + 1], labels=labels).loss
            assert found[row] == pytest.approx(-loss.item(), abs=1e-5)
        prefixed = torch.cat([ids[:, :1], torch.full_like(ids[:, :1], model.config.pad_token_id), ids[:, 1:]], dim=1)
        assert torch.allclose(mean_log_probabilities(model, features, prefixed), found, atol=1e-6)


def test_unlikeness_is_the_log_of_the_mean_squared_deviation() -> None:
    model = tiny_model()
    mean, std = model.image_projection.mean, model.image_projection.std
    features = torch.stack([mean, mean + std, mean - 3 * std])
    assert unlikeness(model, features)[1:].tolist() == pytest.approx([0, np.log(9)], abs=1e-5)
    assert unlikeness(model, features)[0] < -20


def test_a_caption_is_surer_with_probable_words_and_a_photo_like_those_of_the_training_data() -> None:
    def confidence(log_probability: float, unlike: float) -> float:
        return float(NUMBERS.confidence(torch.tensor(log_probability), torch.tensor(unlike)))

    assert confidence(-0.75, 0.1) == pytest.approx(0.5)
    assert confidence(-0.5, 0.25) > confidence(-0.75, 0.25) == confidence(-0.75, -9) > confidence(-0.75, 0.5)
    assert NUMBERS.is_unlike(0.5) and not NUMBERS.is_unlike(0.45)


def test_a_regression_finds_the_weights_that_made_its_targets() -> None:
    inputs = np.c_[np.ones(400), np.random.default_rng(0).normal(size=(400, 2))]
    weights = np.array([0.5, -2.0, 1.0])
    assert logistic_fit(inputs, 1 / (1 + np.exp(-inputs @ weights))) == pytest.approx(weights, abs=1e-3)


def test_auroc_is_the_share_of_pairs_in_the_right_order() -> None:
    rng = np.random.default_rng(1)
    scores, positive = rng.integers(0, 9, 60).astype(float), rng.random(60) < 0.4
    pairs = [(high > low) + 0.5 * (high == low) for high in scores[positive] for low in scores[~positive]]
    assert auroc(scores, positive) == pytest.approx(np.mean(pairs))
    assert np.isnan(auroc(scores, np.ones(60, bool)))


def test_reliability_tells_a_good_confidence_from_one_that_is_too_high() -> None:
    chance = np.linspace(0.1, 0.9, 500)
    good, high = reliability(chance, chance), reliability((chance + 1) / 2, chance)
    assert good["ece"] == pytest.approx(0) and high["ece"] == pytest.approx(0.25, abs=0.01)
    assert good["auroc"] == high["auroc"] == 1 and good["brier"] < min(high["brier"], good["brier_base"])


def test_a_caption_that_shares_nothing_with_the_references_is_not_accepted() -> None:
    low, half, high = acceptance(np.array([0.0, 0.46, 3.0]))
    assert low < 0.02 and half == pytest.approx(0.5, abs=0.02) and high > 0.85


def test_a_calibration_is_kept_by_saving_and_lost_by_training(checkpoint: Path, tmp_path: Path) -> None:
    model = NICForConditionalGeneration.from_pretrained(checkpoint)
    assert Calibration.of(model.config) == NUMBERS
    model.save_pretrained(tmp_path / "again")
    assert Calibration.of(NICForConditionalGeneration.from_pretrained(tmp_path / "again").config) == NUMBERS
    model.train()
    model(pixel_values=torch.zeros(1, 3, 32, 32), labels=torch.tensor([[5, 2]]))
    assert Calibration.of(model.config) is None
    model.save_pretrained(tmp_path / "trained")
    assert "confidence" not in json.loads((tmp_path / "trained" / "config.json").read_text("utf-8"))


@pytest.mark.parametrize("broken", [{"intercept": 1}, {**asdict(NUMBERS), "familiar": "0"}, 0.5])
def test_a_damaged_calibration_is_refused(broken: object) -> None:
    model = tiny_model()
    model.config.confidence = broken
    with pytest.raises(ValueError, match="`confidence` must hold intercept, log_probability, unlikeness, familiar"):
        Calibration.of(model.config)


def test_the_pipeline_the_command_and_the_app_give_the_same_confidence(checkpoint: Path, photos: Path) -> None:
    paths = sorted(photos.iterdir())
    pipeline = ImageToTextPipeline.from_pretrained(checkpoint)
    expected = [found[0] for found in pipeline([str(path) for path in paths], return_scores=True, batch_size=4)]
    assert all(0 < each["confidence"] < 1 for each in expected) and len({each["confidence"] for each in expected}) > 2
    done = CliRunner().invoke(app, ["caption", str(photos), "--model", str(checkpoint), "--json", "--device", "cpu"])
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row["caption"] for row in rows] == [each["generated_text"] for each in expected]
    assert [row["confidence"] for row in rows] == pytest.approx([each["confidence"] for each in expected], abs=2e-4)
    shown = AppCaptioner.load(checkpoint, "cpu").describe(paths[0])[0].to_json()
    assert shown["confidence"] == pytest.approx(expected[0]["confidence"], abs=2e-4)


def test_a_captioner_that_is_not_calibrated_says_so(tmp_path: Path, photos: Path) -> None:
    save_tiny_checkpoint(tmp_path / "plain")
    pipeline = ImageToTextPipeline.from_pretrained(tmp_path / "plain")
    photo = str(next(photos.iterdir()))
    assert pipeline(photo, return_scores=True)[0]["confidence"] is None and "confidence" not in pipeline(photo)[0]
    run = ["caption", photo, "--model", str(tmp_path / "plain")]
    done = CliRunner().invoke(app, [*run, "--min-confidence", "0.5"])
    assert done.exit_code == 2 and "nic calibrate" in done.stderr and len(done.stderr.splitlines()) == 1
    assert "confidence" not in json.loads(CliRunner().invoke(app, [*run, "--json"]).stdout)
    (tmp_path / "onnx").mkdir()
    (tmp_path / "onnx" / "nic_onnx.json").write_text("{}")
    with pytest.raises(ValueError, match="ONNX captioners give no confidence"):
        check_calibrated(str(tmp_path / "onnx"))


def test_captions_below_min_confidence_are_left_out_and_counted(
    checkpoint: Path, photos: Path, tmp_path: Path
) -> None:
    run = ["caption", str(photos), "--model", str(checkpoint), "--device", "cpu"]
    rows = [json.loads(line) for line in CliRunner().invoke(app, [*run, "--json"]).stdout.splitlines()]
    limit = sorted(row["confidence"] for row in rows)[2]
    done = CliRunner().invoke(app, [*run, "--json", "--min-confidence", str(limit)])
    assert [json.loads(line) for line in done.stdout.splitlines()] == [r for r in rows if r["confidence"] >= limit]
    assert "2 photos left out: no caption reached --min-confidence" in done.stderr and done.exit_code == 0
    done = CliRunner().invoke(app, [*run, "--output", str(tmp_path / "c.json"), "--min-confidence", str(limit)])
    assert {*json.loads((tmp_path / "c.json").read_text("utf-8"))[0]} <= {"image_id", "caption", "file_name"}
    assert len(json.loads((tmp_path / "c.json").read_text("utf-8"))) == len(rows) - 2


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
@pytest.mark.parametrize("number", [1, 2])
def test_files_keep_confidences(suffix: str, number: int, tmp_path: Path) -> None:
    records = [CaptionRecord("a.jpg", ["=a dog", "a cat"][:number], [0.75, 0.5][:number])]
    records += [CaptionRecord("b.jpg", ["a man"], [0.25])]  # its second caption was left out
    FORMATS[suffix].write(records, tmp_path / f"captions{suffix}", number)
    assert list(FORMATS[suffix].read(tmp_path / f"captions{suffix}")) == records


def test_probable_words_are_not_green_where_the_caption_is_doubtful() -> None:
    def shown(confidence: float | None, *, is_unlike: bool = False) -> str:
        return caption_html(ScoredCaption("a dog", 0.8, (ScoredWord("dog", 0.9),), True, confidence, is_unlike))

    assert "hsl(5 " in shown(0.04, is_unlike=True) and "unlike the photos that it was trained on" in shown(
        0.04, is_unlike=True
    )
    assert "confidence <b>73 %</b>" in shown(0.73) and "hsl(150 " in shown(0.73) and "hsl(40 " in shown(0.3)
    assert "not calibrated" in shown(None) and "hsl(" not in shown(None)


def test_odd_pictures_are_of_all_kinds_and_the_same_for_a_seed() -> None:
    first, again = list(odd_pictures(2 * len(ODD_KINDS), 3)), list(odd_pictures(2 * len(ODD_KINDS), 3))
    assert {kind for kind, _ in first} == set(ODD_KINDS)
    assert all(a.tobytes() == b.tobytes() for (_, a), (_, b) in zip(first, again, strict=True))
    assert len({picture.tobytes() for _, picture in first}) == len(first)


def test_the_captioner_of_the_package_doubts_what_is_no_photo(flickr8k: Path) -> None:
    captioner = load_captioner(captioner_path(), "cpu")

    def confidences(pictures: list) -> np.ndarray:
        pairs = caption_batch(captioner, [captioner.prepare(each) for each in pictures], 1, with_confidence=True)
        return np.array([own[0][1] for own in pairs])

    rows = load_captions(flickr8k, "test").select(range(48))
    known = confidences([row["image"].convert("RGB") for row in rows])
    odd = confidences([picture for _, picture in odd_pictures(30, seed=20)])  # not those that it was fitted on
    assert odd.max() < np.quantile(known, 0.25) and odd.mean() < 0.1
    assert 0.3 < known.mean() < 0.55


def test_nic_calibrate_fits_a_captioner_on_dev_and_changes_nothing_else(flickr8k: Path, tmp_path: Path) -> None:
    data, folder = make_subset(flickr8k, tmp_path / "data", train=2, dev=60), tmp_path / "captioner"
    shutil.copytree(captioner_path(), folder)
    config = json.loads((folder / "config.json").read_text("utf-8"))
    del config["confidence"]
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    run = ["calibrate", str(folder), "--data", str(data), "--cache-dir", str(tmp_path / "features"), "--json"]
    few = CliRunner().invoke(app, [*run, "--split", "train"])
    assert few.exit_code == 2 and "2 photos in split 'train'; a calibration needs 50 or more" in few.stderr
    assert before == {file.name: file.read_bytes() for file in folder.iterdir()}
    done = CliRunner().invoke(app, run)
    assert done.exit_code == 0, done.stderr
    found = json.loads(done.stdout)
    after = json.loads((folder / "config.json").read_text("utf-8"))
    assert after.pop("confidence") == found["calibration"] and after == config
    assert {name: (folder / name).read_bytes() for name in before if name != "config.json"} == {
        name: content for name, content in before.items() if name != "config.json"
    }
    numbers = Calibration(**found["calibration"])
    assert numbers.log_probability > 0 > numbers.unlikeness
    assert found["photos"] == 60 and 0.2 < found["accepted"] < 0.7 and found["odd"] < 0.3
    assert found["held_out"]["ece"] < 0.25
