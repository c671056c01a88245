"""Threads that read and prepare photos while the model runs, with bounded memory.

Threads rather than processes: Pillow releases Python's lock while it decodes and resizes, threads start immediately
while processes first have to import torch, and pixels need not be copied between processes.
"""

import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from .photo_sources import PhotoItem

_WINDOW = 8192  # photos that may overtake a slow one


@dataclass
class LoadedPhoto:
    """A photo in progress: its place, and its pixels or an error."""

    place: int
    item: PhotoItem
    pixels: Any = None
    error: str | None = None


class PhotoLoader:
    """Batches of photos in the order of their arrival.

    Args:
        items: the photos, iterated over by a thread that pauses while enough of them are in progress.
        prepare: converts a photo to pixels; called by `workers` threads at once.
        batch_size: photos per batch; batches are smaller if photos arrive slowly.
        workers: number of threads.
        in_order: form batches in the order of the photos, for results that depend on the batch.
        patience: seconds to wait for the next photo of a batch that is not full.
    """

    def __init__(
        self,
        items: Iterable[PhotoItem],
        prepare: Callable[[PhotoItem], Any],
        *,
        batch_size: int,
        workers: int,
        in_order: bool = False,
        patience: float = 0.25,
    ) -> None:
        self.batch_size, self.in_order, self.patience = batch_size, in_order, patience
        self._items, self._prepare = items, prepare
        self._stopped = False
        self._slots = threading.Semaphore(2 * batch_size + workers)  # photos whose pixels are in memory
        self._window = threading.Semaphore(_WINDOW + 2 * batch_size)
        self._wanted: queue.SimpleQueue[LoadedPhoto | None] = queue.SimpleQueue()
        self._arrived: queue.SimpleQueue[LoadedPhoto | BaseException | int] = queue.SimpleQueue()
        self._threads = [threading.Thread(target=self._feed, name="photo names", daemon=True)]
        self._threads += [threading.Thread(target=self._work, name="photos", daemon=True) for _ in range(workers)]

    def batches(self) -> Iterator[list[LoadedPhoto]]:
        """Yield batches until there are no more photos, or until [`stop`]."""
        for thread in self._threads:
            thread.start()
        ready: dict[int, LoadedPhoto] = {}
        total: int | None = None  # known once all items were iterated over
        taken = 0  # photos in the batches so far
        try:
            while not self._stopped and taken != total:
                batch = self._full(ready, taken, None if total is None else total - taken)
                if batch is None:
                    try:
                        arrived = self._arrived.get(timeout=self.patience)
                    except queue.Empty:
                        batch = [] if self.in_order else list(ready.values())
                        if not batch:
                            continue
                    else:
                        if isinstance(arrived, BaseException):
                            raise arrived
                        if isinstance(arrived, int):
                            total = arrived
                        else:
                            ready[arrived.place] = arrived
                        continue
                for photo in batch:
                    del ready[photo.place]
                taken += len(batch)
                yield batch
                for _ in batch:
                    self._slots.release()
        finally:
            self._release_threads()

    def _full(self, ready: dict[int, LoadedPhoto], taken: int, left: int | None) -> list[LoadedPhoto] | None:
        wanted = self.batch_size if left is None else min(self.batch_size, left)
        if self.in_order:
            places = range(taken, taken + wanted)
            return [ready[place] for place in places] if all(place in ready for place in places) else None
        return list(ready.values())[:wanted] if len(ready) >= wanted else None

    def passed_on(self, number: int) -> None:
        """Report that this number of photos was written in order."""
        if number:
            self._window.release(number)

    def stop(self) -> None:
        """Stop soon: no further photo is started. Safe to call from a signal handler.

        It takes no lock, because a handler runs in the thread it interrupts, which may hold it.
        """
        self._stopped = True

    def _release_threads(self) -> None:
        self.stop()
        for _ in self._threads:
            self._wanted.put(None)
        self._slots.release(len(self._threads))
        self._window.release(len(self._threads))

    def _feed(self) -> None:
        place = 0
        try:
            for item in self._items:
                self._window.acquire()
                self._slots.acquire()
                if self._stopped:
                    return
                self._wanted.put(LoadedPhoto(place, item))
                place += 1
        except Exception as error:
            self._arrived.put(error)
            return
        self._arrived.put(place)

    def _work(self) -> None:
        while (photo := self._wanted.get()) is not None and not self._stopped:
            if photo.item.problem is not None:
                photo.error = photo.item.problem
            else:
                try:
                    photo.pixels = self._prepare(photo.item)
                except Exception as error:  # whatever a file causes in Pillow or the image processor
                    photo.error = str(error) or type(error).__name__
            self._arrived.put(photo)
