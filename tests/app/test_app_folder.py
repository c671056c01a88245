"""Many photos to a file, and captions as HTML."""

import json
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from nic_hf.app import AppCaptioner, ScoredCaption, ScoredWord
from nic_hf.app.caption_html import bars_html, caption_html, heat_map, maps_html, per_cent, table_html
from nic_hf.app.sent_photos import SentPhotos, caption_file
from nic_hf.captioning.caption_formats import caption_format


def test_a_folder_becomes_a_file_that_does_not_stay(
    captioner: AppCaptioner, photos: list[Path], tmp_path: Path
) -> None:
    again = tmp_path / photos[0].name
    again.write_bytes(photos[1].read_bytes())
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"no photo")
    told: list[int] = []
    settings = {"num_captions": 2, "num_beams": 3, "tell": told.append}
    with caption_file(captioner, [*photos, again, broken], ".jsonl", **settings) as (file, records, problems):
        rows = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
    assert not file.exists()
    names = [*(photo.name for photo in photos), "photo 0 (2).png"]
    assert [row["image_id"] for row in rows] == names
    expected = [captioner.caption(captioner.prepare(Image.open(path))[None], num_beams=3) for path in photos]
    assert [row["caption"] for row in rows[:-1]] == [captions[0] for captions in expected]
    assert rows[-1]["caption"] == rows[1]["caption"]
    assert all(len(row["captions"]) == 2 for row in rows)
    assert [(each.image_id, "cannot read it as a photo" in each.error) for each in problems] == [("broken.jpg", True)]
    assert told == list(range(1, 8))
    with caption_file(captioner, photos[:2], ".csv") as (file, records, _):
        assert list(caption_format(file).read(file)) == records


def test_what_cannot_be_read_is_named_without_its_folder(
    captioner: AppCaptioner, photos: list[Path], tmp_path: Path
) -> None:
    cut = tmp_path / "cut.jpg"
    Image.effect_noise((300, 300), 50).convert("RGB").save(cut)
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size // 2])
    (tmp_path / "odd.png").mkdir()
    missing = tmp_path / "missing.png"
    with caption_file(captioner, [photos[0], cut, tmp_path / "odd.png", missing], ".jsonl") as (_, records, broken):
        assert len(records) == 1
        assert [each.image_id for each in broken] == ["cut.jpg", "odd.png", "missing.png"]
        for each in broken:
            assert str(tmp_path) not in each.error and each.error.startswith(f"{each.image_id}: "), each
    assert "image file is truncated" in broken[0].error and "no longer here" in broken[2].error


def test_files_that_are_no_photos_are_left_out(captioner: AppCaptioner, photos: list[Path], tmp_path: Path) -> None:
    notes, unnamed = tmp_path / "notes.txt", tmp_path / "blob"
    notes.write_text("no photo")
    unnamed.write_bytes(photos[1].read_bytes())
    with caption_file(captioner, [photos[0], notes, unnamed], ".jsonl") as (_, records, broken):
        assert [record.image_id for record in records] == [photos[0].name, "blob"] and broken == []
    sent = SentPhotos([str(notes), str(photos[0])])
    assert sent.count() == 1 and sent.left_out == Counter({".txt": 1})


def test_words_are_escaped_and_coloured() -> None:
    words = (ScoredWord("<script>", 0.02, np.eye(2) / 2), ScoredWord('"&', 0.97, np.eye(2) / 2))
    caption = ScoredCaption('<script> "&', 0.0194, words)
    drawn = caption_html(caption) + bars_html([caption]) + maps_html(Image.new("RGB", (9, 9)), caption)
    drawn += table_html([("<b>.jpg", caption.text)], "1 of 1")
    assert "<script>" not in drawn and "<b>.jpg" not in drawn and "&lt;b&gt;.jpg" in drawn
    assert "&quot;&amp;<small>97 %</small>" in drawn
    assert "hsl(" not in caption_html(caption), "grey, as nobody knows how likely it is to be right"
    hues = {int(hue) for hue in re.findall(r"background:hsl\((\d+)", caption_html(replace(caption, confidence=0.04)))}
    assert hues == {5}, "red, although one word is probable"
    assert "width:26.9%" in bars_html([caption]), "the cube root of 0.0194: two words and the end"


def test_probabilities_are_short() -> None:
    assert [per_cent(each) for each in (1, 0.256, 0.0256, 0.00256, 1e-7)] == [
        "100 %", "26 %", "2.6 %", "0.26 %", "< 0.001 %",
    ]  # fmt: skip


def test_the_heat_is_where_the_weights_are() -> None:
    weights = np.zeros((4, 4))
    weights[0, 3] = 1.0
    drawn = np.asarray(heat_map(Image.new("RGB", (80, 40), "blue"), weights), dtype=int)
    assert drawn.shape == (40, 80, 3)
    brightness = drawn.sum(axis=2)
    assert brightness[:10, 60:].mean() > 3 * brightness[20:, :40].mean()
    cold = drawn[30, 10]
    assert cold.max() == cold.min(), "grey where nothing is looked at"
