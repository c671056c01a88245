"""Fuzz tar files of photos and captions, plain and gzipped."""

import tempfile
from pathlib import Path

from harness import fuzz, instrumented

with instrumented():
    from nic_hf.data.errors import CaptionDataError
    from nic_hf.data.tar_shards import tar_rows

_FOLDER = tempfile.TemporaryDirectory()


def check(data: bytes) -> None:
    """The first byte selects the suffix, the rest is the file."""
    if not data:
        return
    shard = Path(_FOLDER.name, ("shard.tar", "shard.tar.gz")[data[0] % 2])
    shard.write_bytes(data[1:])
    for row in tar_rows([str(shard)], "skip"):
        assert row["problem"] or (row["image"]["bytes"] and row["captions"])
        assert row["problem"] is None or str(shard) in row["problem"], row["problem"]
    try:
        for row in tar_rows([str(shard)], "raise"):
            assert row["image"]["bytes"] and row["captions"]
    except CaptionDataError as error:
        assert str(shard) in str(error), f"names no file: {error}"
    assert [path.name for path in Path(_FOLDER.name).iterdir()] == [shard.name], "something was unpacked"
    shard.unlink()


if __name__ == "__main__":
    fuzz(check)
