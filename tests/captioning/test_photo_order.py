"""The order of captions in a file, against Python's own dictionaries and sorting."""

import json
import random
from pathlib import Path

from nic_hf.captioning import CaptionFile, PhotoItem
from nic_hf.captioning.caption_formats import json_line


def test_records_come_in_the_order_of_the_photos(tmp_path: Path) -> None:
    """Places of this run, else the last note, else the record's own, else in front; the first record of a photo."""
    chance = random.Random(3)
    photos = [f"\udce9/{number}.jpg" for number in range(200)]
    met = {name: (chance.randrange(3), chance.randrange(10**12)) for name in chance.sample(photos, 90)}
    notes = [(name, (chance.randrange(3), chance.randrange(10**6))) for name in chance.choices(photos, k=120)]
    rows = [(name, (7, chance.randrange(10**6)) if chance.random() < 0.7 else None) for name in photos + photos[::3]]
    path = tmp_path / "captions.jsonl"
    lines: dict[Path, list[dict]] = {path: [], tmp_path / ".captions.jsonl.1.0.part": []}
    first: dict[str, tuple] = {}
    for number, (name, key) in enumerate(rows):
        lines[list(lines)[key is not None]].append(
            {"image_id": name, "caption": str(number)} | ({"key": key} if key else {})
        )
    own, part = lines.values()
    for number, row in enumerate(own + part):
        name = row["image_id"]
        place = met.get(name) or dict(notes).get(name) or row.get("key") or (-1, number)
        first.setdefault(name, (place, number, row["caption"]))
    part += [{"image_id": name, "key": key} for name, key in notes]
    for file, content in lines.items():
        file.write_bytes(b"".join(map(json_line, content)))
    (tmp_path / "captions.jsonl.run.json").write_text('{"made_by": {}}')

    captions = CaptionFile(path, {})
    captions.open()
    for name, key in met.items():
        assert captions.is_done(PhotoItem(name, name, key))
    captions.begin()
    captions.close()
    captions.finish(True)
    written = [json.loads(line)["caption"] for line in path.read_text("utf-8").splitlines()]
    assert written == [caption for *_, caption in sorted(first.values())]
