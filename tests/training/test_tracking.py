"""Runs that are tracked: numbers and pictures, read back from where the tracker put them; and runs that stop early."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from workshop import Workshop

from nic_hf.data import CaptionDataset
from nic_hf.training import CaptioningTrainer, SampleCaptionsCallback


def test_tensorboard_has_scores_and_the_pictures_of_each_evaluation(workshop: Workshop, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train = CaptionDataset(workshop.photos("train"), workshop.processor.tokenizer)
    samples = SampleCaptionsCallback(workshop.photos("dev").first(2))
    trainer = workshop.trainer(
        tmp_path, train=train, callbacks=[samples], report_to="tensorboard", eval_strategy="epoch", logging_steps=1
    )
    trainer.train()
    folder = next(tmp_path.rglob("events.out.tfevents*")).parent
    events = EventAccumulator(str(folder), size_guidance={"images": 0, "scalars": 0}).Reload()
    logged = {line["step"]: line["eval_cider"] for line in trainer.state.log_history if "eval_cider" in line}
    assert {event.step: pytest.approx(event.value) for event in events.Scalars("eval/cider")} == logged
    assert {"train/loss", "eval/bleu_4"} <= set(events.Tags()["scalars"])
    pictures = events.Images("samples")
    assert [picture.step for picture in pictures] == sorted(logged)
    for picture in pictures:
        with Image.open(tmp_path / "samples" / f"step-{picture.step:08d}.png") as sheet:
            shown = Image.open(io.BytesIO(picture.encoded_image_string))
            assert np.array_equal(np.asarray(shown.convert("RGB")), np.asarray(sheet.convert("RGB")))


def test_trackio_has_scores_and_pictures(workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    trackio = pytest.importorskip("trackio")
    train = CaptionDataset(workshop.photos("train"), workshop.processor.tokenizer)
    samples = SampleCaptionsCallback(workshop.photos("dev").first(2))
    trainer = workshop.trainer(
        tmp_path / "run",
        train=train,
        callbacks=[samples],
        report_to="trackio",
        project="captions",
        run_name="one",
        eval_strategy="epoch",
        logging_steps=1,
    )
    trainer.train()
    trackio.finish()
    from trackio.sqlite_storage import SQLiteStorage

    rows = SQLiteStorage.get_logs("captions", "one")
    assert any("eval/cider" in row for row in rows) and any("train/loss" in row for row in rows)
    assert sum("samples" in row for row in rows) == 2
    assert list((tmp_path / "trackio").rglob("*.png")), "the pictures lie in its folder"


@pytest.mark.parametrize("ema_decay", [0.0, 0.5])
def test_training_stops_early_with_the_best_weights(workshop: Workshop, tmp_path: Path, ema_decay: float) -> None:
    """A learning rate that grows step by step ruins what was learned: CIDEr-D rises, then falls."""
    train = CaptionDataset(workshop.photos("train"), workshop.processor.tokenizer)
    trainer = workshop.trainer(
        tmp_path,
        train=train,
        num_train_epochs=30,
        learning_rate=0.02,
        eval_strategy="epoch",
        save_strategy="epoch",
        load_best_model_at_end=True,
        metric_for_best_model="eval_cider",
        early_stopping_patience=2,
        ema_decay=ema_decay,
    )
    trainer.train()
    scores = [line["eval_cider"] for line in trainer.state.log_history if "eval_cider" in line]
    best = max(scores)
    assert len(scores) < 30 and len(scores) == scores.index(best) + 3
    assert trainer.evaluate()["eval_cider"] == pytest.approx(best, abs=1e-9)


def test_the_smoothed_score_is_the_mean_of_three_evaluations_and_selects_the_checkpoint(
    workshop: Workshop, tmp_path: Path
) -> None:
    def trainer(folder: Path, epochs: int) -> CaptioningTrainer:
        train = CaptionDataset(workshop.photos("train"), workshop.processor.tokenizer)
        trainer = workshop.trainer(
            folder,
            train=train,
            num_train_epochs=epochs,
            learning_rate=0.02,
            eval_strategy="epoch",
            save_strategy="epoch",
            save_total_limit=100,
            load_best_model_at_end=True,
            metric_for_best_model="eval_cider_smoothed",
        )
        trainer.eval_dataset = train  # its captions are learned by heart, so scores rise, and then fall
        return trainer

    trainer(tmp_path, 8).train()
    resumed = trainer(tmp_path, 16)
    resumed.train(resume_from_checkpoint=True)
    lines = [line for line in resumed.state.log_history if "eval_cider" in line]
    scores = [line["eval_cider"] for line in lines]
    smoothed = [np.mean(scores[max(0, last - 2) : last + 1]) for last in range(len(scores))]
    assert len(scores) == 16 and len(set(scores)) > 5
    assert [line["eval_cider_smoothed"] for line in lines] == pytest.approx(smoothed)
    assert resumed.state.best_model_checkpoint.endswith(f"-{lines[int(np.argmax(smoothed))]['step']}")
    assert "eval_cider_smoothed" not in resumed.evaluate(), "after training there are no evaluations to smooth over"
