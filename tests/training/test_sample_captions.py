"""Sample captions, logged through training."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from workshop import Workshop

from nic_hf.dataset_captions import generate_captions
from nic_hf.training import SampleCaptionsCallback


def test_each_evaluation_writes_a_picture_and_a_line(
    workshop: Workshop, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    photos = workshop.photos("dev").first(3)
    trainer = workshop.trainer(
        tmp_path,
        max_steps=4,
        eval_strategy="steps",
        eval_steps=2,
        callbacks=[SampleCaptionsCallback(photos, max_new_tokens=6)],
    )
    trainer.train()

    folder = tmp_path / "samples"
    assert sorted(path.name for path in folder.iterdir()) == [
        "captions.jsonl",
        "step-00000002.png",
        "step-00000004.png",
    ]
    lines = [json.loads(line) for line in (folder / "captions.jsonl").read_text("utf-8").splitlines()]
    assert [line["step"] for line in lines] == [2, 4]
    assert lines[1]["captions"] == generate_captions(trainer.model, photos, progress=False, max_new_tokens=6)
    assert list(lines[1]["captions"]) == photos.image_ids()
    printed = capsys.readouterr().err
    assert all(f"{image_id}: {caption}" in printed for image_id, caption in lines[1]["captions"].items())

    with Image.open(folder / "step-00000004.png") as sheet:
        sheet.load()
        assert sheet.mode == "RGB" and sheet.width > 3 * 240 and sheet.height > 240


def test_watching_does_not_change_what_is_learned(workshop: Workshop, tmp_path: Path) -> None:
    learned = []
    for callbacks in ([], [SampleCaptionsCallback(workshop.photos("dev").first(2))]):
        trainer = workshop.trainer(
            tmp_path,
            workshop.captioner(dropout=0.5)[0],
            callbacks=callbacks,
            max_steps=4,
            eval_strategy="steps",
            eval_steps=1,
        )
        trainer.train()
        learned.append(trainer.model.lm_head.weight)
    assert torch.equal(*learned)
