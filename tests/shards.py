"""WebDataset shards of a few photos, as img2dataset and the like write them."""

import io
import json
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def write_tar(path: Path, members: Sequence[tuple[str, bytes]]) -> Path:
    """Write a tar file of members in order."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def write_shards(folder: Path, photos: Sequence[dict[str, Any]], sizes: Sequence[int]) -> list[str]:
    """Shards of so many photos each, from rows with `image` (bytes), `image_id`, `captions`; returns their paths."""
    rows = iter(photos)
    paths = []
    for number, size in enumerate(sizes):
        members = []
        for row in (next(rows) for _ in range(size)):
            key = Path(row["image_id"]).stem
            members.append((f"{key}.jpg", row["image"]))
            members.append((f"{key}.json", json.dumps({"captions": row["captions"]}).encode()))
        paths.append(str(write_tar(folder / f"train-{number:03d}.tar", members)))
    return paths


def photo_rows(rows: Any) -> list[dict[str, Any]]:
    """Rows of `load_captions`, with the bytes of the photos' files in place of the photos."""
    undecoded = rows.cast_column("image", type(rows.features["image"])(decode=False))
    return [{**row, "image": Path(row["image"]["path"]).read_bytes()} for row in undecoded]
