"""Cache of image features: a frozen backbone runs once per photo."""

import logging
import math
import os
from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import datasets
import torch
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from ..digests import settings_digest, weights_digest
from ..images import load_photo
from ..layers_nic import NICEncoder
from ..model.captioner import NICForConditionalGeneration
from ..model.encoder import faster_encoder
from ..model.processor import NICProcessor
from ..progress_bar import progress_bar
from ..writing import remove_leftovers
from .augmentation import PhotoView
from .errors import ITEMS_IN_WARNING
from .feature_files import PHOTOS_A_CHUNK, FeatureTable, open_file, write_file
from .lower_blocks import LowerBlocks
from .photo_digests import chunk_keys, photo_digests

logger = logging.getLogger(__name__)

REGION_PHOTOS_A_CHUNK = 128  # a chunk is held in memory, and 49 regions take 49 times the memory of a pooled feature

# Part of every key. Increase it when the same photo, weights and preprocessing have to give another file.
_LAYOUT = "nic_hf features 2"
_DTYPES = (torch.float32, torch.float16)


def default_cache_dir() -> Path:
    """Return `$NIC_HF_CACHE`, or `nic_hf/features` in the cache folder of Hugging Face."""
    home = os.environ.get("NIC_HF_CACHE")
    hf_home = Path(os.environ.get("HF_HOME", "~/.cache/huggingface")).expanduser()
    return Path(home).expanduser() if home else hf_home / "nic_hf" / "features"


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
    """Compute image features of photos with a frozen backbone, or load those computed before.

    The cache key covers the backbone's weights, the preprocessing and the content of the photos, in chunks of 1,024
    photos, so only what changed is computed again. Each photo file is read once and later recognised by path, size
    and times (see [`photo_digests`]). Chunks are written atomically: a killed run loses one chunk at most. A truncated
    chunk is computed again; other damage is found when a feature is read (see [`FeatureTable`]).

    For a model with attention, the features are those of all regions: 250 kB per photo for 7 x 7 regions of 1,280
    channels.

    Args:
        model: its frozen backbone computes the features, on the model's device.
        processor: the preprocessing.
        photos: a dataset with a column `image` (see [`nic_hf.data.load_captions`]).
        cache_dir: folder of the cache; [`default_cache_dir`] if not given.
        batch_size: photos per forward pass.
        num_workers: processes that decode photos.
        on_error: `"raise"`, or `"skip"` to leave out photos that cannot be read and list them in the log.
        photos_a_chunk: photos per file; 1,024 if not given, or 128 for a model with attention.
        dtype: dtype in the files. `torch.float16` halves them, with an error of at most 0.05 %; features are returned
            in float32 in either case.
        view: compute features of this view of the photos.
        lower_blocks: the frozen part of a backbone that is trained (see [`split_encoder`]); caches its outputs, which
            the model takes as `pixel_values`.

    Raises:
        ValueError: the backbone is not frozen, there are no photos, or a feature is too large for `dtype`.
        OSError: a photo cannot be read, or the cache cannot be written.
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
            "the backbone is not frozen, so cached features would become outdated; "
            "call model.set_backbone_frozen(True), or train on photos without a cache"
        )
    if not len(photos):
        raise ValueError("no photos to compute features of: the dataset is empty")
    # Absolute, so that the table can still open its files after a change of the working directory.
    root = Path(cache_dir or default_cache_dir()).expanduser().absolute()
    folder = root / _encoder_key(model, processor, dtype, view, lower_blocks)
    images = photos.select_columns(["image"]).cast_column("image", datasets.Image(decode=False))
    paths = [folder / f"{key}.safetensors" for key in chunk_keys(photo_digests(photos, root), photos_a_chunk)]
    files = [open_file(path) for path in paths]
    missing = [index for index, file in enumerate(files) if file is None]
    remove_leftovers(folder)
    if missing:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OSError(f"cannot write features to {folder}: {error}") from error
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
            generator=torch.Generator(),  # leaves the global one alone: the draws must not depend on a full cache
        )
        pixels = iter(loader)
        encoder = faster_encoder(model.encoder) if lower_blocks is None else lower_blocks
        with progress_bar(total=sum(map(len, batches)), unit="photo", desc="Encoding photos") as progress:
            for index, rows in rows_of.items():
                of_chunk = islice(pixels, math.ceil(len(rows) / batch_size))
                chunk = _encode(model, encoder, images, rows, of_chunk, on_error, progress, dtype)
                files[index] = write_file(paths[index], *chunk)
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
        load_photo_row(first)  # raises the reason
        path = table.files[unreadable[0] // table.photos_a_chunk].path
        raise OSError(f"{photo_name(first)}: could not be read when its feature was computed; remove {path}")
    if len(unreadable) == len(images):
        raise OSError(f"none of {len(images)} photos can be read; the first is {photo_name(images[0]['image'])}")
    warn_unreadable(images, unreadable)


class _Photos(torch.utils.data.Dataset):
    """Preprocessed photos for the workers of a data loader; `None` for a photo that cannot be read."""

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
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return features of the photos at `rows`, and which could be read (see [`FeatureFile`])."""
    size = model.image_projection.linear.in_features
    # The number of regions is known from the first photo. In a chunk without any photo, no feature is ever read.
    features = torch.zeros(len(rows), size) if model.config.attention is None else torch.zeros(len(rows), 1, size)
    features = features.to(dtype)
    readable = torch.zeros(len(rows), dtype=torch.uint8)
    start = 0
    for batch in batches:
        found = [position for position, pixels in enumerate(batch, start) if pixels is not None]
        if on_error == "raise" and len(found) < len(batch):
            # Raised here because a worker would wrap its traceback into the message.
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
    return features, readable


def load_photo_row(image: dict[str, Any]) -> Any:
    """Decode an undecoded `datasets.Image` value."""
    path = image["path"]
    if image["bytes"] is None and "://" not in path and not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        return load_photo(path if image["bytes"] is None else image["bytes"], name=photo_name(image))
    except ValueError as error:
        raise OSError(f"{photo_name(image)}: cannot read it as an image: {error}") from error


def photo_name(image: dict[str, Any]) -> str:
    """Return the path of an undecoded `datasets.Image` value, for messages."""
    return image["path"] or "a photo without a file name"


def warn_unreadable(images: datasets.Dataset, rows: Sequence[int]) -> None:
    """Log how many photos cannot be read, and the first of them."""
    names = [photo_name(images[row]["image"]) for row in rows[:ITEMS_IN_WARNING]]
    more = f" and {len(rows) - len(names)} more" if len(rows) > len(names) else ""
    logger.warning("%d of %d photos cannot be read: %s%s", len(rows), len(images), ", ".join(names), more)


def _encoder_key(
    model: NICForConditionalGeneration,
    processor: NICProcessor,
    dtype: torch.dtype,
    view: PhotoView | None,
    lower_blocks: LowerBlocks | None,
) -> str:
    """Digest of everything a feature depends on except the photo: architecture, weights and preprocessing."""
    settings: list[Any] = [
        _LAYOUT,
        model.encoder.backbone.config.to_dict(),
        model.config.use_backbone_pooler,
        processor.image_processor.to_dict(),
        str(model.dtype),
    ]
    # Only if they are used, so that existing files remain valid.
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
    return settings_digest(*settings, weights_digest(model.encoder))
