"""States of the LSTM that can be cropped, or that stay at one place in memory."""

import threading
import weakref
from collections.abc import Callable
from typing import Any

import torch

from ..layers_nic import NICCache as CoreCache
from ..layers_nic import NICRegions, State
from ..modeling_nic import CACHE_NAME


def cache_field(cache: Any) -> dict[str, Any]:
    """Return a state as the keyword argument of a `ModelOutput`, by the name that Transformers has for it."""
    return {CACHE_NAME: cache} if CACHE_NAME else {}


class NICCache(CoreCache):
    """The state of the LSTM after the words read so far, in the role of Transformers' key-value cache.

    In addition to the core's it can be cropped, which assisted decoding needs, and leaves the regions of attention in
    place when beams of an image change rows.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        self.past: list[tuple[torch.Tensor | None, torch.Tensor | None]] | None = None  # up to the current state

    @property
    def is_croppable(self) -> bool:  # type: ignore[override]
        """Whether words can be removed: after [`activate_past_recording`], with which a model reads word by word."""
        return self.past is not None

    def get_max_cache_shape(self, layer_idx: int = 0) -> int:
        """-1: the state does not grow with the caption."""
        return -1

    def activate_past_recording(self) -> None:
        """Keep the state after each word from now on, for [`crop`]."""
        if self.past is None:
            self.past = [(self.hidden_state, self.cell_state)]

    def crop(self, tokens_to_remove: int) -> None:
        """Remove the last `-tokens_to_remove` words: a negative number, or 0, as in Transformers.

        Raises:
            ValueError: if the state before those words was not kept.
        """
        kept = None if self.past is None else len(self.past) - 1
        if tokens_to_remove > 0 or kept is None or -tokens_to_remove > kept:
            raise ValueError(
                f"crop({tokens_to_remove}): {kept or 0} words can be removed, those read since "
                "`activate_past_recording()`; give their number as a negative one"
            )
        if tokens_to_remove and self.past is not None:
            del self.past[tokens_to_remove:]
            self.hidden_state, self.cell_state = self.past[-1]
            self.seq_length += tokens_to_remove

    def update(self, state: State, num_tokens: int, regions: NICRegions | None = None) -> None:
        """Replace the state by the state after `num_tokens` more words.

        Raises:
            ValueError: if the state after each word is to be kept and there are several words.
        """
        super().update(state, num_tokens, regions)
        if self.past is not None:
            if num_tokens > 1:
                raise ValueError("a cache that can be cropped is updated after each word")
            self.past.append(state)

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        """Let row `i` continue the caption of row `beam_idx[i]`; `beam_idx` has shape `(batch_size * num_beams,)`."""
        if self.regions is not None and self.hidden_state is not None:
            num_images, num_captions = len(self.regions.keys), self.hidden_state.shape[1]
            images = beam_idx.to(self.regions.keys.device) // self.regions.captions_per_image(num_captions)
            same = torch.arange(num_images, device=images.device)
            same = same.repeat_interleave(max(len(images) // num_images, 1))
            if not torch.equal(images, same):  # the regions are by far the largest part of the state
                self.regions = self.regions.select(beam_idx, num_captions)
        self._change_rows(lambda states: states.index_select(1, beam_idx.to(states.device)))

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat each row `repeats` times. The regions stay as they are: captions of an image share them."""
        self._change_rows(lambda states: states.repeat_interleave(repeats, dim=1))

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keep the rows `indices` only."""
        self.reorder_cache(indices)

    def _change_rows(self, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
        def changed(*states: torch.Tensor | None) -> Any:
            return tuple(None if each is None else change(each) for each in states)

        self.hidden_state, self.cell_state = changed(self.hidden_state, self.cell_state)
        if self.past is not None:
            self.past = [changed(*state) for state in self.past]

    def reset(self) -> None:
        """Forget the image and all words."""
        self.hidden_state, self.cell_state, self.regions, self.seq_length = None, None, None, 0
        self.past = None if self.past is None else [(None, None)]


torch.export.register_dataclass(NICCache)


class NICStaticCache(NICCache):
    """A state that stays at its place in memory, for a step that is compiled and replayed as a CUDA graph.

    `generate(cache_implementation="static")` makes it and counts the words itself ([`count`]): a number that changes
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
        """Count words that the next step reads."""
        self.seq_length += num_tokens

    def update(self, state: State, num_tokens: int, regions: NICRegions | None = None) -> None:
        """Write the state after some more words over the one before; the regions once per image."""
        assert self.hidden_state is not None and self.cell_state is not None  # from the start
        self.hidden_state.copy_(state[0])
        self.cell_state.copy_(state[1])
        if not self.has_read_image:
            if self.regions is not None and regions is not None:
                self.regions.features.copy_(regions.features)
                self.regions.keys.copy_(regions.keys)
            self.has_read_image = True

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        """Let row `i` continue the caption of row `beam_idx[i]`, of the same image.

        Raises:
            ValueError: if the number of rows would change.
        """
        assert self.hidden_state is not None and self.cell_state is not None  # from the start
        if len(beam_idx) != self.hidden_state.shape[1]:
            raise ValueError(
                f"a static cache of {self.hidden_state.shape[1]} captions cannot hold {len(beam_idx)}: leave "
                "`cache_implementation` out"
            )
        beam_idx = beam_idx.to(self.hidden_state.device)
        self.hidden_state.copy_(self.hidden_state.index_select(1, beam_idx))
        self.cell_state.copy_(self.cell_state.index_select(1, beam_idx))

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Refused, unless it changes nothing: the number of rows is fixed.

        Raises:
            ValueError: if `repeats` is not 1.
        """
        if repeats != 1:
            raise ValueError("a static cache cannot hold more captions than before: leave `cache_implementation` out")

    def reset(self) -> None:
        """Forget the captions; their place in memory stays."""
        self.has_read_image, self.seq_length = False, 0


class _Kept(threading.local):
    """The last static cache of each model, for each thread: two that decode at once must not share one."""

    def __init__(self) -> None:
        self.caches: weakref.WeakKeyDictionary[Any, tuple[tuple, NICStaticCache]] = weakref.WeakKeyDictionary()


_kept = _Kept()


def static_cache(model: Any, keep: bool, *description: Any) -> NICStaticCache:
    """Return a static cache for `model`, at the addresses of the last call if the arguments are the same.

    Args:
        model: whose state it holds.
        keep: use it again in the next call; not if the caller hands it to the user.
        *description: the arguments of [`NICStaticCache`].
    """
    known, cache = _kept.caches.get(model, (None, None)) if keep else (None, None)
    if cache is None or known != description:
        cache = NICStaticCache(*description)
        if keep:
            _kept.caches[model] = (description, cache)
    cache.reset()
    return cache
