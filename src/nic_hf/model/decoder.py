"""The decoder of training and of fast captioning: all kinds of dropout, no padding read, one fused cell per word."""

from collections.abc import Callable, Sequence
from typing import cast

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from ..configuration_nic import NICConfig
from ..layers_nic import NICAttentiveDecoder, NICDecoder, NICRegions, State

# The image and <bos>, with which `generate()` begins: on a CPU nn.LSTM takes longer to prepare than these take.
_FEW = 2

# oneDNN adds to the gradient of all weights at each word, which is slow if they do not fit into a cache.
_FIT_INTO_CACHE = 4_000_000


def quick_dropout(inputs: torch.Tensor, rate: float, training: bool = True) -> torch.Tensor:
    """F.dropout, with a mask of uniform numbers on a CPU, which takes a quarter of the time there."""
    if not (training and rate):
        return inputs
    if inputs.device.type != "cpu":
        return F.dropout(inputs, rate)
    mask = torch.rand(inputs.shape).ge_(rate).div_(1 - rate)
    return inputs * mask.to(inputs.dtype)


class NICDropout(nn.Dropout):
    """Dropout of inputs or outputs; if variational, with one mask for all words of a caption.

    Source: Gal and Ghahramani 2016, [A Theoretically Grounded Application of
    Dropout](https://arxiv.org/abs/1512.05287).
    """

    def __init__(self, rate: float, variational: bool = False) -> None:
        super().__init__(rate)
        self.variational = variational

    def draw_mask(self, inputs: torch.Tensor) -> torch.Tensor | None:
        """Return a mask for all words of a caption, of the shape of `inputs`; `None` if each word has its own."""
        if not (self.variational and self.training and self.p):
            return None
        return quick_dropout(torch.ones_like(inputs), self.p)

    def forward(self, inputs: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """Apply dropout to `inputs` of shape `(num_captions, sequence_length, size)`, or `(num_captions, size)`.

        Without `mask`, variational dropout uses one mask for the second dimension.
        """
        if mask is None and inputs.ndim == 3:
            mask = self.draw_mask(inputs[:, :1])
        return quick_dropout(inputs, self.p, self.training) if mask is None else inputs * mask


def drop_inputs(inputs: torch.Tensor, dropout: NICDropout, image_dropout: float | None) -> torch.Tensor:
    """Apply dropout to the inputs of the LSTM, of shape `(num_captions, sequence_length, size)`.

    Args:
        inputs: the image, if `image_dropout` is given, and words.
        dropout: dropout of the words.
        image_dropout: dropout rate of the image; `None` if all inputs are words.
    """
    if image_dropout is None or image_dropout == dropout.p or not dropout.training:
        return dropout(inputs)
    image = quick_dropout(inputs[:, :1], image_dropout)
    return torch.cat([image, dropout(inputs[:, 1:])], dim=1) if inputs.shape[1] > 1 else image


class NICLSTM(nn.LSTM):
    """nn.LSTM, `batch_first`, with dropout of its recurrent weights in training, and fast for one word at a time.

    It has the weights of nn.LSTM. It always runs through `forward`, which PEFT replaces.

    Args:
        input_size, hidden_size, num_layers: as of nn.LSTM.
        dropout: between layers.
        recurrent_dropout: dropout rate of the hidden-to-hidden weights, the same for all words of the batch, at the
            speed of the fused LSTM (Merity et al. 2018, section 2, [DropConnect](https://arxiv.org/abs/1708.02182)).
    """

    def __init__(
        self, input_size: int, hidden_size: int, num_layers: int, dropout: float = 0.0, recurrent_dropout: float = 0.0
    ) -> None:
        super().__init__(
            input_size, hidden_size, num_layers, batch_first=True, dropout=dropout if num_layers > 1 else 0.0
        )
        self.recurrent_dropout = recurrent_dropout

    def forward(  # type: ignore[override]
        self, inputs: torch.Tensor, state: State | None = None, lengths: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, State]:
        """Read `inputs` of shape `(num_captions, sequence_length, input_size)`.

        Args:
            inputs: the inputs.
            state: (h, c) to continue from.
            lengths (`torch.LongTensor` of shape `(num_captions,)`): number of inputs of each caption; the rest is
                padding, and may be skipped.

        Returns:
            The outputs of the last layer, and the state (h, c), each of shape `(num_layers, num_captions,
            hidden_size)`.
        """
        is_word = inputs.shape[1] == 1 and state is not None
        if not self.training and (is_word or (inputs.shape[1] <= _FEW and inputs.device.type == "cpu")):
            return self.step_by_step(inputs, state, self.draw_weights())
        if lengths is not None and self._is_faster_packed(inputs):
            return self._read_packed(inputs, self._start(inputs) if state is None else state, lengths)
        if not (self.training and self.recurrent_dropout):
            return super().forward(inputs, state)
        state = self._start(inputs) if state is None else state
        outputs, hidden, cell = torch.lstm(
            inputs, state, self._weights(), True, self.num_layers, self.dropout, True, False, True
        )
        return outputs, (hidden, cell)

    def _read_packed(self, inputs: torch.Tensor, state: State, lengths: torch.Tensor) -> tuple[torch.Tensor, State]:
        packed = pack_padded_sequence(inputs, lengths, batch_first=True, enforce_sorted=False)
        state = (state[0][:, packed.sorted_indices], state[1][:, packed.sorted_indices])
        options = (True, self.num_layers, self.dropout, self.training, False)
        data, hidden, cell = torch.lstm(packed.data, packed.batch_sizes, state, self._weights(), *options)
        outputs, _ = pad_packed_sequence(packed._replace(data=data), True, total_length=inputs.shape[1])
        return outputs, (hidden[:, packed.unsorted_indices], cell[:, packed.unsorted_indices])

    def _weights(self) -> list[torch.Tensor]:
        return [weight for layer in self.draw_weights() for weight in layer]

    def _is_faster_packed(self, inputs: torch.Tensor) -> bool:
        """Whether skipping padding is faster; oneDNN is faster with float32 and small weights."""
        if inputs.device.type != "cpu" or torch.compiler.is_compiling():
            return False
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else inputs.dtype
        return (
            dtype is torch.bfloat16 and 4 * self.hidden_size * (self.input_size + self.hidden_size) > _FIT_INTO_CACHE
        )

    def _start(self, inputs: torch.Tensor) -> State:
        # Not len(), which would be a constant in a traced graph.
        zeros = inputs.new_zeros(self.num_layers, inputs.shape[0], self.hidden_size)
        return zeros, zeros

    def step_by_step(
        self, inputs: torch.Tensor, state: State | None, weights: list[list[torch.Tensor]]
    ) -> tuple[torch.Tensor, State]:
        """Read `inputs` word by word, as [`forward`] does, with `weights` from [`draw_weights`]."""
        cells = list(zip(*(self._start(inputs) if state is None else state), strict=True))
        outputs = []
        for place in range(inputs.shape[1]):
            cells = self.step(inputs[:, place], cells, weights)
            outputs.append(cells[-1][0])
        hidden, cell = zip(*cells, strict=True)
        return _stacked(outputs, 1), (_stacked(hidden, 0), _stacked(cell, 0))

    def draw_weights(self) -> list[list[torch.Tensor]]:
        """Weights of each layer (input to hidden, hidden to hidden, biases), with recurrent dropout in training."""
        layers = cast(list[list[torch.Tensor]], self.all_weights)
        if not (self.recurrent_dropout and self.training):
            return layers
        return [[ih, quick_dropout(hh, self.recurrent_dropout), *biases] for ih, hh, *biases in layers]

    def step(
        self,
        inputs: torch.Tensor,
        cells: list[tuple[torch.Tensor, torch.Tensor]],
        weights: list[list[torch.Tensor]],
    ) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Read one word, of shape `(num_captions, input_size)`, with the fused cell, which needs no preparation.

        Args:
            inputs: the word.
            cells: (h, c) of each layer, of shape `(num_captions, hidden_size)`.
            weights: from [`draw_weights`].
        """
        new_cells = []
        for layer, layer_weights in enumerate(weights):
            if layer > 0:
                inputs = quick_dropout(inputs, self.dropout, self.training)
            hidden, cell = torch.lstm_cell(inputs, cells[layer], *layer_weights)
            new_cells.append((hidden, cell))
            inputs = hidden
        return new_cells


def _stacked(parts: Sequence[torch.Tensor], dimension: int) -> torch.Tensor:
    """`torch.stack`, which copies; a single part is not copied."""
    return parts[0].unsqueeze(dimension) if len(parts) == 1 else torch.stack(list(parts), dim=dimension)


class _TrainedDecoder:
    """The dropout and the LSTM of [`TrainedDecoder`] and [`TrainedAttentiveDecoder`]."""

    def __init__(self, config: NICConfig) -> None:
        super().__init__(config)  # type: ignore[call-arg]
        self.dropout = NICDropout(config.dropout, config.variational_dropout)
        self.image_dropout = config.dropout if config.image_dropout is None else config.image_dropout

    @staticmethod
    def build_lstm(input_size: int, config: NICConfig) -> NICLSTM:
        """An LSTM that reads inputs of `input_size`."""
        size = (input_size, config.hidden_size, config.num_hidden_layers)
        return NICLSTM(*size, config.dropout, config.recurrent_dropout)


class TrainedDecoder(_TrainedDecoder, NICDecoder):
    """The core's decoder with all kinds of dropout, and a faster LSTM."""

    dropout: NICDropout

    def forward(
        self,
        inputs_embeds: torch.Tensor,
        state: State | None = None,
        regions: NICRegions | None = None,
        lengths: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, State, None]:
        """See [`NICDecoder.forward`]; inputs after the first `lengths`, of shape `(num_captions,)`, may be skipped."""
        if not self.training:  # dropout that drops nothing still takes a twentieth of the time of a word
            return *self.lstm(inputs_embeds, state), None
        inputs_embeds = drop_inputs(inputs_embeds, self.dropout, self.image_dropout if state is None else None)
        outputs, state = self.lstm(inputs_embeds, state, lengths)
        return self.dropout(outputs), state, None


class TrainedAttentiveDecoder(_TrainedDecoder, NICAttentiveDecoder):
    """The core's decoder with attention, with all kinds of dropout, and a faster LSTM."""

    lstm: NICLSTM
    dropout: NICDropout

    def word_reader(self) -> Callable[[torch.Tensor, State | None], tuple[torch.Tensor, State]]:
        """See the core's; a caption has one mask of variational dropout, and one of the recurrent weights."""
        weights = self.lstm.draw_weights() if self._is_alone() else None
        mask: torch.Tensor | None = None

        # As text: a compiler that traces this cannot join types.
        def read(inputs: torch.Tensor, state: "State | None") -> "tuple[torch.Tensor, State]":
            nonlocal mask
            mask = self.dropout.draw_mask(inputs) if mask is None else mask
            if state is None and self.image_dropout != self.dropout.p:
                inputs = quick_dropout(inputs, self.image_dropout, self.training)
            else:
                inputs = self.dropout(inputs, mask)
            return self.lstm(inputs, state) if weights is None else self.lstm.step_by_step(inputs, state, weights)

        return read

    def _is_alone(self) -> bool:
        """Whether the LSTM's weights are in place; PEFT, FSDP and Accelerate put them there while it runs."""
        hooked = self.lstm._forward_hooks or self.lstm._forward_pre_hooks or "forward" in vars(self.lstm)
        return type(self.lstm) is NICLSTM and not hooked
