"""One process or many: `torchrun` and `accelerate launch` say which this is, and how many there are."""

import os
from datetime import timedelta
from typing import TypeVar

T = TypeVar("T")


class Processes:
    """The processes that share a job; a single one by default.

    Attributes:
        rank: number of this one, from 0.
        number: how many there are.
    """

    rank = 0
    number = 1

    @classmethod
    def launched(cls) -> "Processes":
        """Those that `torchrun` or `accelerate launch` started."""
        return TorchProcesses() if int(os.environ.get("WORLD_SIZE") or 1) > 1 else cls()

    def wait(self) -> None:
        """Wait for all processes to come to this line."""

    def gather(self, value: T) -> list[T]:
        """The values of all processes, in each of them."""
        return [value]


class TorchProcesses(Processes):
    """Processes that talk through `torch.distributed`, on CPUs and GPUs alike."""

    def __init__(self) -> None:
        import torch.distributed

        if not torch.distributed.is_initialized():
            # One process may end days before another: shares differ in what they cost.
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
