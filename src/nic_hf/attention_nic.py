"""Soft attention: at each word the LSTM looks at the regions of the photo that matter for it.

Equation numbers are those of Xu et al. 2015, Show, Attend and Tell, https://arxiv.org/abs/1502.03044.
"""

from typing import NamedTuple

import torch
from torch import nn

from .configuration_nic import NICConfig
from .decoder_nic import NICLSTM, NICDropout, quick_dropout


class NICRegions(NamedTuple):
    """What attention reads of photos, computed once a caption and not once a word.

    Captions of one photo, or beams of one caption, lie together and share their photo's row: row `i` of `num_captions`
    looks at photo `i // (num_captions // num_photos)`.

    Attributes:
        features (`torch.FloatTensor` of shape `(num_photos, num_regions, embedding_size)`): annotation vectors a_i.
        keys (`torch.FloatTensor` of shape `(num_photos, num_regions, hidden_size)`): the half of f_att, equation 4,
            that depends on the regions alone.
    """

    features: torch.Tensor
    keys: torch.Tensor

    def captions_a_photo(self, num_captions: int) -> int:
        """How many of `num_captions` rows share a photo.

        Raises:
            ValueError: where the rows cannot be shared out evenly.
        """
        num_photos = len(self.keys)
        if num_captions % num_photos:
            raise ValueError(f"{num_captions} captions do not fit {num_photos} photos: give as many of each photo")
        return num_captions // num_photos

    def select(self, rows: torch.LongTensor, num_captions: int) -> "NICRegions":
        """The regions that the captions `rows` look at, out of `num_captions`.

        Beams that change places stay with their photo. The regions are by far the largest part of the state, and are
        left where they are then.
        """
        photos = rows.to(self.keys.device) // self.captions_a_photo(num_captions)
        num_photos = len(self.keys)
        unchanged = torch.arange(num_photos, device=photos.device).repeat_interleave(max(len(photos) // num_photos, 1))
        if torch.equal(photos, unchanged):
            return self
        return NICRegions(self.features.index_select(0, photos), self.keys.index_select(0, photos))


class NICAttention(nn.Module):
    """Where to look for the next word: f_att of equation 4 is a perceptron with one hidden layer, as in the paper.

    The annotation vectors are the backbone's regions in the space that words and image share: the image's projection
    is linear, so it comes to the same before the weighted sum of equation 13 as after it, and once a photo is cheaper
    than once a word.
    """

    def __init__(self, embedding_size: int, hidden_size: int) -> None:
        super().__init__()
        self.key = nn.Linear(embedding_size, hidden_size)
        self.query = nn.Linear(hidden_size, hidden_size, bias=False)
        self.score = nn.Linear(hidden_size, 1, bias=False)  # a bias would cancel in the softmax
        self.gate = nn.Linear(hidden_size, 1)

    def read_regions(self, features: torch.Tensor) -> NICRegions:
        """Prepare a_i, of shape `(num_photos, num_regions, embedding_size)`, for any number of words."""
        return NICRegions(features, self.key(features))

    def forward(self, hidden_state: torch.Tensor, regions: NICRegions) -> tuple[torch.Tensor, torch.Tensor]:
        """Look at the regions, given h(t-1) of the last LSTM layer, of shape `(num_captions, hidden_size)`.

        Returns:
            The context z_t, of shape `(num_captions, embedding_size)`, and the weights alpha_t of the regions, of
            shape `(num_captions, num_regions)`, which add up to 1.
        """
        # shape: (num_photos, captions of a photo, 1, hidden_size)
        queries = self.query(hidden_state).view(regions.keys.shape[0], -1, 1, hidden_state.shape[-1])
        # In place: with 49 regions this is the largest tensor of a step, and no gradient needs the sum.
        scores = self.score((regions.keys.unsqueeze(1) + queries).tanh_()).squeeze(-1)  # equation 4
        weights = scores.softmax(dim=-1)  # equation 5; shape: (num_photos, captions of a photo, num_regions)
        context = torch.bmm(weights, regions.features.to(weights.dtype)).flatten(0, 1)  # equation 13
        # beta_t of section 4.2.1: some words ("of", "the") need no look at the photo.
        return torch.sigmoid(self.gate(hidden_state)) * context, weights.flatten(0, 1)


class NICAttentiveDecoder(nn.Module):
    """The LSTM of Show and Tell that reads with each word the context that attention finds for it, equations 1 to 3.

    The image comes first, at t = -1, as without attention: the mean of the regions in place of the pooled feature, and
    no context beside it. In the paper two perceptrons make h and c of that mean; here the LSTM does, so that the two
    captioners differ in nothing but where they look.
    """

    def __init__(self, config: NICConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.embedding_size)
        self.dropout = NICDropout(config.dropout, config.variational_dropout)
        self.image_dropout = config.dropout if config.image_dropout is None else config.image_dropout
        self.attention = NICAttention(config.embedding_size, config.hidden_size)
        self.hidden_size, self.num_layers = config.hidden_size, config.num_hidden_layers
        self.lstm = NICLSTM(
            2 * config.embedding_size,
            config.hidden_size,
            config.num_hidden_layers,
            config.dropout,
            config.recurrent_dropout,
        )

    def forward(
        self,
        inputs_embeds: torch.Tensor,
        state: tuple[torch.Tensor, torch.Tensor] | None,
        regions: NICRegions,
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor], torch.Tensor]:
        """Read inputs of shape `(num_captions, sequence_length, embedding_size)`, going on from `state`.

        Without a state the first input is the image, which comes without a context.

        Returns:
            The outputs, of shape `(num_captions, sequence_length, hidden_size)`; the state (h, c) after them, each of
            shape `(num_hidden_layers, num_captions, hidden_size)`; and the weights of the regions at each word, of
            shape `(num_captions, number of words, num_regions)`.
        """
        num_captions = inputs_embeds.shape[0]  # not len(), which would be a constant in a traced graph
        outputs, attended = [], []
        weights = self.lstm.draw_weights() if self._is_alone() else []
        mask: torch.Tensor | None = None
        if state is None:
            zeros = inputs_embeds.new_zeros(num_captions, self.hidden_size)
            cells = [(zeros, zeros)] * self.num_layers
        else:
            cells = list(zip(state[0], state[1], strict=True))
        for position, inputs in enumerate(inputs_embeds.unbind(dim=1)):
            if position == 0 and state is None:
                context = inputs.new_zeros(num_captions, regions.features.shape[-1])
            else:
                context, seen = self.attention(cells[-1][0], regions)
                attended.append(seen)
            inputs = torch.cat([inputs, context], dim=-1)
            mask = self.dropout.draw_mask(inputs) if mask is None else mask
            if position == 0 and state is None and self.image_dropout != self.dropout.p:
                inputs = quick_dropout(inputs, self.image_dropout, self.training)
            else:
                inputs = self.dropout(inputs, mask)
            cells = self.lstm.step(inputs, cells, weights) if weights else self._read(inputs, cells)
            outputs.append(cells[-1][0])
        hidden_state, cell_state = (torch.stack(part) for part in zip(*cells, strict=True))
        no_word = inputs_embeds.new_zeros(num_captions, 0, regions.keys.shape[1])
        return (
            self.dropout(torch.stack(outputs, dim=1)),
            (hidden_state, cell_state),
            torch.stack(attended, dim=1) if attended else no_word,
        )

    def _is_alone(self) -> bool:
        """Whether the LSTM's weights are in place; PEFT, FSDP and Accelerate put them there while it runs."""
        hooked = self.lstm._forward_hooks or self.lstm._forward_pre_hooks or "forward" in vars(self.lstm)
        return type(self.lstm) is NICLSTM and not hooked

    def _read(
        self, inputs: torch.Tensor, cells: list[tuple[torch.Tensor, torch.Tensor]]
    ) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """One word through all layers, by the LSTM as a whole."""
        hidden, cell = (torch.stack(part) for part in zip(*cells, strict=True))
        _, state = self.lstm(inputs.unsqueeze(1), (hidden, cell))
        return list(zip(*state, strict=True))


def doubly_stochastic_penalty(weights: torch.Tensor, is_word: torch.Tensor) -> torch.Tensor:
    """sum_i (1 - sum_t alpha_ti)^2, summed over captions: the second term of equation 14, without its factor lambda.

    It asks that over a caption each region is looked at about as much as any other.

    Args:
        weights (`torch.FloatTensor` of shape `(num_captions, sequence_length, num_regions)`): of the attention.
        is_word (`torch.BoolTensor` of shape `(num_captions, sequence_length)`): false where padded. A caption that is
            all padding counts for nothing.
    """
    seen = (weights.float() * is_word.unsqueeze(-1)).sum(dim=1)  # shape: (num_captions, num_regions)
    return ((1 - seen).square().sum(dim=-1) * is_word.any(dim=-1)).sum()
