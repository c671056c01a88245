"""The processes of a run started by `torchrun` or `accelerate launch`, or a single process."""

import os
from datetime import timedelta
from typing import TypeVar

T = TypeVar("T")


class Processes:
    """The processes that share a job; a single one by default.

    Attributes:
        rank: rank of this process.
        number: number of processes.
    """

    rank = 0
    number = 1

    @classmethod
    def launched(cls) -> "Processes":
        """Return those started by `torchrun` or `accelerate launch`."""
        return TorchProcesses() if int(os.environ.get("WORLD_SIZE") or 1) > 1 else cls()

    def wait(self) -> None:
        """Wait until all processes have called this."""

    def gather(self, value: T) -> list[T]:
        """Return the values of all processes."""
        return [value]


class TorchProcesses(Processes):
    """Processes that communicate through `torch.distributed`, on CPUs and GPUs."""

    def __init__(self) -> None:
        import torch.distributed

        if not torch.distributed.is_initialized():
            # One process may finish days before another, as shares differ in cost.
            torch.distributed.init_process_group("gloo", timeout=timedelta(days=30))
        self.rank, self.number = torch.distributed.get_rank(), torch.distributed.get_world_size()

    def wait(self) -> None:
        """See [`Processes`]."""
        import torch.distributed

        torch.distributed.barrier()

    def gather(self, value: T) -> list[T]:
        """See [`Processes`]."""
        import torch.distributed

        values: list = [None] * self.number
        torch.distributed.all_gather_object(values, value)
        return values
