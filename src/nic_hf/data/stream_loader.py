"""A data loader that knows how far it has come in a stream."""

from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

import torch
from torch.utils.data import DataLoader, IterableDataset

from .errors import CaptionDataError
from .streaming import StreamingCaptionDataset


class StreamLoader(DataLoader):
    """Batches of a stream, with the position behind the batch given last: also where workers have read ahead.

    Trainer's way of resuming, to fetch and drop all batches that were trained on, reads and decodes every photo again;
    this one starts each reader where it was. torchdata's StatefulDataLoader does the same, but no Trainer of
    Transformers 5 can be told to use it.

    Args:
        dataset: the stream, without end if it is to be resumed; its share (`share()`) where there are several
            processes.
        batch_size: samples a batch.
        collate: makes them a batch.
        state: of `state_dict()`, to go on from.
        **settings: for `DataLoader`.

    Raises:
        CaptionDataError: on reading, as the data set does, without the traceback that a worker puts around it.
        ValueError: the state is one of another number of workers.
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
        # Its own generator: the one of torch, which dropout draws from, must be left as a run without a break has it.
        super().__init__(self.batches, batch_size=None, generator=torch.Generator().manual_seed(0), **settings)
        self.given = 0
        self.states: dict[int, dict[str, Any]] = {}
        if state is not None:
            self.load_state_dict(state)

    def state_dict(self) -> dict[str, Any]:
        """Position of each reader of this process; plain values, which JSON keeps."""
        states = {str(worker): state for worker, state in self.states.items()}
        return {"workers": max(1, self.num_workers), "given": self.given, "states": states}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on behind a position."""
        workers = max(1, self.num_workers)
        if state["workers"] != workers:
            raise ValueError(
                f"the position in the stream is one of {state['workers']} data loader workers, and there are"
                f" {workers}: set dataloader_num_workers as it was"
            )
        self.given = state["given"]
        self.states = {int(worker): position for worker, position in state["states"].items()}

    def passes(self) -> float:
        """Passes over the data so far: a mean over readers, to the accuracy of a shard."""
        passes = [state["pass"] + state["share"][0] / state["share"][1] for state in self.states.values()]
        return sum(passes) / len(passes) if passes else 0.0

    def skipped(self) -> int:
        """Items left out so far by this process, counted once a pass."""
        return sum(state["skipped"] + len(state["broken"]) for state in self.states.values())

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:  # type: ignore[override]
        """Batches; workers take turns, beginning with the one whose turn it was."""
        self.batches.states = self.states
        self.batches.dataset.first_worker = self.given % max(1, self.num_workers)
        for worker, state, batch in super().__iter__():
            if isinstance(batch, CaptionDataError):
                raise batch
            self.given += 1
            self.states = {**self.states, worker: state}
            yield batch


class _Batches(IterableDataset):
    """Whole batches, each with the number of its reader and the position behind it; or the error that ended them."""

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
