"""Repositories on a Hub whose lists of files, and lists of shards, lead out of the cache: no file is written there."""

import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from datasets import Dataset, Image
from hub_server import HubServer
from tiny import CAPTIONS, tiny_model, tiny_photos, tiny_processor

import nic_hf

UP = ["../" * depth + f"evil-{depth}" for depth in (1, 3, 6, 12)]

SCRIPT = """
import json
from nic_hf import NICForConditionalGeneration, NICProcessor
from nic_hf.data import load_captions
from nic_hf.export import NICOnnxCaptioner

def outcome(act):
    try:
        return type(act()).__name__
    except (OSError, ValueError) as error:
        return f"{type(error).__name__}: {error}"

print(json.dumps({
    "model": outcome(lambda: NICForConditionalGeneration.from_pretrained("someone/captioner")),
    "processor": outcome(lambda: NICProcessor.from_pretrained("someone/captioner")),
    "sharded": outcome(lambda: NICForConditionalGeneration.from_pretrained("someone/sharded")),
    "onnx": outcome(lambda: NICOnnxCaptioner.from_pretrained("someone/captioner")),
    "photos": outcome(lambda: load_captions("someone/photos", "train")),
}))
"""


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def hostile_hub(tmp_path: Path):
    """A captioner, one in shards of which the first leads elsewhere, and a data set; each with files named `../`."""
    tiny_model().save_pretrained(tmp_path / "whole")
    tiny_processor().save_pretrained(tmp_path / "whole")
    tiny_model().save_pretrained(tmp_path / "sharded", max_shard_size="4KB")
    whole, sharded = files_of(tmp_path / "whole"), files_of(tmp_path / "sharded")
    index = json.loads(sharded["model.safetensors.index.json"])
    first = sorted(set(index["weight_map"].values()))[0]
    elsewhere = f"{UP[1]}.safetensors"
    index["weight_map"] = {name: elsewhere if shard == first else shard for name, shard in index["weight_map"].items()}
    sharded |= {"model.safetensors.index.json": json.dumps(index).encode(), elsewhere: sharded.pop(first)}
    table = io.BytesIO()
    rows = {"image": tiny_photos(3), "image_id": list("abc"), "captions": [[CAPTIONS[0]]] * 3}
    Dataset.from_dict(rows).cast_column("image", Image()).to_parquet(table)
    evil = {f"{name}{suffix}": b"evil" for name in UP for suffix in (".json", ".py", ".txt")}
    with HubServer() as hub:
        hub.add("someone/captioner", {**whole, **evil})
        hub.add("someone/sharded", {**sharded, **evil})
        photos = {"data/train-00000-of-00001.parquet": table.getvalue()}
        hub.add("someone/photos", {**photos, **{f"{name}.parquet": table.getvalue() for name in UP}}, "dataset")
        for folder in ("whole", "sharded"):
            shutil.rmtree(tmp_path / folder)
        yield hub


def test_nothing_is_written_outside_of_the_cache(hostile_hub: HubServer, tmp_path: Path) -> None:
    deep = tmp_path / "a/b/c/d/e/f/g"  # `../` leads to folders that can be looked at
    deep.mkdir(parents=True)
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))},
        "HF_ENDPOINT": hostile_hub.url,
        "HF_HOME": str(deep / "home"),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "PYTHONPATH": str(Path(nic_hf.__file__).parents[1]),
    }
    done = subprocess.run([sys.executable, "-c", SCRIPT], env=environment, cwd=deep, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    outcomes = json.loads(done.stdout.splitlines()[-1])
    assert outcomes["model"] == "NICForConditionalGeneration" and outcomes["processor"] == "NICProcessor"
    assert "Error: " in outcomes["sharded"], outcomes
    assert "Error: " in outcomes["onnx"], outcomes
    assert outcomes["photos"] == "Dataset" or "Error: " in outcomes["photos"], outcomes
    written = [path for path in tmp_path.rglob("*") if path.is_file() or path.is_symlink()]
    assert written and all(path.is_relative_to(deep / "home") for path in written), written
    assert not [path for path in written if path.name.startswith("evil") and "blobs" not in path.parts]
    assert not list(tmp_path.parent.glob("evil*"))
    print(outcomes)
