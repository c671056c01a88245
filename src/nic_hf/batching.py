"""Calls from several threads that arrive together run as one batch."""

import threading
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future
from typing import Any


class _Call(Future):
    """A call that waits for its result."""

    def __init__(self, item: Any, group: Hashable) -> None:
        super().__init__()
        self.item, self.group = item, group


class BatchedCalls:
    """Run what several threads ask for in batches, one batch at a time.

    A thread that finds nobody at work runs its own call at once. Calls that arrive meanwhile wait, and one of their
    threads runs them as the next batch: nobody waits for company, and under load batches fill up by themselves. A call
    is in the first batch of its group after all calls before it, so it waits at most for those.

    Args:
        run: computes the results of a list of items, all of one group, in their order.
        most: maximum number of items of a batch.
    """

    def __init__(self, run: Callable[[list[Any]], Sequence[Any]], most: int = 32) -> None:
        self.run, self.most = run, most
        self._start()

    def _start(self) -> None:
        self._waiting: list[_Call] = []
        self._queue = threading.Lock()  # of `_waiting`, never held for long
        self._turn = threading.Lock()  # held while a batch runs

    def __call__(self, item: Any, group: Hashable = None) -> Any:
        """Return the result of an item.

        Args:
            item: the item.
            group: items of different groups never share a batch.

        Raises:
            Exception: the error of `run` for this item alone: a batch that fails is run again item by item.
        """
        call = _Call(item, group)
        with self._queue:
            self._waiting.append(call)
        while not call.done():
            with self._turn:
                if not call.done():
                    self._run_next()
        return call.result()

    def _run_next(self) -> None:
        """Run the batch of the call that waits longest."""
        with self._queue:
            group = self._waiting[0].group
            batch = [call for call in self._waiting if call.group == group][: self.most]
            self._waiting = [call for call in self._waiting if call not in batch]
        try:
            self._run(batch)
        except BaseException:  # Ctrl-C in the thread of one call: the others wait for the next batch
            with self._queue:
                self._waiting[:0] = [call for call in batch if not call.done()]
            raise

    def _run(self, batch: list[_Call]) -> None:
        try:
            results = self.run([call.item for call in batch])
        except Exception as error:
            if len(batch) == 1:
                batch[0].set_exception(error)
                return
        else:
            for call, result in zip(batch, results, strict=True):
                call.set_result(result)
            return
        for call in batch:  # outside the handler, where the error would keep the tensors of the batch alive
            self._run([call])

    def __getstate__(self) -> dict[str, Any]:
        """Locks and waiting calls stay in this process."""
        return {"run": self.run, "most": self.most}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._start()
