"""Image features of a frozen backbone, computed once and kept on disk."""

import hashlib
import json
import logging
import math
import os
import time
import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import torch
from safetensors import safe_open
from safetensors.torch import save
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from ..backbone_nic import NICEncoder
from ..images_nic import load_photo
from ..inference_nic import faster_encoder
from ..modeling_nic import NICForConditionalGeneration
from ..processing_nic import NICProcessor
from ..progress_bar import progress_bar
from .augmentation import PhotoView
from .lower_blocks import LowerBlocks
from .problems import ITEMS_IN_WARNING

logger = logging.getLogger(__name__)

PHOTOS_A_CHUNK = 1024
REGION_PHOTOS_A_CHUNK = 128  # a chunk is held in memory whole, and 49 regions are 49 times a pooled feature

# Part of every key: raised when the same photo, weights and preprocessing have to give another file.
_LAYOUT = "nic_hf features 1"
# What says where settings came from, and not what they are.
_PROVENANCE = ("_name_or_path", "auto_map", "processor_class", "transformers_version")
_STALE_SECONDS = 3600
_REGIONS_A_BLOCK = 8192
_DTYPES = (torch.float32, torch.float16)


def default_cache_dir() -> Path:
    """`$NIC_HF_CACHE`, else `nic_hf/features` beside the caches of the other Hugging Face libraries."""
    home = os.environ.get("NIC_HF_CACHE")
    hf_home = Path(os.environ.get("HF_HOME", "~/.cache/huggingface")).expanduser()
    return Path(home).expanduser() if home else hf_home / "nic_hf" / "features"


class FeatureFile(NamedTuple):
    """A file of the cache, found whole: one chunk of the photos.

    Attributes:
        path: safetensors with `features`, of shape `(photos, feature_size)`, or `(photos, num_regions, feature_size)`
            for a model with attention, and `readable`, of shape `(photos,)`.
        offset: where in the file the features start, in bytes.
        shape: of what there is of a photo.
        dtype: number format of the features.
        unreadable: positions of the photos that could not be read.
    """

    path: Path
    offset: int
    shape: tuple[int, ...]
    dtype: torch.dtype
    unreadable: tuple[int, ...]


class FeatureTable:
    """Features of an ordered list of photos, in the cache's files.

    Holds paths, no tensors and no open files: it can be pickled into the workers of a data loader. A feature is read
    when it is asked for, from what is the system's page cache after the first time. Mapping the files into memory
    would count every page that was read as the process's own, so that its memory would grow with the photos.
    """

    # What the model takes them as: not the features themselves, where they come from a part of the backbone only.
    input_name = "encoder_outputs"

    def __init__(self, files: Sequence[FeatureFile], num_photos: int, photos_a_chunk: int = PHOTOS_A_CHUNK) -> None:
        self.files = list(files)
        self.num_photos = num_photos
        self.photos_a_chunk = photos_a_chunk

    def __len__(self) -> int:
        return self.num_photos

    def __getitem__(self, row: int) -> torch.Tensor:
        """The feature of the photo at `row`, in float32.

        Its shape is `(feature_size,)`, or `(num_regions, feature_size)` for a model with attention.

        Raises:
            IndexError: there is no such photo.
            OSError: naming the file, where it is gone or was cut short since the cache was opened.
        """
        if not 0 <= row < self.num_photos:
            raise IndexError(f"photo {row} of {self.num_photos}")
        path, offset, shape, dtype, _ = self.files[row // self.photos_a_chunk]
        size = math.prod(shape) * dtype.itemsize
        with path.open("rb", buffering=0) as file:
            file.seek(offset + row % self.photos_a_chunk * size)
            content = bytearray(file.read(size))
        if len(content) < size:
            raise OSError(f"{path}: was cut short while in use; compute the features again")
        return torch.frombuffer(content, dtype=dtype).view(shape).float()

    def chunks(self) -> Iterator[torch.Tensor]:
        """Blocks of features, of shape `(photos, ...)` as in [`FeatureFile`], of the photos that could be read."""
        for file in self.files:
            with safe_open(file.path, "pt") as content:
                yield content.get_tensor("features")[content.get_tensor("readable").bool()].float()

    def unreadable_rows(self) -> list[int]:
        """Rows of photos that could not be read; their features are zeros."""
        return [
            index * self.photos_a_chunk + position
            for index, file in enumerate(self.files)
            for position in file.unreadable
        ]

    def statistics(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and standard deviation of each feature over the photos, each of shape `(feature_size,)`.

        Of regions, over the regions of all photos.
        """
        count, total, squares = 0, torch.zeros(()), torch.zeros(())
        blocks = (block for chunk in self.chunks() for block in chunk.flatten(0, -2).split(_REGIONS_A_BLOCK))
        for block in blocks:
            features = block.double()
            count += len(features)
            total = total + features.sum(0)
            squares = squares + features.square().sum(0)
        mean = total / count
        return mean.float(), (squares / count - mean.square()).clamp_min(0).sqrt().float()


def cache_features(
    model: NICForConditionalGeneration,
    processor: NICProcessor,
    photos: datasets.Dataset,
    cache_dir: str | os.PathLike | None = None,
    *,
    batch_size: int = 32,
    num_workers: int = 0,
    on_error: str = "raise",
    photos_a_chunk: int | None = None,
    dtype: torch.dtype = torch.float32,
    view: PhotoView | None = None,
    lower_blocks: LowerBlocks | None = None,
) -> FeatureTable:
    """Run the backbone once over photos, or take the result of an earlier run.

    The cache is keyed by the backbone's weights, the preprocessing and the bytes of the photos, in chunks of 1,024:
    what did not change is not computed again, what changed is. A chunk appears under its name only when it is whole,
    so a run that is killed loses one chunk at most; a chunk that was damaged since is computed again.

    For a model with attention the features are those of all regions: with 7 x 7 of 1,280 channels, 250 kB a photo.

    Args:
        model: its frozen backbone computes the features; it is put on the model's device.
        processor: the preprocessing.
        photos: a data set with a column `image` (see [`nic_hf.data.load_captions`]).
        cache_dir: where to keep the features; [`default_cache_dir`] where it is not given.
        batch_size: photos a forward pass.
        num_workers: processes that decode photos.
        on_error: `"raise"`, or `"skip"` to keep going past photos that cannot be read and list them in the log.
        photos_a_chunk: photos a file of the cache; 1,024 where it is not given, or 128 for a model with attention.
        dtype: number format in the files. `torch.float16` halves them, at an error of at most 0.05 %; what is read is
            float32 all the same.
        view: features of the photos seen this way, mirrored or cut; of the photos as they are where not given.
        lower_blocks: the frozen part of a backbone that is trained (see [`split_encoder`]); its outputs are kept, and
            given to the model as `pixel_values`.

    Raises:
        ValueError: where the backbone is not frozen, there are no photos, or a feature is too large for `dtype`.
        OSError: naming the first photo that cannot be read, or the folder where the cache cannot be written.
    """
    if on_error not in ("raise", "skip"):
        raise ValueError(f'on_error is {on_error!r}; it must be "raise" or "skip"')
    if dtype not in _DTYPES:
        raise ValueError(f"dtype is {dtype}; it must be torch.float32 or torch.float16")
    if photos_a_chunk is None:
        photos_a_chunk = PHOTOS_A_CHUNK if model.config.attention is None else REGION_PHOTOS_A_CHUNK
    trained = not model.encoder.frozen or any(weight.requires_grad for weight in model.encoder.parameters())
    if trained and lower_blocks is None:
        raise ValueError(
            "the backbone is not frozen: its features change as it learns, and cached ones would not follow; "
            "call model.set_backbone_frozen(True), or train on photos without a cache"
        )
    if not len(photos):
        raise ValueError("no photos to compute features of: the data set is empty")
    # Absolute, so that the table still opens its files after a change of working directory.
    folder = Path(cache_dir or default_cache_dir()).expanduser().absolute() / _encoder_key(
        model, processor, dtype, view, lower_blocks
    )
    images = photos.select_columns(["image"]).cast_column("image", datasets.Image(decode=False))
    paths = [folder / f"{chunk}.safetensors" for chunk in _chunk_keys(images, photos_a_chunk)]
    files = [_open(path) for path in paths]
    missing = [index for index, file in enumerate(files) if file is None]
    _tidy(folder, {file.path.name for file in files if file is not None})
    if missing:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OSError(f"cannot keep features in {folder}: {error}") from error
        rows_of = {
            index: range(index * photos_a_chunk, min((index + 1) * photos_a_chunk, len(images))) for index in missing
        }
        batches = [
            rows[start : start + batch_size] for rows in rows_of.values() for start in range(0, len(rows), batch_size)
        ]
        # One loader for all chunks: workers take seconds to start.
        loader: DataLoader = DataLoader(
            _Photos(images, processor, view),
            batch_sampler=batches,  # type: ignore[arg-type] # ranges serve as lists
            num_workers=num_workers,
            collate_fn=list,
            multiprocessing_context="spawn" if num_workers else None,
            generator=torch.Generator(),  # a loader draws from the global one otherwise, which a full cache would not
        )
        pixels = iter(loader)
        encoder = faster_encoder(model.encoder) if lower_blocks is None else lower_blocks
        with tqdm(total=sum(map(len, batches)), unit="photo", desc="Encoding photos") as progress:
            for index, rows in rows_of.items():
                of_chunk = islice(pixels, math.ceil(len(rows) / batch_size))
                chunk = _encode(model, encoder, images, rows, of_chunk, on_error, progress, dtype)
                files[index] = _keep(chunk, paths[index])
    table = FeatureTable([file for file in files if file is not None], len(images), photos_a_chunk)
    if lower_blocks is not None:
        table.input_name = "pixel_values"
    _report_unreadable(table, images, on_error)
    return table


def _report_unreadable(table: FeatureTable, images: datasets.Dataset, on_error: str) -> None:
    unreadable = table.unreadable_rows()
    if not unreadable:
        return
    if on_error == "raise":
        first = images[unreadable[0]]["image"]
        load_photo_row(first)  # raises, and says why
        path = table.files[unreadable[0] // table.photos_a_chunk].path
        raise OSError(f"{photo_name(first)}: could not be read when its feature was computed; remove {path}")
    if len(unreadable) == len(images):
        raise OSError(f"none of {len(images)} photos can be read; the first is {photo_name(images[0]['image'])}")
    warn_unreadable(images, unreadable)


class _Photos(torch.utils.data.Dataset):
    """Preprocessed photos for a data loader's workers; `None` in place of one that cannot be read."""

    def __init__(self, images: datasets.Dataset, processor: NICProcessor, view: PhotoView | None) -> None:
        self.images, self.processor, self.view = images, processor, view

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, row: int) -> torch.Tensor | None:
        try:
            photo = load_photo_row(self.images[row]["image"])
        except OSError:
            return None
        if self.view is not None:
            photo = self.view(photo)
        return self.processor(images=photo, return_tensors="pt")["pixel_values"][0]


def _encode(
    model: NICForConditionalGeneration,
    encoder: NICEncoder | LowerBlocks,
    images: datasets.Dataset,
    rows: range,
    batches: Iterable[list[torch.Tensor | None]],
    on_error: str,
    progress: tqdm,
    dtype: torch.dtype,
) -> dict[str, torch.Tensor]:
    """Features of the photos at `rows`, and which of them could be read: the tensors of a [`FeatureFile`]."""
    size = model.image_projection.linear.in_features
    # How many regions there are shows with the first photo; of a chunk without one, nothing is ever read.
    features = torch.zeros(len(rows), size) if model.config.attention is None else torch.zeros(len(rows), 1, size)
    features = features.to(dtype)
    readable = torch.zeros(len(rows), dtype=torch.uint8)
    start = 0
    for batch in batches:
        found = [position for position, pixels in enumerate(batch, start) if pixels is not None]
        if on_error == "raise" and len(found) < len(batch):
            # Raised here and not in a worker, which would wrap its whole traceback into the message.
            lost = next(position for position, pixels in enumerate(batch, start) if pixels is None)
            load_photo_row(images[rows[lost]]["image"])
        if found:
            pixel_values = torch.stack([pixels for pixels in batch if pixels is not None]).to(model.device)
            with torch.inference_mode():
                encoded = encoder(pixel_values).last_hidden_state.float().cpu()
            if model.config.attention is None or isinstance(encoder, LowerBlocks):
                encoded = encoded.squeeze(1)
            if features.shape[1:] != encoded.shape[1:]:
                features = features.new_zeros(len(rows), *encoded.shape[1:])
            features[found] = encoded.to(dtype)
            if not features[found].isfinite().all() and encoded.isfinite().all():
                raise ValueError(f"features up to {encoded.abs().max():.3g} do not fit {dtype}; use torch.float32")
            readable[found] = 1
        start += len(batch)
        progress.update(len(batch))
    return {"features": features, "readable": readable}


def _keep(tensors: dict[str, torch.Tensor], path: Path) -> FeatureFile:
    """Write a chunk whole or not at all; tidy up behind runs that were killed while writing."""
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex}.tmp")
    problem: Exception | None = None
    try:
        save_file(tensors, temporary, metadata={"checksum": _checksum(tensors)})
        os.replace(temporary, path)  # noqa: PTH105 - replaces an existing file on Windows too
    except OSError as error:
        problem = error
    finally:
        temporary.unlink(missing_ok=True)
    # Where it failed, another process that computed the same chunk may have put it in place and tidied up.
    kept = _open(path)
    if kept is None:
        raise OSError(
            f"cannot keep features in {path.parent}: {problem or 'what was written is damaged'}"
        ) from problem
    _tidy(path.parent, {path.name})
    return kept


def save_file(tensors: dict[str, torch.Tensor], path: Path, metadata: dict[str, str]) -> None:
    """As that of safetensors, which writes under a name of its own first, and leaves that file where it is killed."""
    path.write_bytes(save(tensors, metadata))


def _tidy(folder: Path, kept: set[str]) -> None:
    """Remove what runs that were killed left of these chunks, which are whole, and of any others an hour ago."""
    for leftover in folder.glob("*.tmp"):
        with suppress(OSError):  # another process was faster, Windows has it open, or the cache is read only
            chunk = leftover.name.rsplit(".", 2)[0]
            if chunk in kept or time.time() - leftover.stat().st_mtime > _STALE_SECONDS:
                leftover.unlink()


def _open(path: Path) -> FeatureFile | None:
    """Check a file; `None` where it is missing or damaged: a disk that filled up may hold less than was written."""
    try:
        with safe_open(path, "pt") as content:
            tensors = {name: content.get_tensor(name) for name in ("features", "readable")}
            checksum = (content.metadata() or {}).get("checksum")
    except Exception:  # safetensors raises an exception of its own for a damaged file
        return None
    if checksum != _checksum(tensors):
        return None
    with path.open("rb") as raw:  # layout: 8 bytes with the header's length, the header, the tensors
        length = int.from_bytes(raw.read(8), "little")
        header = json.loads(raw.read(length))
    return FeatureFile(
        path=path,
        offset=8 + length + header["features"]["data_offsets"][0],
        shape=tuple(tensors["features"].shape[1:]),
        dtype=tensors["features"].dtype,
        unreadable=tuple((tensors["readable"] == 0).nonzero().flatten().tolist()),
    )


def _checksum(tensors: dict[str, torch.Tensor]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for name in ("features", "readable"):
        digest.update(tensors[name].numpy().data)
    return digest.hexdigest()


def load_photo_row(image: dict[str, Any]) -> Any:
    """Decode an undecoded `datasets.Image` value.

    Raises:
        OSError: naming its file, where it is missing or cannot be read.
    """
    path = image["path"]
    if image["bytes"] is None and "://" not in path and not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        return load_photo(path if image["bytes"] is None else image["bytes"], name=photo_name(image))
    except ValueError as error:
        raise OSError(f"{photo_name(image)}: cannot read it as an image: {error}") from error


def photo_name(image: dict[str, Any]) -> str:
    """The path of an undecoded `datasets.Image` value, for messages."""
    return image["path"] or "a photo without a file name"


def warn_unreadable(images: datasets.Dataset, rows: Sequence[int]) -> None:
    """Log how many photos cannot be read, and which."""
    names = [photo_name(images[row]["image"]) for row in rows[:ITEMS_IN_WARNING]]
    more = f" and {len(rows) - len(names)} more" if len(rows) > len(names) else ""
    logger.warning("%d of %d photos cannot be read: %s%s", len(rows), len(images), ", ".join(names), more)


def _chunk_keys(images: datasets.Dataset, photos_a_chunk: int) -> list[str]:
    """A digest of the photos of each chunk."""
    keys = []
    digest = hashlib.sha256()
    progress = progress_bar(images, unit="photo", desc="Checking photos", hidden=len(images) < 2 * PHOTOS_A_CHUNK)
    for row, example in enumerate(progress, start=1):
        digest.update(hashlib.blake2b(_photo_bytes(example["image"]), digest_size=16).digest())
        if row % photos_a_chunk == 0 or row == len(images):
            keys.append(digest.hexdigest()[:32])
            digest = hashlib.sha256()
    return keys


def _photo_bytes(image: dict[str, Any]) -> bytes:
    """The bytes of a photo's file; of one that is gone, its name."""
    if image["bytes"] is not None:
        return image["bytes"]
    try:
        return Path(image["path"]).read_bytes()
    except OSError:
        return f"missing: {image['path']}".encode()


def _encoder_key(
    model: NICForConditionalGeneration,
    processor: NICProcessor,
    dtype: torch.dtype,
    view: PhotoView | None,
    lower_blocks: LowerBlocks | None,
) -> str:
    """A digest of all that a feature depends on besides the photo: architecture, weights and preprocessing."""
    settings: list[Any] = [
        _LAYOUT,
        model.encoder.backbone.config.to_dict(),
        model.config.use_backbone_pooler,
        processor.image_processor.to_dict(),
        str(model.dtype),
    ]
    # Only where they are used, so that files of versions that had neither are still found.
    if model.config.attention is not None:
        settings.append("regions")
    if model.config.feature_layers is not None:
        settings.append(f"layers {model.config.feature_layers}")
    if lower_blocks is not None:
        settings.append(f"blocks up to {lower_blocks.last}")
    if dtype != torch.float32:
        settings.append(f"stored as {dtype}")
    if view is not None:
        settings.append(f"seen as {view}")
    settings = [
        {key: value for key, value in part.items() if key not in _PROVENANCE} if isinstance(part, dict) else part
        for part in settings
    ]
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode())
    for name, tensor in sorted(model.encoder.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()[:32]
