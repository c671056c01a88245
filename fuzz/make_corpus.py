"""Write the initial inputs of each target; run it again if a target changes."""

import gzip
import io
import json
import tarfile

from harness import CORPUS
from PIL import Image

KARPATHY = {
    "images": [
        {"filename": "a.jpg", "split": "train", "cocoid": 7, "sentences": [{"raw": "a dog"}, {"raw": "a cat, too"}]}
    ]
}
COCO = {"images": [{"id": 7, "file_name": "a.jpg"}], "annotations": [{"image_id": 7, "caption": "a dog"}]}
RESULTS = [{"image_id": 7, "caption": "a dog"}, {"image_id": "b", "caption": "a cat"}]


def shard() -> bytes:
    """One photo with a text file and a JSON file."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as tar:
        files = {"a.jpg": b"photo", "a.txt": b"a dog\na cat\n", "b.png": b"photo", "b.json": b'{"caption": "a cow"}'}
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return content.getvalue()[: 512 * 10]


def photos() -> dict[str, bytes]:
    """A small photo in several formats."""
    image = Image.radial_gradient("L").resize((24, 16)).convert("RGB")
    exif = Image.Exif()
    exif[0x0112] = 6
    found = {}
    for name in ("JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP", "PPM", "TGA", "ICO", "PCX", "SGI", "JPEG2000"):
        buffer = io.BytesIO()
        image.save(buffer, name, **({"exif": exif} if name in ("JPEG", "PNG", "WEBP") else {}))
        found[name.lower()] = buffer.getvalue()
    return found


def inputs() -> dict[str, dict[str, bytes]]:
    """Name and content by target."""
    lines = "\n".join(map(json.dumps, RESULTS)).encode() + b"\n"
    return {
        "caption_text": {
            "kaggle": b'\x00image,caption\na.jpg,a dog\na.jpg,"a ""cat"", too"\n',
            "kaggle-bom": b"\x00\xef\xbb\xbfimage,caption\r\n1.jpg,a dog\r\n../secret.jpg,a cat\r\n",
            "token": b"\x01a.jpg#0\ta dog\n1.jpg#1\ta cat\n",
            "lists": b"\x02a.jpg\n1.jpg\n",
            "csv": b'\x03file_name,caption_0,caption_1\na.jpg,a dog,"a cat, too"\n',
            "jsonl": b'\x04{"file_name": "a.jpg", "captions": ["a dog", {"raw": "a cat"}]}\n',
        },
        "caption_json": {
            "karpathy": b"\x01" + json.dumps(KARPATHY).encode(),
            "coco": b"\x00" + json.dumps(COCO).encode(),
        },
        "score_files": {
            "list": b"\x00" + json.dumps(RESULTS).encode(),
            "object": b'\x00{"7": "a dog", "b": "a cat"}',
            "references": b'\x00{"7": ["a dog", "a cat"]}',
            "coco": b"\x00" + json.dumps(COCO).encode(),
            "lines": b"\x01" + lines,
            "gzip": b"\x02" + gzip.compress(lines, mtime=0),
            "resumed-jsonl": b"\x03" + lines,
            "resumed-csv": b"\x07image_id,caption\na.jpg,a dog\n",
            "resumed-json": b"\x0b" + json.dumps(RESULTS).encode(),
        },
        "tar_shards": {"plain": b"\x00" + shard(), "gzip": b"\x01" + gzip.compress(shard(), mtime=0)},
        "photos": photos(),
    }


if __name__ == "__main__":
    for target, files in inputs().items():
        (CORPUS / target).mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            (CORPUS / target / name).write_bytes(content)
