"""The LSTM's state between the words of a caption, in the role of Transformers' key-value cache."""

import threading
import weakref
from typing import Any

import torch

from .attention_nic import NICRegions


class NICCache:
    """The state of the LSTM after the words read so far, in the role of Transformers' key-value cache.

    Attributes:
        hidden_state, cell_state (`torch.FloatTensor` of shape `(num_hidden_layers, batch_size, hidden_size)`):
            h and c of the LSTM; `None` before the image is read.
        regions (`NICRegions`): what attention looks at; `None` before the image is read, and without attention.
        has_read_image (`bool`): whether the state is one to go on from.
    """

    is_compileable = False
    is_croppable = False

    def __init__(self) -> None:
        self.hidden_state: torch.Tensor | None = None
        self.cell_state: torch.Tensor | None = None
        self.regions: NICRegions | None = None
        self.has_read_image = False
        self.seq_length = 0

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Number of words read, `<bos>` included. The image is not a word."""
        return self.seq_length

    def get_max_cache_shape(self, layer_idx: int = 0) -> int:
        """-1: the state does not grow with the caption."""
        return -1

    def update(
        self, hidden_state: torch.Tensor, cell_state: torch.Tensor, num_tokens: int, regions: NICRegions | None = None
    ) -> None:
        """Replace the state by the one after `num_tokens` more words."""
        self.hidden_state, self.cell_state, self.regions = hidden_state, cell_state, regions
        self.has_read_image = True
        self.seq_length += num_tokens

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        """Let row `i` continue the caption of row `beam_idx[i]`; `beam_idx` has shape `(batch_size * num_beams,)`."""
        if self.hidden_state is not None and self.cell_state is not None:
            if self.regions is not None:
                self.regions = self.regions.select(beam_idx, num_captions=self.hidden_state.shape[1])
            self.hidden_state = self.hidden_state.index_select(1, beam_idx.to(self.hidden_state.device))
            self.cell_state = self.cell_state.index_select(1, beam_idx.to(self.cell_state.device))

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat each row `repeats` times. The regions stay as they are: captions of a photo share them."""
        if self.hidden_state is not None and self.cell_state is not None:
            self.hidden_state = self.hidden_state.repeat_interleave(repeats, dim=1)
            self.cell_state = self.cell_state.repeat_interleave(repeats, dim=1)

    def batch_select_indices(self, indices: torch.LongTensor) -> None:
        """Keep the rows `indices` only."""
        self.reorder_cache(indices)

    def reset(self) -> None:
        """Forget everything."""
        self.hidden_state, self.cell_state, self.regions = None, None, None
        self.has_read_image, self.seq_length = False, 0


class NICStaticCache(NICCache):
    """A state that stays in its place in memory, for a step that is compiled and replayed as a CUDA graph.

    `generate(cache_implementation="static")` makes it, and counts the words itself ([`count`]): a number that changes
    with each word would have to be compiled, or recorded, for each.

    Args:
        shape: `(num_hidden_layers, num_captions, hidden_size)`.
        regions: the shapes of attention's features and keys ([`NICRegions`]); `None` without attention.
        dtype, device: of the LSTM.
    """

    is_compileable = True

    def __init__(
        self,
        shape: tuple[int, int, int],
        regions: tuple[tuple[int, int, int], tuple[int, int, int]] | None,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        super().__init__()

        def place(shape: tuple[int, int, int]) -> torch.Tensor:
            tensor = torch.zeros(shape, dtype=dtype, device=device)
            torch._dynamo.mark_static_address(tensor)  # else a CUDA graph copies it to a place of its own at each step
            return tensor

        # A tensor made in inference mode could not be written to outside of it.
        with torch.inference_mode(False):
            self.hidden_state, self.cell_state = place(shape), place(shape)
            self.regions = None if regions is None else NICRegions(*map(place, regions))

    def count(self, num_tokens: int) -> None:
        """Say that `num_tokens` words were read by the last step."""
        self.seq_length += num_tokens

    def update(
        self, hidden_state: torch.Tensor, cell_state: torch.Tensor, num_tokens: int, regions: NICRegions | None = None
    ) -> None:
        """Write the state after some more words over the one before; the regions once a photo."""
        assert self.hidden_state is not None and self.cell_state is not None  # from the start
        self.hidden_state.copy_(hidden_state)
        self.cell_state.copy_(cell_state)
        if not self.has_read_image:
            if self.regions is not None and regions is not None:
                self.regions.features.copy_(regions.features)
                self.regions.keys.copy_(regions.keys)
            self.has_read_image = True

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        """Let row `i` continue the caption of row `beam_idx[i]`, of the same photo.

        Raises:
            ValueError: where the number of rows would change.
        """
        assert self.hidden_state is not None and self.cell_state is not None  # from the start
        if len(beam_idx) != self.hidden_state.shape[1]:
            raise ValueError(
                f"a static cache of {self.hidden_state.shape[1]} captions cannot hold {len(beam_idx)}: leave "
                "`cache_implementation` out"
            )
        beam_idx = beam_idx.to(self.hidden_state.device)  # type: ignore[assignment]
        self.hidden_state.copy_(self.hidden_state.index_select(1, beam_idx))
        self.cell_state.copy_(self.cell_state.index_select(1, beam_idx))

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Refused, unless it changes nothing: the number of rows is fixed.

        Raises:
            ValueError: where `repeats` is not 1.
        """
        if repeats != 1:
            raise ValueError("a static cache cannot hold more captions than before: leave `cache_implementation` out")

    def reset(self) -> None:
        """Forget the captions; their place in memory stays."""
        self.has_read_image, self.seq_length = False, 0


class _Kept(threading.local):
    """The last static cache of each model, and of each thread: two that decode at once must not share one."""

    def __init__(self) -> None:
        self.caches: weakref.WeakKeyDictionary[Any, tuple[tuple, NICStaticCache]] = weakref.WeakKeyDictionary()


_kept = _Kept()


def static_cache(model: Any, keep: bool, *description: Any) -> NICStaticCache:
    """A static cache for `model`, at the same addresses as in the last call where the arguments are the same.

    Args:
        model: whose state it is to hold.
        keep: use it again in the next call; not where the caller hands it to the user.
        *description: the arguments of [`NICStaticCache`].
    """
    known, cache = _kept.caches.get(model, (None, None)) if keep else (None, None)
    if cache is None or known != description:
        cache = NICStaticCache(*description)
        if keep:
            _kept.caches[model] = (description, cache)
    cache.reset()
    return cache
