"""Dropout for an LSTM: on what it reads, on what it says, and on the way from one word to the next."""

from typing import cast

import torch
from torch import nn
from torch.nn import functional as F


class NICDropout(nn.Dropout):
    """Dropout of inputs or outputs; where it is variational, with one mask for all words of a caption.

    A mask drawn anew for each word lets the LSTM average over the words what it should do without (Gal and Ghahramani
    2016, [A Theoretically Grounded Application of Dropout](https://arxiv.org/abs/1512.05287)).
    """

    def __init__(self, rate: float, variational: bool = False) -> None:
        super().__init__(rate)
        self.variational = variational

    def draw_mask(self, inputs: torch.Tensor) -> torch.Tensor | None:
        """A mask for a caption's words one by one, of the shape of `inputs`; `None` where each word has its own."""
        if not (self.variational and self.training and self.p):
            return None
        return F.dropout(torch.ones_like(inputs), self.p)

    def forward(self, inputs: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """Drop from `inputs`, of shape `(num_captions, sequence_length, size)`, or `(num_captions, size)` for a word.

        Without `mask` a variational dropout takes the second dimension for the words.
        """
        if mask is None and inputs.ndim == 3:
            mask = self.draw_mask(inputs[:, :1])
        return super().forward(inputs) if mask is None else inputs * mask


def drop_inputs(inputs: torch.Tensor, dropout: NICDropout, image_dropout: float | None) -> torch.Tensor:
    """Dropout of what the LSTM reads, of shape `(num_captions, sequence_length, size)`.

    Args:
        inputs: the image first, where `image_dropout` is given, and words after it.
        dropout: of the words.
        image_dropout: share of the image's values; `None` where all inputs are words.
    """
    if image_dropout is None or image_dropout == dropout.p or not dropout.training:
        return dropout(inputs)
    image = F.dropout(inputs[:, :1], image_dropout)
    return torch.cat([image, dropout(inputs[:, 1:])], dim=1) if inputs.shape[1] > 1 else image


def lstm_weights(lstm: nn.LSTM, recurrent_dropout: float) -> list[list[torch.Tensor]]:
    """The weights of each layer: input to hidden, hidden to hidden, and their biases.

    In training, `recurrent_dropout` of the weights from hidden to hidden are set to zero, the same for all words of
    the batch. That is recurrent dropout at the speed of the fused LSTM (Merity et al. 2018, section 2,
    [DropConnect](https://arxiv.org/abs/1708.02182)).
    """
    layers = cast(list[list[torch.Tensor]], lstm.all_weights)
    if not (recurrent_dropout and lstm.training):
        return layers
    return [[ih, F.dropout(hh, recurrent_dropout), *biases] for ih, hh, *biases in layers]
