"""The parts of a captioner: the encoder, the decoder with or without attention, and the decoder's state.

Equation numbers of attention are those of Xu et al. 2015, Show, Attend and Tell, https://arxiv.org/abs/1502.03044.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional as F
from transformers import AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput
from transformers.utils import ModelOutput, can_return_tuple

from .configuration_nic import NICConfig, resolve_backbone_config

State = tuple[torch.Tensor, torch.Tensor]  # h and c, each of shape (num_layers, num_captions, hidden_size)


class NICEncoder(nn.Module):
    """Image to feature: the backbone, pooled, or one feature per region if there is attention.

    A frozen backbone stays in eval mode, whatever the mode of the rest of the model.
    """

    main_input_name = "pixel_values"

    def __init__(self, config: NICConfig) -> None:
        super().__init__()
        self.backbone = build_backbone(config.backbone_config, config.use_backbone_pooler)
        self.frozen = config.freeze_backbone
        self.freeze_batch_norm = config.freeze_batch_norm
        self.keep_regions = config.attention is not None
        self.feature_layers = config.feature_layers

    def set_frozen(self, frozen: bool) -> None:
        """Freeze or unfreeze the backbone: gradients, BatchNorm and dropout."""
        self.frozen = frozen
        self.backbone.requires_grad_(not frozen)
        self.train(self.training)

    def train(self, mode: bool = True) -> "NICEncoder":
        """Set training mode, except for a frozen backbone and for BatchNorm with frozen statistics."""
        super().train(mode)
        if self.frozen:
            self.backbone.eval()
        elif self.freeze_batch_norm:
            for module in self.backbone.modules():
                if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d | nn.SyncBatchNorm):
                    module.eval()
        return self

    @can_return_tuple
    def forward(
        self, pixel_values: torch.Tensor, output_hidden_states: bool | None = None, **kwargs: Any
    ) -> BaseModelOutput:
        """Encode `(batch_size, num_channels, height, width)` as `(batch_size, 1 or num_regions, feature_size)`."""
        outputs = self.run_backbone(pixel_values, output_hidden_states)
        states = getattr(outputs, "hidden_states", None) if output_hidden_states else None
        return BaseModelOutput(last_hidden_state=self.features(outputs, pixel_values.shape), hidden_states=states)

    def run_backbone(self, backbone_input: torch.Tensor, output_hidden_states: bool | None = None) -> ModelOutput:
        """Run the backbone, without gradients if it is frozen."""
        # Not passed if nobody asks for them, as not every backbone has that argument.
        asked = {"output_hidden_states": True} if output_hidden_states or self.feature_layers is not None else {}
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            return self.backbone(pixel_values=backbone_input.to(self.backbone.dtype), **asked)

    def features(self, outputs: ModelOutput, image_shape: Sequence[int]) -> torch.Tensor:
        """Features of the shape of `last_hidden_state` in [`forward`], from the output of the backbone."""
        if self.keep_regions:
            patches = count_patches(self.backbone.config, *image_shape[-2:])
            return region_features(outputs, patches, self.feature_layers)
        return pooled_features(outputs, self.feature_layers).unsqueeze(1)


def build_backbone(config: PreTrainedConfig | dict | None, use_pooler: bool) -> PreTrainedModel:
    """Build a vision model with random weights, in the dtype of the model around it."""
    config, dtype = resolve_backbone_config(config), torch.get_default_dtype()
    if not use_pooler:
        try:
            return AutoModel.from_config(config, dtype=dtype, add_pooling_layer=False)
        except TypeError:
            pass  # its pooling layer, if any, is not optional
    return AutoModel.from_config(config, dtype=dtype)


def pooled_features(outputs: ModelOutput, layers: str | Sequence[int] | None = None) -> torch.Tensor:
    """The pooled output, or the mean over positions, then the means of `layers`: `(batch_size, feature_size)`."""
    pooled = getattr(outputs, "pooler_output", None)
    pooled = mean_over_positions(last_hidden_state(outputs)) if pooled is None else pooled
    return torch.cat([pooled.flatten(1), *map(mean_over_positions, layer_outputs(outputs, layers))], dim=-1)


def region_features(
    outputs: ModelOutput, num_patches: int | None = None, layers: str | Sequence[int] | None = None
) -> torch.Tensor:
    """Features of regions, row by row: `(batch_size, num_regions, feature_size)`. They are the positions of a CNN's
    last feature map, or the patches of a transformer, without the tokens before them (CLS, registers)."""
    last, others = last_hidden_state(outputs), layer_outputs(outputs, layers)
    if last.ndim == 4:  # shape: (batch_size, channels, height, width)
        maps = [last, *(F.adaptive_avg_pool2d(output, (last.shape[2], last.shape[3])) for output in others)]
        return torch.cat([each.flatten(2) for each in maps], dim=1).transpose(1, 2)
    if any(output.shape[:2] != last.shape[:2] for output in others):
        raise ValueError("`feature_layers` with attention needs layers with the same patches as the last, or a CNN's")
    # Models that merge patches (Swin) return fewer than the image had, and no other tokens.
    extra = 0 if num_patches is None else max(last.shape[1] - num_patches, 0)
    return torch.cat([last, *others], dim=-1)[:, extra:]


def layer_outputs(outputs: ModelOutput, layers: str | Sequence[int] | None) -> list[torch.Tensor]:
    """The hidden states of `layers` (see [`NICConfig`])."""
    if layers is None:
        return []
    states = getattr(outputs, "hidden_states", None)
    if not states:
        raise ValueError("`feature_layers` needs a backbone that returns its `hidden_states`, which this one does not")
    for index in () if isinstance(layers, str) else layers:
        if not -len(states) <= index < len(states):
            raise ValueError(f"`feature_layers` has {index}, but the backbone has {len(states)} layers")
    return list(states) if isinstance(layers, str) else [states[index] for index in layers]


def mean_over_positions(states: torch.Tensor) -> torch.Tensor:
    """CNNs return `(batch_size, channels, height, width)`, transformers `(batch_size, positions, channels)`."""
    return states.mean(dim=(2, 3)) if states.ndim == 4 else states.mean(dim=1)


def last_hidden_state(outputs: ModelOutput) -> torch.Tensor:
    """The output of the last layer."""
    states = getattr(outputs, "last_hidden_state", None)
    if states is None:
        raise ValueError(f"the backbone's output has neither: {', '.join(outputs.keys())}")
    return states


def count_patches(config: PreTrainedConfig, height: int, width: int) -> int | None:
    """Number of patches of an image; `None` if the configuration names no patch size."""
    size = getattr(config, "patch_size", None)
    if isinstance(size, list | tuple) and len(size) == 2:
        return (height // size[0]) * (width // size[1])
    return (height // size) * (width // size) if isinstance(size, int) else None


class NICImageProjection(nn.Module):
    """Image feature to the LSTM's first input: standardisation, as an LSTM learns faster so, and a linear layer."""

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, feature_size: int, embedding_size: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(feature_size))
        self.register_buffer("std", torch.ones(feature_size))
        self.linear = nn.Linear(feature_size, embedding_size)

    def forward(self, image_features: torch.Tensor) -> torch.Tensor:
        """Project features of shape `(..., feature_size)` to `(..., embedding_size)`."""
        return self.linear((image_features.to(self.linear.weight.dtype) - self.mean) / self.std)


class NICRegions(NamedTuple):
    """What attention reads of images. Captions of one image, or beams of one caption, are adjacent and share a row.

    Attributes:
        features: annotation vectors a_i, of shape `(num_images, num_regions, embedding_size)`.
        keys: the part of f_att, equation 4, without h, of shape `(num_images, num_regions, hidden_size)`.
    """

    features: torch.Tensor
    keys: torch.Tensor

    def captions_per_image(self, num_captions: int) -> int:
        """Number of captions that share an image."""
        if num_captions % len(self.keys):
            raise ValueError(
                f"{num_captions} captions do not fit {len(self.keys)} images: give as many for each image"
            )
        return num_captions // len(self.keys)

    def select(self, rows: torch.Tensor, num_captions: int) -> "NICRegions":
        """Regions of the captions `rows`, out of `num_captions`."""
        images = rows.to(self.keys.device) // self.captions_per_image(num_captions)
        return NICRegions(self.features.index_select(0, images), self.keys.index_select(0, images))


@dataclass(eq=False)
class NICCache:
    """The LSTM's state after the words read so far, in the role of Transformers' key-value cache.

    Args:
        hidden_state, cell_state: h and c, of shape `(num_hidden_layers, batch_size, hidden_size)`, after the image.
        regions: what attention reads, after the image.
    """

    hidden_state: torch.Tensor | None = None
    cell_state: torch.Tensor | None = None
    regions: NICRegions | None = None

    is_compileable = False
    is_linear = (True,)  # for each layer: whether its state has a constant size
    is_croppable = False

    def __post_init__(self) -> None:
        self.seq_length = 0

    @property
    def has_read_image(self) -> bool:
        """Whether the next input is a word."""
        return self.hidden_state is not None

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Number of words read, `<bos>` included. The image is not a word."""
        return self.seq_length

    def update(self, state: State, num_tokens: int, regions: NICRegions | None = None) -> None:
        """Replace the state by the state after `num_tokens` more words."""
        self.hidden_state, self.cell_state, self.regions = *state, regions
        self.seq_length += num_tokens

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        """Let row `i` continue the caption of row `beam_idx[i]`; `beam_idx` has shape `(batch_size * num_beams,)`."""
        if self.hidden_state is None or self.cell_state is None:
            return
        if self.regions is not None:
            self.regions = self.regions.select(beam_idx, num_captions=self.hidden_state.shape[1])
        self.hidden_state = self.hidden_state.index_select(1, beam_idx.to(self.hidden_state.device))
        self.cell_state = self.cell_state.index_select(1, beam_idx.to(self.cell_state.device))


torch.export.register_dataclass(NICCache)  # an exported step takes and returns its tensors, and counts no words


class NICDecoder(nn.Module):
    """The LSTM of Show and Tell: the image first, then words."""

    def __init__(self, config: NICConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.embedding_size)
        self.dropout = nn.Dropout(config.dropout)
        if config.attention is None:
            self.lstm = self.build_lstm(config.embedding_size, config)
        else:
            self.attention = NICAttention(config.embedding_size, config.hidden_size)
            self.lstm = self.build_lstm(2 * config.embedding_size, config)

    @staticmethod
    def build_lstm(input_size: int, config: NICConfig) -> nn.LSTM:
        """An LSTM that reads inputs of `input_size`."""
        layers, dropout = config.num_hidden_layers, config.dropout if config.num_hidden_layers > 1 else 0.0
        return nn.LSTM(input_size, config.hidden_size, layers, batch_first=True, dropout=dropout)

    def forward(
        self, inputs_embeds: torch.Tensor, state: State | None = None, regions: NICRegions | None = None
    ) -> tuple[torch.Tensor, State, torch.Tensor | None]:
        """Read inputs of shape `(num_captions, sequence_length, embedding_size)`; without a state, the image first.

        Returns:
            Outputs of shape `(num_captions, sequence_length, hidden_size)`, the state after them, and weights of
            attention, of shape `(num_captions, num_words, num_regions)`, or `None`.
        """
        outputs, state = self.lstm(self.dropout(inputs_embeds), state)
        return self.dropout(outputs), state, None


class NICAttention(nn.Module):
    """Soft attention: f_att of equation 4 is a perceptron with one hidden layer.

    The annotation vectors are projected once per image: a linear projection commutes with the sum of equation 13.
    """

    def __init__(self, embedding_size: int, hidden_size: int) -> None:
        super().__init__()
        self.key = nn.Linear(embedding_size, hidden_size)
        self.query = nn.Linear(hidden_size, hidden_size, bias=False)
        self.score = nn.Linear(hidden_size, 1, bias=False)  # a bias would cancel in the softmax
        self.gate = nn.Linear(hidden_size, 1)

    def read_regions(self, features: torch.Tensor) -> NICRegions:
        """Prepare a_i, of shape `(num_images, num_regions, embedding_size)`, for any number of words."""
        return NICRegions(features, self.key(features))

    def forward(self, hidden_state: torch.Tensor, regions: NICRegions) -> tuple[torch.Tensor, torch.Tensor]:
        """Return z_t, of shape `(num_captions, embedding_size)`, and alpha_t, of shape `(num_captions, num_regions)`,
        given h(t-1) of the last layer, of shape `(num_captions, hidden_size)`."""
        # shape: (num_images, captions per image, 1, hidden_size)
        queries = self.query(hidden_state).view(regions.keys.shape[0], -1, 1, hidden_state.shape[-1])
        # tanh_ in place: this is the largest tensor of a step, and no gradient needs the sum.
        scores = self.score((regions.keys.unsqueeze(1) + queries).tanh_()).squeeze(-1)  # equation 4
        weights = scores.softmax(dim=-1)  # equation 5; shape: (num_images, captions per image, num_regions)
        context = torch.bmm(weights, regions.features.to(weights.dtype)).flatten(0, 1)  # equation 13
        # beta_t of section 4.2.1: some words ("of", "the") do not depend on the image.
        return torch.sigmoid(self.gate(hidden_state)) * context, weights.flatten(0, 1)


class NICAttentiveDecoder(NICDecoder):
    """The LSTM that reads with each word the context that attention finds for it, equations 1 to 3.

    The first input, at t = -1, is the mean of the regions. In the paper two perceptrons turn that mean into h and c.
    """

    attention: NICAttention

    def forward(
        self, inputs_embeds: torch.Tensor, state: State | None = None, regions: NICRegions | None = None
    ) -> tuple[torch.Tensor, State, torch.Tensor | None]:
        """See [`NICDecoder.forward`]; `regions` are required."""
        if regions is None:
            raise ValueError("`cache` holds no regions to attend to: it belongs to a model without attention")
        outputs, attended, read = [], [], self.word_reader()
        after: Any = state
        for inputs in inputs_embeds.split(1, dim=1):
            if after is None:
                context = inputs.new_zeros(inputs.shape[0], regions.features.shape[-1])
            else:
                context, weights = self.attention(after[0][-1], regions)
                attended.append(weights)
            output, after = read(torch.cat([inputs, context.unsqueeze(1)], dim=-1), after)
            outputs.append(output)
        no_word = inputs_embeds.new_zeros(inputs_embeds.shape[0], 0, regions.keys.shape[1])
        weights = torch.stack(attended, dim=1) if attended else no_word
        return self.dropout(torch.cat(outputs, dim=1)), after, weights

    def word_reader(self) -> Callable[[torch.Tensor, State | None], tuple[torch.Tensor, State]]:
        """A function that reads one input and its context, given the state, and returns output and state."""
        return lambda inputs, state: self.lstm(self.dropout(inputs), state)
