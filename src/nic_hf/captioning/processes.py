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

    def __init__(self, rank: int = 0, number: int = 1) -> None:
        self.rank, self.number = rank, number

    @classmethod
    def launched(cls) -> "Processes":
        """Return those started by `torchrun` or `accelerate launch`, which communicate over gloo."""
        if int(os.environ.get("WORLD_SIZE") or 1) == 1:
            return cls()
        import torch.distributed

        if not torch.distributed.is_initialized():
            # One process may finish days before another, as shares differ in cost.
            torch.distributed.init_process_group("gloo", timeout=timedelta(days=30))
        return cls(torch.distributed.get_rank(), torch.distributed.get_world_size())

    def wait(self) -> None:
        """Wait until all processes have called this."""
        if self.number > 1:
            import torch.distributed

            torch.distributed.barrier()

    def gather(self, value: T) -> list[T]:
        """Return the values of all processes."""
        if self.number == 1:
            return [value]
        import torch.distributed

        values: list = [None] * self.number
        torch.distributed.all_gather_object(values, value)
        return values
