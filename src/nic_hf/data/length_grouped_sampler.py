"""Batches of captions of similar length, to reduce padding."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch.utils.data import Sampler

BATCHES_A_POOL = 50


class LengthGroupedSampler(Sampler[int]):
    """Shuffle samples, sort each pool of 50 batches by length, and shuffle the batches.

    Captions of 64 photos have 12 words on average and 24 at most, so half of a random batch would be padding. The
    order depends on seed and epoch only, so a resumed run sees the same batches.

    Args:
        lengths: length of each sample.
        batch_size: samples per step, over all processes and accumulated batches.
        seed: seed of the order.
    """

    def __init__(self, lengths: Sequence[int] | np.ndarray, batch_size: int, seed: int = 0) -> None:
        self.lengths = torch.tensor(np.asarray(lengths))
        self.batch_size = batch_size
        self.seed = seed
        self.epoch = 0

    def __len__(self) -> int:
        return len(self.lengths)

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch; Trainer calls this."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        order = torch.randperm(len(self.lengths), generator=generator)
        batches = []
        for pool in order.split(BATCHES_A_POOL * self.batch_size):
            batches += pool[self.lengths[pool].argsort(stable=True, descending=True)].split(self.batch_size)
        # A short batch stays last: elsewhere it would shift the bounds of the batches after it.
        full = [batch for batch in batches if len(batch) == self.batch_size]
        short = [batch for batch in batches if len(batch) < self.batch_size]
        shuffled = [full[i] for i in torch.randperm(len(full), generator=generator).tolist()]
        for batch in shuffled + short:
            yield from batch.tolist()
