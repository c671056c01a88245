"""The LSTM's state between the words of a caption, in the role of Transformers' key-value cache."""

import threading
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from transformers.generation import GenerateEncoderDecoderOutput

from .attention_nic import NICRegions

# What `generate()` calls a model's state: Transformers 5.24 renamed it.
CACHE_NAME = "cache" if hasattr(GenerateEncoderDecoderOutput, "cache") else "past_key_values"


def cache_field(cache: Any) -> dict[str, Any]:
    """A model's state as the keyword argument of a `ModelOutput`."""
    return {CACHE_NAME: cache}


@dataclass(eq=False)
class NICCache:
    """The state of the LSTM after the words read so far, in the role of Transformers' key-value cache.

    `torch.export` takes it for an input and an output, which are its tensors: an exported step counts no words.

    Args:
        hidden_state, cell_state (`torch.FloatTensor` of shape `(num_hidden_layers, batch_size, hidden_size)`):
            h and c of the LSTM; `None` before the image is read.
        regions (`NICRegions`): what attention looks at; `None` before the image is read, and without attention.
    """

    hidden_state: torch.Tensor | None = None
    cell_state: torch.Tensor | None = None
    regions: NICRegions | None = None

    is_compileable = False
    is_linear = (True,)  # of each layer: whether its state stays as large as it is

    def __post_init__(self) -> None:
        self.seq_length = 0
        self.past: list[tuple[torch.Tensor | None, torch.Tensor | None]] | None = None  # states, the last one included

    @property
    def has_read_image(self) -> bool:
        """Whether the state is one to go on from."""
        return self.hidden_state is not None

    @property
    def is_croppable(self) -> bool:
        """Whether words can be taken back: from the call of [`activate_past_recording`] on."""
        return self.past is not None

    def activate_past_recording(self) -> None:
        """Keep the state after each word from here on, for [`crop`]. A model then reads word by word."""
        if self.past is None:
            self.past = [(self.hidden_state, self.cell_state)]

    def crop(self, tokens_to_remove: int) -> None:
        """Take the last `-tokens_to_remove` words back: a number from 0 down, as in Transformers.

        Raises:
            ValueError: where the state before those words was not kept.
        """
        kept = None if self.past is None else len(self.past) - 1
        if tokens_to_remove > 0 or kept is None or -tokens_to_remove > kept:
            raise ValueError(
                f"crop({tokens_to_remove}): {kept or 0} words can be taken back, those read since "
                "`activate_past_recording()`; their number is given below 0"
            )
        if tokens_to_remove and self.past is not None:
            del self.past[tokens_to_remove:]
            self.hidden_state, self.cell_state = self.past[-1]
            self.seq_length += tokens_to_remove

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Number of words read, `<bos>` included. The image is not a word."""
        return self.seq_length

    def get_max_cache_shape(self, layer_idx: int = 0) -> int:
        """-1: the state does not grow with the caption."""
        return -1

    def update(
        self, hidden_state: torch.Tensor, cell_state: torch.Tensor, num_tokens: int, regions: NICRegions | None = None
    ) -> None:
        """Replace the state by the one after `num_tokens` more words.

        Raises:
            ValueError: where there are several words and the state after each is to be kept.
        """
        self.hidden_state, self.cell_state, self.regions = hidden_state, cell_state, regions
        self.seq_length += num_tokens
        if self.past is not None:
            if num_tokens > 1:
                raise ValueError("a cache that can be cropped is updated after each word")
            self.past.append((hidden_state, cell_state))

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        """Let row `i` continue the caption of row `beam_idx[i]`; `beam_idx` has shape `(batch_size * num_beams,)`."""
        if self.hidden_state is not None and self.cell_state is not None:
            if self.regions is not None:
                self.regions = self.regions.select(beam_idx, num_captions=self.hidden_state.shape[1])
            self._change_rows(lambda states: states.index_select(1, beam_idx.to(states.device)))

    def _change_rows(self, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
        def changed(states: torch.Tensor | None) -> torch.Tensor | None:
            return None if states is None else change(states)

        self.hidden_state, self.cell_state = changed(self.hidden_state), changed(self.cell_state)
        if self.past is not None:
            self.past = [(changed(hidden), changed(cell)) for hidden, cell in self.past]

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat each row `repeats` times. The regions stay as they are: captions of a photo share them."""
        self._change_rows(lambda states: states.repeat_interleave(repeats, dim=1))

    def batch_select_indices(self, indices: torch.LongTensor) -> None:
        """Keep the rows `indices` only."""
        self.reorder_cache(indices)

    def reset(self) -> None:
        """Forget everything."""
        self.hidden_state, self.cell_state, self.regions = None, None, None
        self.seq_length = 0
        self.past = None if self.past is None else [(None, None)]


torch.export.register_dataclass(NICCache)


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
    has_read_image = False  # its state has a place in memory from the start

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

    def activate_past_recording(self) -> None:
        """Refused: one place in memory holds one state.

        Raises:
            ValueError: always.
        """
        raise ValueError("a static cache keeps no states to go back to: leave `cache_implementation` out")

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
