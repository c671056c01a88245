"""`CaptionRun`: caption many photos in batches while threads read the next ones."""

import logging
import os
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..contact_sheet import contact_sheet, save_picture
from ..digests import number_digest
from ..images import load_photo
from ..progress_bar import progress_bar
from .caption_file import CaptionFile
from .caption_sinks import KEPT_FOR_SHEET, CaptionSink
from .captioners import Captioner, caption_batch
from .photo_loader import LoadedPhoto, PhotoLoader
from .photo_sources import PhotoItem, PhotoSources
from .processes import Processes

logger = logging.getLogger(__name__)

_TILE = 240


@dataclass
class BrokenPhoto:
    """A photo without captions, and the reason."""

    image_id: str
    error: str


@dataclass
class CaptionSummary:
    """Result of a run.

    Attributes:
        captioned: photos captioned in this run.
        already: photos that already had captions.
        repeated: photos that were named more than once.
        broken: photos that could not be read.
        left_out: number of files in folders and patterns that are not photos, by suffix.
        unsure: photos none of whose captions reached `min_confidence`.
        finished: whether all photos were processed.
        seconds: wall time.
    """

    captioned: int = 0
    already: int = 0
    repeated: int = 0
    broken: list[BrokenPhoto] = field(default_factory=list)
    left_out: dict[str, int] = field(default_factory=dict)
    unsure: int = 0
    finished: bool = False
    seconds: float = 0.0


class BrokenPhotoError(OSError):
    """A photo cannot be read, and the run stops at such photos."""


class CaptionRun:
    """Captions many photos.

    Threads read photos while the model runs. Captions are written in the order of the sources.

    Args:
        captioner: see [`load_captioner`].
        sources: the photos.
        sink: takes the captions.
        num_captions: captions per photo.
        batch_size: photos per batch.
        workers: threads that read photos; the number of cores if not given, at most 8.
        on_error: "skip" lists photos that cannot be read in the summary, "fail" stops at the first.
        timeout: timeout of a download in seconds.
        allow_private: allow downloads from private addresses.
        progress: show a progress bar on standard error.
        sheet: number of photos to keep for [`draw_sheet`].
        processes: the processes that share the work; a single one if None.
        with_confidence: give the sink the confidence of each caption.
        min_confidence: leave out captions below this confidence, and photos without a caption that reaches it.
        **generation: arguments of `generate()`. With a `seed`, samples are reproducible: batches are then formed in
            the order of the photos and not of their arrival.

    Raises:
        ValueError: confidences are asked of a captioner that is not calibrated.
    """

    def __init__(
        self,
        captioner: Captioner,
        sources: PhotoSources,
        sink: CaptionSink,
        *,
        num_captions: int = 1,
        batch_size: int = 32,
        workers: int | None = None,
        on_error: str = "skip",
        timeout: float | None = None,
        allow_private: bool | None = None,
        progress: bool = False,
        sheet: int = 0,
        processes: Processes | None = None,
        with_confidence: bool = False,
        min_confidence: float | None = None,
        **generation: Any,
    ) -> None:
        self.with_confidence, self.min_confidence = with_confidence, min_confidence
        if (with_confidence or min_confidence is not None) and isinstance(captioner.calibration, str):
            raise ValueError(f"{captioner.name}: {captioner.calibration}")
        if on_error not in ("skip", "fail"):
            raise ValueError(f'on_error is {on_error!r}; it must be "skip" or "fail"')
        if sheet > KEPT_FOR_SHEET:
            raise ValueError(f"a contact sheet holds {KEPT_FOR_SHEET} photos at most, not {sheet}")
        self.captioner, self.sources, self.sink = captioner, sources, sink
        self.num_captions, self.batch_size, self.on_error = num_captions, batch_size, on_error
        self.workers = workers or min(8, os.cpu_count() or 1)
        self.timeout, self.allow_private = timeout, allow_private
        self.progress, self.sheet, self.generation = progress, sheet, generation
        self.processes = processes or Processes()
        if self.processes.number > 1 and sources.uses_stdin:
            raise ValueError(
                "standard input goes to one process only: write the paths to a file and give it as --list"
            )
        # The first photos, in order, and thumbnails of those that could be read.
        self._sheet_ids: list[str] = []
        self._tiles: dict[str, Image.Image] = {}
        self.summary = CaptionSummary()
        self._loader: PhotoLoader | None = None
        self._stopped = False

    def stop(self) -> None:
        """Stop after the current batch and keep its captions. Safe to call from a signal handler."""
        self._stopped = True
        if self._loader is not None:
            self._loader.stop()

    def run(self) -> CaptionSummary:
        """Caption the photos.

        Raises:
            BrokenPhotoError: a photo cannot be read, with `on_error="fail"`.
            OSError: a source cannot be read, or captions cannot be written; the message names it.
        """
        start = time.perf_counter()
        file = self.sink if isinstance(self.sink, CaptionFile) else None
        if file is not None:
            file.clear()
            self.processes.wait()
            file.open()
            self.processes.wait()
            file.begin()
        failed: Exception | None = None
        try:
            self._caption_all()
        except Exception as error:
            failed = error
        try:
            self.sink.flush()
        finally:
            if file is not None:
                file.close()
        if failed is not None and self.processes.number > 1:
            raise failed  # others may run for hours; the launcher stops them, and the next run continues
        self.summary.finished = failed is None and not self._stopped
        self._gather()
        self.summary.seconds = time.perf_counter() - start
        if file is not None and self.processes.rank == 0:
            facts = {
                "captions": self.summary.captioned + self.summary.already,
                "broken": [vars(photo) for photo in self.summary.broken],
            }
            try:
                file.finish(self.summary.finished, **facts)
            except OSError as error:
                failed = failed or error
        self.processes.wait()
        if failed is not None:
            raise failed
        return self.summary

    def _caption_all(self) -> None:
        self._loader = loader = PhotoLoader(
            self._new_items(),
            self._read,
            batch_size=self.batch_size,
            workers=self.workers,
            in_order=self.generation.get("seed") is not None,
        )
        if self._stopped:
            return
        hidden = not (self.progress and self.processes.rank == 0)
        total = None if hidden else self.sources.count()
        if total is not None:
            total = -(-total // self.processes.number)
        settings = {"unit": "photo", "desc": "Captioning", "delay": 1, "smoothing": 0.1}
        with progress_bar(total=total, hidden=hidden, **settings) as self._bar:
            for photo, captions in self._captioned(loader):
                if captions is not None:
                    self._add(photo.item, captions)
                else:
                    self.summary.broken.append(BrokenPhoto(photo.item.image_id, str(photo.error)))
                    if self.on_error == "fail":
                        raise BrokenPhotoError(str(photo.error))

    def _add(self, item: PhotoItem, captions: list[Any]) -> None:
        """Give the sink the captions; of pairs of a caption and its confidence those that are sure enough."""
        if not self._scores:
            self.sink.add(item, captions)
        elif kept := [pair for pair in captions if self.min_confidence is None or pair[1] >= self.min_confidence]:
            texts, confidences = ([*each] for each in zip(*kept, strict=True))
            self.sink.add(item, texts, *([confidences] if self.with_confidence else []))
        else:
            self.summary.unsure += 1
            return
        self.summary.captioned += 1

    @property
    def _scores(self) -> bool:
        return self.with_confidence or self.min_confidence is not None

    def _captioned(self, loader: PhotoLoader) -> Iterator[tuple[LoadedPhoto, list[Any] | None]]:
        """Yield each photo with its captions, or None if it is broken, in the order of the photos."""
        waiting: dict[int, tuple[LoadedPhoto, list[Any] | None]] = {}
        place = shown = 0
        for number, batch in enumerate(loader.batches()):
            good = [photo for photo in batch if photo.error is None]
            generation = {"with_confidence": self._scores, **self.generation}
            if generation.get("seed") is not None:
                generation["seed"] += number  # a different one for each batch
            texts = (
                caption_batch(self.captioner, [photo.pixels for photo in good], self.num_captions, **generation)
                if good
                else []
            )
            found = {photo.place: captions for photo, captions in zip(good, texts, strict=True)}
            for photo in batch:
                photo.pixels = None
                waiting[photo.place] = (photo, found.get(photo.place))
            first = place
            while place in waiting:
                yield waiting.pop(place)
                place += 1
            loader.passed_on(place - first)
            self._bar.update(len(batch) + self.summary.already + self.summary.repeated - shown)
            shown = self.summary.already + self.summary.repeated
            self.sink.flush()
        # After stop(): keep captions of photos that overtook one which never arrived.
        for late in sorted(waiting):
            yield waiting[late]

    def _new_items(self) -> Iterator[PhotoItem]:
        """Yield photos without captions, each once; called by another thread."""
        met: set[int] = set()  # 78 bytes per photo
        for item in self.sources.items(self.processes.rank, self.processes.number):
            digest = number_digest(item.image_id)
            if digest in met:
                self.summary.repeated += 1
                continue
            met.add(digest)
            wanted = self.sheet > len(self._sheet_ids) and self.processes.rank == 0
            if wanted:
                self._sheet_ids.append(item.image_id)
            try:
                done = self.sink.is_done(item)
            except ValueError as error:
                yield PhotoItem(item.image_id, None, item.key, str(error))
                continue
            if not done:
                yield item
                continue
            self.summary.already += 1
            if wanted:
                with suppress(OSError, ValueError):  # it may be gone since it was captioned
                    self._keep_tile(item, self._load(item, (_TILE, _TILE)))

    def _read(self, item: PhotoItem) -> np.ndarray:
        photo = self._load(item, self.captioner.photo_size)
        if item.image_id in self._sheet_ids:
            self._keep_tile(item, photo)
        return self.captioner.prepare(photo)

    def _load(self, item: PhotoItem, at_least: tuple[int, int] | None) -> Image.Image:
        # Secrets in URLs must not appear in messages.
        name = None if isinstance(item.source, str) and "://" in item.source else item.image_id
        return load_photo(item.source, self.timeout, at_least=at_least, allow_private=self.allow_private, name=name)

    def _keep_tile(self, item: PhotoItem, photo: Image.Image) -> None:
        tile = photo.copy()
        tile.thumbnail((_TILE, _TILE))
        self._tiles[item.image_id] = tile

    def _gather(self) -> None:
        """Combine the summaries of all processes."""
        gathered = self.processes.gather(self.summary)
        self.summary = CaptionSummary(
            captioned=sum(each.captioned for each in gathered),
            already=sum(each.already for each in gathered),
            repeated=sum(each.repeated for each in gathered),
            unsure=sum(each.unsure for each in gathered),
            broken=[photo for each in gathered for photo in each.broken],
            left_out=dict(self.sources.left_out.most_common()),  # each process lists all folders
            finished=all(each.finished for each in gathered),
        )

    def draw_sheet(self, path: str | os.PathLike[str]) -> Path | None:
        """Write a picture of the first photos with their captions; return None if there are none.

        Raises:
            OSError: it cannot be written.
        """
        captions = self.sink.find(self._sheet_ids)
        tiles = [(name, self._tiles[name]) for name in self._sheet_ids if name in captions and name in self._tiles]
        if not tiles:
            return None
        sheet = contact_sheet(
            [tile for _, tile in tiles],
            [captions[image_id][0] for image_id, _ in tiles],
            notes=[Path(image_id).name for image_id, _ in tiles],
            columns=5,
            tile_size=_TILE,
        )
        return save_picture(sheet, path)
