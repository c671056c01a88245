"""A data loader for streams that can be resumed."""

from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

import torch
from torch.utils.data import DataLoader, IterableDataset

from .errors import CaptionDataError
from .streaming import StreamingCaptionDataset


class StreamLoader(DataLoader):
    """Batches of a stream, with the position after the last batch, even if workers have read ahead.

    Trainer resumes by fetching and dropping all batches that were trained on, which decodes every photo again; this
    loader starts each reader at its position. torchdata's `StatefulDataLoader` does the same, but Trainer cannot be
    told to use it.

    Args:
        dataset: the stream, endless if it is to be resumed; the share of this process (`share()`) if there are
            several.
        batch_size: samples per batch.
        collate: makes a batch of samples.
        state: a `state_dict()` to resume from.
        **settings: arguments of `DataLoader`.

    Raises:
        CaptionDataError: on reading, as raised by the dataset.
        ValueError: the state has another number of workers.
    """

    def __init__(
        self,
        dataset: StreamingCaptionDataset,
        batch_size: int,
        collate: Callable[[list[dict[str, Any]]], dict[str, torch.Tensor]],
        state: dict[str, Any] | None = None,
        **settings: Any,
    ) -> None:
        self.batches = _Batches(dataset, batch_size, collate)
        # Its own generator, because dropout draws from the global one: a resumed run would draw other numbers.
        super().__init__(self.batches, batch_size=None, generator=torch.Generator().manual_seed(0), **settings)
        self.given = 0
        self.states: dict[int, dict[str, Any]] = {}
        if state is not None:
            self.load_state_dict(state)

    def state_dict(self) -> dict[str, Any]:
        """Return the position of each reader of this process, as plain JSON values."""
        states = {str(worker): state for worker, state in self.states.items()}
        return {"workers": max(1, self.num_workers), "given": self.given, "states": states}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue after a position."""
        workers = max(1, self.num_workers)
        if state["workers"] != workers:
            raise ValueError(
                f"the position in the stream was saved with {state['workers']} data loader workers, not {workers}:"
                f" set dataloader_num_workers={state['workers']}"
            )
        self.given = state["given"]
        self.states = {int(worker): position for worker, position in state["states"].items()}

    def passes(self) -> float:
        """Number of passes over the data so far: a mean over readers, accurate to a shard."""
        passes = [state["pass"] + state["share"][0] / state["share"][1] for state in self.states.values()]
        return sum(passes) / len(passes) if passes else 0.0

    def skipped(self) -> int:
        """Number of items skipped so far by this process, in all passes."""
        return sum(state["skipped"] + len(state["broken"]) for state in self.states.values())

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:  # type: ignore[override]
        """Yield batches; workers take turns, beginning with the one whose turn it was."""
        self.batches.states = self.states
        self.batches.dataset.first_worker = self.given % max(1, self.num_workers)
        for worker, state, batch in super().__iter__():
            if isinstance(batch, CaptionDataError):
                raise batch
            self.given += 1
            self.states = {**self.states, worker: state}
            yield batch


class _Batches(IterableDataset):
    """Batches, each with the number of its reader and the position after it, or the error that ended them."""

    def __init__(self, dataset: StreamingCaptionDataset, batch_size: int, collate: Callable[..., Any]) -> None:
        self.dataset, self.batch_size, self.collate = dataset, batch_size, collate
        self.states: dict[int, dict[str, Any]] = {}

    def __iter__(self) -> Iterator[tuple[int, dict[str, Any], Any]]:
        worker = self.dataset.worker()
        if worker in self.states:
            self.dataset.load_state_dict(self.states[worker])
        samples = iter(self.dataset)
        try:
            while batch := list(islice(samples, self.batch_size)):
                yield worker, self.dataset.state_dict(), self.collate(batch)
        except CaptionDataError as error:  # as a value: a worker would wrap its traceback around the message
            yield worker, {}, error
