"""Ensembles of captioners, which average the probabilities of each word.

The authors of the model gained 1.5 points of BLEU-4 by this (Vinyals et al. 2016, https://arxiv.org/abs/1609.06647).
"""

import copy
import math
from collections.abc import Sequence
from typing import Any, NoReturn

import torch
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput
from transformers.utils import can_return_tuple

from ..configuration_nic import IGNORED_LABEL, NICConfig
from ..layers_nic import NICEncoder
from ..model.cache import NICCache, cache_field
from ..model.captioner import NICForConditionalGeneration, check_keywords
from ..model.generation import FastGenerationMixin
from ..modeling_nic import NO_IMAGE, NICOutput
from .compatible_captioners import Member, load_members


class NICEnsembleCache:
    """The cache of each member.

    Attributes:
        members (list of `NICCache`): caches in the order of the members.
    """

    is_compileable = False
    is_linear = NICCache.is_linear

    def __init__(self, num_members: int) -> None:
        self.members = [NICCache() for _ in range(num_members)]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Number of tokens read, including `<bos>`."""
        return self.members[0].get_seq_length()

    @property
    def is_croppable(self) -> bool:
        """Whether [`crop`] works."""
        return self.members[0].is_croppable

    def activate_past_recording(self) -> None:
        """Record the states after each token from now on, for [`crop`]."""
        for cache in self.members:
            cache.activate_past_recording()

    def crop(self, tokens_to_remove: int) -> None:
        """Remove the last `-tokens_to_remove` tokens."""
        for cache in self.members:
            cache.crop(tokens_to_remove)

    def get_max_cache_shape(self, layer_idx: int = 0) -> int:
        """Return -1: the states do not grow with the caption."""
        return -1

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        """Let row `i` continue the caption of row `beam_idx[i]`; `beam_idx` has shape `(batch_size * num_beams,)`."""
        for cache in self.members:
            cache.reorder_cache(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat each row `repeats` times."""
        for cache in self.members:
            cache.batch_repeat_interleave(repeats)

    def batch_select_indices(self, indices: torch.LongTensor) -> None:
        """Keep only the rows `indices`."""
        self.reorder_cache(indices)

    def reset(self) -> None:
        """Reset all members."""
        for cache in self.members:
            cache.reset()


class NICEnsembleEncoder(nn.Module):
    """The distinct backbones of an ensemble; members whose backbones have the same weights share one.

    Args:
        members: the captioners.
        mirrored: also encode the mirrored photo with each backbone.
    """

    main_input_name = "pixel_values"

    def __init__(self, members: Sequence[NICForConditionalGeneration], mirrored: bool = False) -> None:
        super().__init__()
        self.encoders = nn.ModuleList()
        self.mirrored = mirrored
        self.sizes: list[int] = []  # feature size of each backbone
        self.numbers: list[int] = []  # index of the backbone of each member
        for member in members:
            number = find_same_encoder(member.encoder, list(self.encoders))
            if number is None:
                number = len(self.encoders)
                self.encoders.append(member.encoder)
                self.sizes.append(member.config.feature_size or 0)
            self.numbers.append(number)

    @property
    def feature_size(self) -> int | None:
        """Total feature size of a photo; `None` with regions, whose number depends on the photos."""
        return None if any(self._with_regions()) else sum(self.sizes) * (1 + self.mirrored)

    @can_return_tuple
    def forward(self, pixel_values: torch.Tensor, **kwargs: Any) -> BaseModelOutput:
        """Encode images of shape `(batch_size, num_channels, height, width)`.

        Returns:
            `BaseModelOutput` whose `last_hidden_state` has shape `(batch_size, 1, size)`: the concatenated features of
            all distinct backbones, with regions flattened, followed by those of the mirrored photos.
        """
        views = [pixel_values, pixel_values.flip(-1)] if self.mirrored else [pixel_values]
        features = [encoder(view).last_hidden_state.flatten(1) for view in views for encoder in self.encoders]
        return BaseModelOutput(last_hidden_state=torch.cat(features, dim=-1).unsqueeze(1))

    def split(self, features: torch.Tensor) -> list[torch.Tensor]:
        """Split the output of [`~NICEnsembleEncoder.forward`] into the features of each member, view by view.

        Raises:
            ValueError: if the size does not match the backbones.
        """
        with_regions, views = self._with_regions(), 1 + self.mirrored
        pooled = sum(size for size, regions in zip(self.sizes, with_regions, strict=True) if not regions)
        of_a_region = sum(self.sizes) - pooled
        of_a_view, uneven = divmod(features.shape[-1], views)
        if of_a_region:
            num_regions, left = divmod(of_a_view - pooled, of_a_region)
            fits = num_regions > 0 and not left
        else:
            num_regions, fits = 0, of_a_view == pooled
        if uneven or not fits:
            size = self.feature_size or f"{views} x ({pooled} + regions x {of_a_region})"
            raise ValueError(
                f"`encoder_outputs` must be features of shape (batch_size, {size}), got {tuple(features.shape)}; all"
                " backbones of an ensemble must have the same number of regions"
            )
        shapes = [
            (num_regions if regions else 1, size) for size, regions in zip(self.sizes, with_regions, strict=True)
        ]
        parts = features.flatten(1).split([rows * size for rows, size in shapes] * views, dim=1)
        shaped = [part.unflatten(1, shape) for part, shape in zip(parts, shapes * views, strict=True)]
        return [shaped[view * len(shapes) + number] for view in range(views) for number in self.numbers]

    def _with_regions(self) -> list[bool]:
        return [bool(encoder.keep_regions) for encoder in self.encoders]


class NICEnsemble(PreTrainedModel, FastGenerationMixin):
    """Several captioners with the same vocabulary, used like one: word probabilities are the mean of the members'.

    All decoding methods work, and so do `generate_captions` and [`ImageToTextPipeline`]. Members may differ in
    backbone, sizes and attention, but must have the same preprocessing. Features for `encoder_outputs` are the
    concatenated features of the distinct backbones in the order of the members, as returned by `get_image_features`;
    with a single backbone these are the usual features. Backbones with equal weights are found when the ensemble is
    created. The generation config is the first member's. An ensemble has no checkpoint: save its members.

    Args:
        members: the captioners. They are set to eval mode and not copied.
        mirrored: also show each member the mirrored photo, as if there were twice as many members. This takes twice
            the time, and "left" and "right" become meaningless. It also works with a single captioner.

    Raises:
        ValueError: if there is no member, or vocabulary sizes, ids of special tokens, or devices differ.

    Example:

    ```python
    ensemble = NICEnsemble.from_pretrained(["run-1", "run-2", "run-3"])
    ImageToTextPipeline(model=ensemble, processor=NICProcessor.from_pretrained("run-1"))("photo.jpg")
    ```
    """

    config_class = NICConfig
    base_model_prefix = "model"
    main_input_name = "pixel_values"
    _tied_weights_keys: dict[str, str] = {}  # noqa: RUF012

    config: NICConfig
    _caches = (None, "dynamic", "dynamic_full")

    def __init__(self, members: Sequence[NICForConditionalGeneration], mirrored: bool = False) -> None:
        models = list(load_members(members))
        devices = {str(model.device) for model in models}
        if len(devices) > 1:
            raise ValueError(f"the members of an ensemble must be on one device, got {', '.join(sorted(devices))}")
        super().__init__(copy.deepcopy(models[0].config))
        self.post_init()  # before members are added: it would initialize modules that it does not know
        self.members = nn.ModuleList(models)
        self.encoder = NICEnsembleEncoder(models, mirrored)
        self.readers = models * (1 + mirrored)  # every member, once per view of the photo
        self.config.feature_size, self.config.attention = self.encoder.feature_size, None
        self.generation_config = copy.deepcopy(models[0].generation_config)
        self.eval()

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls, paths: Sequence[Member], mirrored: bool = False, **kwargs: Any
    ) -> "NICEnsemble":
        """Load checkpoints, and compare their tokenizers and preprocessing if they contain them.

        Args:
            paths: paths or Hub ids.
            mirrored: as for the class.
            **kwargs: passed to `NICForConditionalGeneration.from_pretrained` for each checkpoint.

        Raises:
            ValueError: if checkpoints differ; the message names the checkpoint and the difference.
            OSError: if a checkpoint does not exist or is damaged.
        """
        models: list[NICForConditionalGeneration] = []
        for model in load_members(paths, **kwargs):
            number = find_same_encoder(model.encoder, [other.encoder for other in models])
            if number is not None:
                model.encoder = models[number].encoder  # one copy in memory
            models.append(model)
        return cls(models, mirrored)

    def save_pretrained(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Not supported: save the members instead.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError(
            "an ensemble has no checkpoint: save its `members`, and load them with NICEnsemble.from_pretrained"
        )

    def get_encoder(self, *args: Any, **kwargs: Any) -> nn.Module:
        """The distinct backbones, which `generate()` runs once per image."""
        return self.encoder

    # These only use the configuration and the encoder.
    get_image_features: Any = NICForConditionalGeneration.get_image_features
    prepare_decoder_input_ids_from_labels: Any = NICForConditionalGeneration.prepare_decoder_input_ids_from_labels

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        decoder_input_ids: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        encoder_outputs: BaseModelOutput | torch.Tensor | tuple[torch.Tensor, ...] | None = None,
        cache: NICEnsembleCache | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        past_key_values: NICEnsembleCache | None = None,
        decoder_attention_mask: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> NICOutput:
        """Predict each next word.

        Args:
            pixel_values (`torch.FloatTensor` of shape `(batch_size, num_channels, height, width)`): the images.
            decoder_input_ids (`torch.LongTensor` of shape `(batch_size, sequence_length)`): the words so far, starting
                with `<bos>`.
            labels (`torch.LongTensor` of shape `(batch_size, sequence_length)`): words to predict, as for
                [`NICForConditionalGeneration`].
            encoder_outputs (`torch.FloatTensor` of shape `(batch_size, feature_size)`, or output of the encoder):
                concatenated features of the distinct backbones, instead of `pixel_values`.
            cache (`NICEnsembleCache`): states to continue from.
            use_cache: return the states after the last word.
            output_hidden_states: also return the outputs of the LSTMs, one tensor per member.
            past_key_values: name of `cache` before Transformers 5.24.
            decoder_attention_mask: 0 for padding in `decoder_input_ids`.
            **kwargs: ignored, except for misspelled names.

        Returns:
            `NICOutput` whose `logits` (`(batch_size, sequence_length, vocab_size)`, float32) are the logarithms of
            the mean probabilities. The loss is the mean over the words of the batch.

        Raises:
            ValueError: if the image or the words are missing, or features have another size.
            TypeError: if a name among `kwargs` looks like a misspelled argument.
        """
        check_keywords(kwargs)
        cache = past_key_values if cache is None else cache
        if decoder_input_ids is None and labels is not None:
            decoder_input_ids = self.prepare_decoder_input_ids_from_labels(labels)
        if use_cache is None:
            use_cache = self.config.use_cache and labels is None
        if use_cache and cache is None:
            cache = NICEnsembleCache(len(self.readers))
        features: torch.Tensor | None = None
        each_features: Sequence[torch.Tensor | None] = [None] * len(self.readers)
        if cache is None or cache.get_seq_length() == 0:
            features = self._image_features(pixel_values, encoder_outputs)
            each_features = self.encoder.split(features)

        outputs = [
            member(
                decoder_input_ids=decoder_input_ids,
                encoder_outputs=each_features[number],
                cache=None if cache is None else cache.members[number],
                use_cache=use_cache,
                output_hidden_states=output_hidden_states,
                decoder_attention_mask=decoder_attention_mask,
                return_dict=True,
            )
            for number, member in enumerate(self.readers)
        ]
        # shape: (num_readers, batch_size, sequence_length, vocab_size)
        each = torch.stack([output.logits.float().log_softmax(dim=-1) for output in outputs])
        logits = each.logsumexp(dim=0) - math.log(len(outputs))
        loss = None
        if labels is not None:
            loss = F.cross_entropy(
                logits.flatten(0, 1), labels.flatten().to(logits.device), ignore_index=IGNORED_LABEL
            )
        return NICOutput(
            loss=loss,
            logits=logits,
            **cache_field(cache if use_cache else None),
            decoder_hidden_states=tuple(output.decoder_hidden_states[0] for output in outputs)
            if output_hidden_states
            else None,
            image_features=features,
        )

    def _image_features(self, pixel_values: torch.Tensor | None, encoder_outputs: Any) -> torch.Tensor:
        if encoder_outputs is None:
            if pixel_values is None:
                raise ValueError(NO_IMAGE)
            encoder_outputs = self.encoder(pixel_values)
        return self.check_features(encoder_outputs).squeeze(1)

    def check_features(self, encoder_outputs: Any) -> torch.Tensor:
        """Return features of shape `(batch_size, 1, feature_size)`, of a tensor or an encoder's output."""
        if self.config.feature_size is not None:
            return NICForConditionalGeneration.check_features(self, encoder_outputs)  # type: ignore[arg-type]
        features = getattr(encoder_outputs, "last_hidden_state", encoder_outputs)
        if torch.is_tensor(features) and features.ndim == 2:
            features = features.unsqueeze(1)
        if not torch.is_tensor(features) or features.ndim != 3 or features.shape[1] != 1:
            raise ValueError("`encoder_outputs` must be the output of `get_image_features` of this ensemble")
        return features

    def _empty_cache(self) -> NICEnsembleCache:
        return NICEnsembleCache(len(self.readers))


def find_same_encoder(encoder: NICEncoder, others: Sequence[nn.Module]) -> int | None:
    """Index of the first of `others` with the same settings and weights; `None` if there is none."""
    return next((number for number, other in enumerate(others) if _same_encoder(encoder, other)), None)


def _same_encoder(encoder: NICEncoder, other: Any) -> bool:
    if encoder is other:
        return True
    if type(encoder.backbone) is not type(other.backbone) or _settings(encoder) != _settings(other):
        return False
    weights, other_weights = encoder.state_dict(), other.state_dict()
    return weights.keys() == other_weights.keys() and all(
        tensor.dtype == other_weights[name].dtype and torch.equal(tensor, other_weights[name])
        for name, tensor in weights.items()
    )


def _settings(encoder: NICEncoder) -> dict[str, Any]:
    """The backbone's configuration without its origin, and the layers that are used."""
    origin = ("_name_or_path", "architectures", "dtype", "transformers_version", "id2label", "label2id")
    settings = {name: value for name, value in encoder.backbone.config.to_dict().items() if name not in origin}
    return {**settings, "feature_layers": encoder.feature_layers, "keep_regions": encoder.keep_regions}
