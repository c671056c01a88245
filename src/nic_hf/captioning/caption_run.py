"""`caption_photos`: many photos, one after the other and many at once; what `nic caption` does."""

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
    """A photo without captions, and why."""

    image_id: str
    error: str


@dataclass
class CaptionSummary:
    """How a run ended.

    Attributes:
        captioned: photos captioned in this run.
        already: photos that had captions from an earlier one.
        repeated: photos that were named more than once.
        broken: photos that could not be read.
        left_out: files of folders and patterns that are no photos by their names: how many of each suffix.
        finished: whether all photos had their turn.
        seconds: wall time.
    """

    captioned: int = 0
    already: int = 0
    repeated: int = 0
    broken: list[BrokenPhoto] = field(default_factory=list)
    left_out: dict[str, int] = field(default_factory=dict)
    finished: bool = False
    seconds: float = 0.0


class BrokenPhotoError(OSError):
    """A photo cannot be read, and the run is to fail then."""


class CaptionRun:
    """Captions of many photos.

    Photos are read by threads while the model works, and leave in the order of their sources.

    Args:
        captioner: see [`load_captioner`].
        sources: the photos.
        sink: takes the captions.
        num_captions: captions a photo.
        batch_size: photos a step of the model.
        workers: threads that read photos; as many as there are cores, 8 at most, where not given.
        on_error: "skip" lists photos that cannot be read in the summary, "fail" ends at the first of them.
        timeout: seconds after which a download is given up.
        allow_private: download from private addresses too.
        progress: show a bar on standard error.
        sheet: keep the first so many photos, small, for [`draw_sheet`].
        processes: the processes that share the work; None is one.
        **generation: passed to `generate()`. With a `seed` the same photos get the same samples: batches are then
            made of neighbours, in place of what arrives first.
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
        **generation: Any,
    ) -> None:
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
        # The first photos, in their order, and small pictures of those that were read.
        self._sheet_ids: list[str] = []
        self._tiles: dict[str, Image.Image] = {}
        self.summary = CaptionSummary()
        self._loader: PhotoLoader | None = None
        self._stopped = False

    def stop(self) -> None:
        """End after the step at hand; what is captioned is kept. May be called from a handler of a signal."""
        self._stopped = True
        if self._loader is not None:
            self._loader.stop()

    def run(self) -> CaptionSummary:
        """Caption the photos.

        Raises:
            BrokenPhotoError: with `on_error="fail"`, naming the first photo that cannot be read.
            OSError: a source cannot be read, or captions cannot be written; the message says which.
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
            raise failed  # others may work for hours yet; the launcher ends them, and the next run goes on
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
                    self.sink.add(photo.item, captions)
                    self.summary.captioned += 1
                else:
                    self.summary.broken.append(BrokenPhoto(photo.item.image_id, str(photo.error)))
                    if self.on_error == "fail":
                        raise BrokenPhotoError(str(photo.error))

    def _captioned(self, loader: PhotoLoader) -> Iterator[tuple[LoadedPhoto, list[str] | None]]:
        """Each photo with its captions, None where it is broken, in the order of the photos."""
        waiting: dict[int, tuple[LoadedPhoto, list[str] | None]] = {}
        place = shown = 0
        for number, batch in enumerate(loader.batches()):
            good = [photo for photo in batch if photo.error is None]
            generation = dict(self.generation)
            if generation.get("seed") is not None:
                generation["seed"] += number  # another for each batch
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
        # Stopped: what overtook a photo that never came is kept all the same.
        for late in sorted(waiting):
            yield waiting[late]

    def _new_items(self) -> Iterator[PhotoItem]:
        """Photos without captions, each once; called by another thread."""
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
                with suppress(OSError, ValueError):  # it was there when it was captioned
                    self._keep_tile(item, self._load(item, (_TILE, _TILE)))

    def _read(self, item: PhotoItem) -> np.ndarray:
        photo = self._load(item, self.captioner.photo_size)
        if item.image_id in self._sheet_ids:
            self._keep_tile(item, photo)
        return self.captioner.prepare(photo)

    def _load(self, item: PhotoItem, at_least: tuple[int, int] | None) -> Image.Image:
        # Of an address what is secret in it is left out.
        name = None if isinstance(item.source, str) and "://" in item.source else item.image_id
        return load_photo(item.source, self.timeout, at_least=at_least, allow_private=self.allow_private, name=name)

    def _keep_tile(self, item: PhotoItem, photo: Image.Image) -> None:
        tile = photo.copy()
        tile.thumbnail((_TILE, _TILE))
        self._tiles[item.image_id] = tile

    def _gather(self) -> None:
        """Add up what the processes did."""
        gathered = self.processes.gather(self.summary)
        self.summary = CaptionSummary(
            captioned=sum(each.captioned for each in gathered),
            already=sum(each.already for each in gathered),
            repeated=sum(each.repeated for each in gathered),
            broken=[photo for each in gathered for photo in each.broken],
            left_out=dict(self.sources.left_out.most_common()),  # each process lists all folders
            finished=all(each.finished for each in gathered),
        )

    def draw_sheet(self, path: str | os.PathLike[str]) -> Path | None:
        """Write a picture of the first photos with their captions; None where there are none.

        Raises:
            OSError: naming `path`, where it cannot be written.
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
