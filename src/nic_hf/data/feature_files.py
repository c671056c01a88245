"""Files of image features, one per chunk of photos, with checksums that are verified on reading."""

import json
import math
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from ..digests import digest_of
from ..writing import replacing

PHOTOS_A_CHUNK = 1024

_DTYPES = {"F32": torch.float32, "F16": torch.float16}
_SMALL = ("readable", "checksums", "sums")
_CHECKSUM_BYTES = 4


class FeatureFile(NamedTuple):
    """A file of the cache, for one chunk of photos.

    Attributes:
        path: safetensors file with `features` of shape `(photos, feature_size)`, or `(photos, num_regions,
            feature_size)` for a model with attention; `readable` of shape `(photos,)`; `checksums`, the CRC-32 of each
            photo's features; and `sums` of shape `(2, feature_size)`: sums of the features and of their squares over
            the readable photos.
        offset: where the features start in the file, in bytes.
        shape: shape of a photo's features.
        dtype: dtype of the features.
        unreadable: positions of photos that could not be read.
        checks: where the checksums start in the file, in bytes.
    """

    path: Path
    offset: int
    shape: tuple[int, ...]
    dtype: torch.dtype
    unreadable: tuple[int, ...]
    checks: int


class FeatureTable:
    """Features of an ordered list of photos, in the files of the cache.

    The table holds neither tensors nor open files and can be pickled. A feature is read from its file when it is
    accessed, and verified the first time. Files are not memory-mapped because every page read would count as memory
    of the process.
    """

    # Name of the model input: other than the default where the features are outputs of a part of the backbone.
    input_name = "encoder_outputs"

    def __init__(self, files: Sequence[FeatureFile], num_photos: int, photos_a_chunk: int = PHOTOS_A_CHUNK) -> None:
        self.files = list(files)
        self.num_photos = num_photos
        self.photos_a_chunk = photos_a_chunk
        self._checked = bytearray(num_photos)

    def __getstate__(self) -> dict[str, Any]:
        """State for another process, which verifies checksums itself."""
        return {**vars(self), "_checked": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _checked=bytearray(state["num_photos"]))

    def __len__(self) -> int:
        return self.num_photos

    def __getitem__(self, row: int) -> torch.Tensor:
        """Return the feature of the photo at `row` in float32.

        Its shape is `(feature_size,)`, or `(num_regions, feature_size)` for a model with attention.

        Raises:
            IndexError: there is no such photo.
            OSError: the file is damaged, missing or truncated; the message names it.
        """
        if not 0 <= row < self.num_photos:
            raise IndexError(f"photo {row} of {self.num_photos}")
        own, position = self.files[row // self.photos_a_chunk], row % self.photos_a_chunk
        size = math.prod(own.shape) * own.dtype.itemsize
        with own.path.open("rb", buffering=0) as file:
            file.seek(own.offset + position * size)
            content = bytearray(file.read(size))
            if len(content) < size:
                raise OSError(f"{own.path}: was truncated while in use; compute the features again")
            if not self._checked[row]:
                file.seek(own.checks + position * _CHECKSUM_BYTES)
                if zlib.crc32(content) != int.from_bytes(file.read(_CHECKSUM_BYTES), "little"):
                    raise _damaged(own.path, f"the features of its photo {position} are not what was written")
                self._checked[row] = True
        return torch.frombuffer(content, dtype=own.dtype).view(own.shape).float()

    def chunks(self) -> Iterator[torch.Tensor]:
        """Yield blocks of features of the readable photos, with shapes as in [`FeatureFile`].

        Raises:
            OSError: the file is damaged or missing; the message names it.
        """
        for index, file in enumerate(self.files):
            start = index * self.photos_a_chunk
            positions = set(range(min(self.photos_a_chunk, self.num_photos - start))).difference(file.unreadable)
            if positions:
                yield torch.stack([self[start + position] for position in sorted(positions)])

    def unreadable_rows(self) -> list[int]:
        """Return the rows of photos that could not be read; their features are zeros."""
        return [
            index * self.photos_a_chunk + position
            for index, file in enumerate(self.files)
            for position in file.unreadable
        ]

    def statistics(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return mean and standard deviation of each feature over all photos (and regions).

        Both have shape `(feature_size,)`.
        """
        count, sums = 0, torch.zeros(())
        for index, file in enumerate(self.files):
            photos = min(self.photos_a_chunk, self.num_photos - index * self.photos_a_chunk) - len(file.unreadable)
            if not photos:
                continue
            count += photos * math.prod(file.shape[:-1])
            with safe_open(file.path, "pt") as content:
                sums = sums + content.get_tensor("sums")
        mean, squares = sums / count
        return mean.float(), (squares - mean.square()).clamp_min(0).sqrt().float()


def open_file(path: Path) -> FeatureFile | None:
    """Open a file without reading its features; `None` if it is missing, truncated or not such a file."""
    try:
        with safe_open(path, "pt") as content:  # verifies the header and the length of the file
            tensors = {name: content.get_tensor(name) for name in _SMALL}
            metadata = content.metadata() or {}
        with path.open("rb") as raw:  # layout: 8 bytes with the length of the header, header, tensors
            length = int.from_bytes(raw.read(8), "little")
            header = json.loads(raw.read(length))
        if metadata["checksum"] != _checksum(tensors):
            return None
        return FeatureFile(
            path=path,
            offset=8 + length + header["features"]["data_offsets"][0],
            shape=tuple(header["features"]["shape"][1:]),
            dtype=_DTYPES[header["features"]["dtype"]],
            unreadable=tuple((tensors["readable"] == 0).nonzero().flatten().tolist()),
            checks=8 + length + header["checksums"]["data_offsets"][0],
        )
    except (SafetensorError, OSError, ValueError, KeyError):
        return None


def write_file(path: Path, features: torch.Tensor, readable: torch.Tensor) -> FeatureFile:
    """Write a chunk atomically.

    Raises:
        OSError: it cannot be written.
    """
    problem: OSError | None = None
    try:
        _write(path, features, readable)
    except OSError as error:
        problem = error
    # After a failure, another process that computed the same chunk may have written it.
    kept = open_file(path)
    if kept is None:
        reason = (problem and problem.__cause__) or problem or "what was written is damaged"
        raise OSError(f"cannot write features to {path.parent}: {reason}") from problem
    return kept


def _write(path: Path, features: torch.Tensor, readable: torch.Tensor) -> None:
    checksums = np.array([zlib.crc32(row.numpy().data) for row in features.contiguous()], dtype=np.uint32)
    tensors = {
        "features": features,
        "readable": readable,
        "checksums": torch.from_numpy(checksums),
        "sums": _sums(features, readable.bool()),
    }
    with replacing(path, sync=False) as temporary:  # checksums reveal what a power failure leaves
        save_file(tensors, temporary, {"checksum": _checksum(tensors)})


def save_file(tensors: dict[str, torch.Tensor], path: Path, metadata: dict[str, str]) -> None:
    """Save without the temporary file of `safetensors.torch.save_file`, which remains if the process is killed."""
    path.write_bytes(save(tensors, metadata))


def _damaged(path: Path, what: str) -> OSError:
    """Return the error for a damaged file, which is removed so that the next start computes it again."""
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        return OSError(f"{path}: {what}; remove it ({error}) and start again, to compute them again")
    return OSError(f"{path}: {what}; it was removed, and the next start computes them again")


def _sums(features: torch.Tensor, readable: torch.Tensor) -> torch.Tensor:
    """Return sums of features and of their squares over readable photos and their regions."""
    values = features[readable].flatten(0, -2).double()
    return torch.stack([values.sum(0), values.square().sum(0)])


def _checksum(tensors: dict[str, torch.Tensor]) -> str:
    """Digest of all tensors but the features, which have checksums of their own."""
    return digest_of(tensors[name].numpy().data for name in _SMALL)
