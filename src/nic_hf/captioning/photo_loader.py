"""Photos read and prepared by threads while the model works, no more of them at once than memory is meant for.

Threads and not processes: Pillow decodes and resizes without holding Python's lock, threads start at once where a
process has to import torch first, and pixels need not be copied from one memory to another.
"""

import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from .photo_sources import PhotoItem

_WINDOW = 8192  # photos that may overtake one that is slow to come


@dataclass
class LoadedPhoto:
    """A photo on its way: its place, and either its pixels or why there are none."""

    place: int
    item: PhotoItem
    pixels: Any = None
    error: str | None = None


class PhotoLoader:
    """Batches of photos as they arrive.

    Args:
        items: the photos; read by a thread, which waits while enough of them are on their way.
        prepare: turns one into pixels; called by `workers` threads at once.
        batch_size: photos a batch; fewer come where others are slow.
        workers: number of threads.
        in_order: batches of neighbours instead of what arrives first, for results that depend on the batch.
        patience: seconds that a batch which is not full waits for the next photo.
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
        self._slots = threading.Semaphore(2 * batch_size + workers)  # photos whose pixels lie in memory
        self._window = threading.Semaphore(_WINDOW + 2 * batch_size)
        self._wanted: queue.SimpleQueue[LoadedPhoto | None] = queue.SimpleQueue()
        self._arrived: queue.SimpleQueue[LoadedPhoto | BaseException | int] = queue.SimpleQueue()
        self._threads = [threading.Thread(target=self._feed, name="photo names", daemon=True)]
        self._threads += [threading.Thread(target=self._work, name="photos", daemon=True) for _ in range(workers)]

    def batches(self) -> Iterator[list[LoadedPhoto]]:
        """Batches until there are no more photos, or until [`stop`].

        Raises:
            Exception: what reading the names of the photos raised.
        """
        for thread in self._threads:
            thread.start()
        ready: dict[int, LoadedPhoto] = {}
        total: int | None = None  # known when all names are read
        taken = 0  # photos given away
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
        """So many more photos have left in their order."""
        if number:
            self._window.release(number)

    def stop(self) -> None:
        """End soon: no photo is begun any more. May be called from a handler of a signal.

        It takes no lock: a handler runs in the thread it interrupts, which may hold that lock.
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
                except Exception as error:  # whatever a file may do to Pillow or to the image processor
                    photo.error = str(error) or type(error).__name__
            self._arrived.put(photo)
