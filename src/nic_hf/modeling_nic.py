"""Show and Tell: a vision backbone, an LSTM, and the loss of the paper.

Equation numbers are those of Vinyals et al. 2015, Show and Tell, https://arxiv.org/abs/1411.4555.
"""

from dataclasses import dataclass
from os import PathLike
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import GenerationConfig, GenerationMixin, PreTrainedModel
from transformers import initialization as init
from transformers.generation import GenerateEncoderDecoderOutput
from transformers.modeling_outputs import BaseModelOutput
from transformers.utils import ModelOutput, can_return_tuple, logging

from .configuration_nic import IGNORED_LABEL, NICConfig
from .layers_nic import NICAttentiveDecoder, NICCache, NICDecoder, NICEncoder, NICImageProjection, NICRegions, State

logger = logging.get_logger(__name__)

# What `generate()` calls a model's state; 5.24 renamed it. Without either name all words are read again at each step.
CACHE_NAME = next((name for name in ("cache", "past_key_values") if hasattr(GenerateEncoderDecoderOutput, name)), "")
NO_IMAGE = "no image: give `pixel_values`, or image features as `encoder_outputs`"


@dataclass
class NICOutput(ModelOutput):
    """Output of [`NICForConditionalGeneration`].

    Args:
        loss: equation 10, averaged over the words of the batch; with `labels`.
        logits: scores of each next word, of shape `(batch_size, sequence_length, vocab_size)`.
        cache, past_key_values: the LSTM's state, by the name that the installed Transformers has for it.
        decoder_hidden_states: outputs of the last LSTM layer, of shape `(batch_size, sequence_length, hidden_size)`.
        cross_attentions: weights of the regions, of shape `(batch_size, sequence_length, num_regions)`.
        decoder_attentions: an empty tuple, since no layer of an LSTM attends to words.
        encoder_last_hidden_state, encoder_hidden_states: output of the encoder, and hidden states of the backbone.
        image_features: as [`get_image_features`] returns them; `None` if the cache has read them.
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    if CACHE_NAME == "past_key_values":
        past_key_values: NICCache | None = None

        @property
        def cache(self) -> NICCache | None:
            """The name from 5.24 on."""
            return self.past_key_values
    else:
        cache: NICCache | None = None  # type: ignore[no-redef]
    decoder_hidden_states: tuple[torch.Tensor, ...] | None = None
    cross_attentions: tuple[torch.Tensor, ...] | None = None
    decoder_attentions: tuple[()] | None = None
    encoder_last_hidden_state: torch.Tensor | None = None
    encoder_hidden_states: tuple[torch.Tensor, ...] | None = None
    image_features: torch.Tensor | None = None


class NICGenerationMixin(GenerationMixin):
    """`GenerationMixin` for a model whose encoder reads images and whose state is an LSTM's."""

    generation_config: Any
    check_features: Any

    def new_cache(self, cache_implementation: str | None, is_assistant: bool) -> Any:
        """An empty state; `None` leaves it to `GenerationMixin`, as a subclass may."""
        return NICCache()

    def generate(self, inputs: Any = None, generation_config: GenerationConfig | None = None, **kwargs: Any) -> Any:
        """Generate captions of `pixel_values`, or of their features as `encoder_outputs`. Captions may begin with
        `decoder_input_ids`, `<bos>` first, with a `decoder_attention_mask` that is 0 at padding."""
        features = kwargs.get("encoder_outputs")
        if features is not None:
            states = getattr(features, "hidden_states", None)
            kwargs["encoder_outputs"] = BaseModelOutput(self.check_features(features), hidden_states=states)
        elif inputs is None and kwargs.get("pixel_values") is None:
            raise ValueError(NO_IMAGE)
        # Transformers prefers the checkpoint's `max_new_tokens` to the caller's `max_length`.
        if kwargs.get("max_new_tokens") is not None or kwargs.get("max_length") is not None:
            kwargs = {"max_new_tokens": None, "max_length": None, **kwargs}
        settings = generation_config or self.generation_config
        implementation = kwargs.get("cache_implementation", settings.cache_implementation)
        given = [kwargs.pop(name, None) for name in ("cache", "past_key_values")]
        cache = given[1] if given[0] is None else given[0]
        if cache is None and kwargs.get("use_cache", settings.use_cache) is not False:
            cache = self.new_cache(implementation, getattr(settings, "is_assistant", False))
            if cache is not None and implementation is not None:
                kwargs["cache_implementation"] = None  # Transformers takes it without a cache only
        if cache is not None and CACHE_NAME:
            kwargs[CACHE_NAME] = cache
        return super().generate(inputs, generation_config, **kwargs)

    def prepare_inputs_for_generation(
        self, input_ids: torch.Tensor, cache: Any = None, past_key_values: Any = None, **kwargs: Any
    ) -> dict[str, Any]:
        """Return the words that the LSTM has not read, and the image if it has not read that."""
        cache = (past_key_values if cache is None else cache) if CACHE_NAME else None
        num_read = 0 if cache is None else cache.get_seq_length()
        names = ["use_cache", "output_hidden_states", "output_attentions"]
        names += [] if num_read else ["encoder_outputs", "decoder_attention_mask"]
        inputs = {"decoder_input_ids": input_ids[:, num_read:], "cache": cache} | {n: kwargs.get(n) for n in names}
        return inputs if CACHE_NAME else {**inputs, "use_cache": False}


class NICForConditionalGeneration(PreTrainedModel, NICGenerationMixin):
    """Show and Tell: a caption of an image, word by word."""

    config_class = NICConfig
    base_model_prefix = "model"
    main_input_name = "pixel_values"
    supports_gradient_checkpointing = True
    _no_split_modules = ["NICImageProjection", "LSTM"]  # noqa: RUF012
    _tied_weights_keys = {"lm_head.weight": "decoder.embed_tokens.weight"}  # noqa: RUF012

    config: NICConfig

    def __init__(self, config: NICConfig) -> None:
        super().__init__(config)
        self.encoder = NICEncoder(config)
        if config.feature_size is None:
            config.feature_size = self._infer_feature_size()
        self.image_projection = NICImageProjection(config.feature_size, config.embedding_size)
        self.decoder = self.build_decoder(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size)
        self.bag_of_words = nn.Linear(config.embedding_size, config.vocab_size) if config.bag_of_words_loss else None
        self.apply_freezing()
        self.generation_config = default_generation_config(config)
        self.post_init()

    def build_decoder(self, config: NICConfig) -> NICDecoder:
        """The decoder, with random weights."""
        return NICDecoder(config) if config.attention is None else NICAttentiveDecoder(config)

    @torch.no_grad()
    def _infer_feature_size(self) -> int:
        config = self.encoder.backbone.config
        size = getattr(config, "image_size", None) or 224
        shape = (1, getattr(config, "num_channels", 3), *((size, size) if isinstance(size, int) else size[-2:]))
        try:
            return self.encoder.eval()(next(self.encoder.parameters()).new_zeros(shape)).last_hidden_state.shape[-1]
        except Exception as error:  # of any model
            raise ValueError(
                f"a model of type '{config.model_type}' cannot be the backbone of a captioner: it does not turn "
                f"`pixel_values` into a `pooler_output` or a `last_hidden_state` ({error})"
            ) from error

    def apply_freezing(self) -> None:
        """Freeze the backbone and the word vectors as the configuration says."""
        self.encoder.set_frozen(self.config.freeze_backbone)
        self.decoder.embed_tokens.weight.requires_grad_(not self.config.freeze_word_embeddings)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        bound = self.config.initializer_range
        if isinstance(module, nn.Linear | nn.Embedding):
            init.uniform_(module.weight, -bound, bound)
            if isinstance(module, nn.Linear) and module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.LSTM):
            forget_gate = torch.zeros(4, module.hidden_size)
            forget_gate[1] = self.config.forget_bias  # above 0: remember by default
            for name, parameter in module.named_parameters():
                if name.startswith("weight"):
                    init.uniform_(parameter, -bound, bound)
                elif name.startswith("bias_ih"):
                    init.copy_(parameter, forget_gate.flatten().to(parameter))
                else:
                    init.zeros_(parameter)
        elif isinstance(module, NICImageProjection):
            init.zeros_(module.mean)
            init.ones_(module.std)

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """Load a checkpoint, as in Transformers; what is frozen stays so."""
        loaded: Any = super().from_pretrained(*args, **kwargs)
        (loaded[0] if isinstance(loaded, tuple) else loaded).apply_freezing()  # loading makes all weights trainable
        return loaded

    def save_pretrained(self, save_directory: str | PathLike, *args: Any, **kwargs: Any) -> None:
        """Save as in Transformers, with the code of the pipeline."""
        from .pipeline_nic import ImageToTextPipeline  # a relative import, so that its code is saved too

        # What `pipeline("image-to-text", trust_remote_code=True)` reads; the pipeline registry cannot have that name.
        entry = {"pt": ["AutoModelForImageTextToText"], "type": "multimodal"}
        entry["impl"] = f"pipeline_nic.{ImageToTextPipeline.__name__}"
        self.config.custom_pipelines = {"image-to-text": entry}
        super().save_pretrained(save_directory, *args, **kwargs)

    def get_input_embeddings(self) -> nn.Module:
        """Return the word embedding."""
        return self.decoder.embed_tokens

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the word embedding."""
        self.decoder.embed_tokens = value  # type: ignore[assignment]

    def get_encoder(self, *args: Any, **kwargs: Any) -> nn.Module:
        """Return the backbone with its pooling, which `generate()` runs once per image."""
        return self.encoder

    def get_image_features(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Return features of shape `(batch_size, feature_size)`, or `(batch_size, num_regions, feature_size)`."""
        features = self.encoder(pixel_values).last_hidden_state
        return features.squeeze(1) if self.config.attention is None else features

    def check_features(self, encoder_outputs: Any) -> torch.Tensor:
        """Return features of shape `(batch_size, num_features, feature_size)`, of a tensor or an encoder's output."""
        features = encoder_outputs
        if isinstance(features, dict | tuple | list):  # the encoder's output is a dict
            features = features.get("last_hidden_state") if isinstance(features, dict) else next(iter(features), None)
        is_pooled = self.config.attention is None
        if torch.is_tensor(features) and is_pooled and features.ndim == 2:
            features = features.unsqueeze(1)
        shape = tuple(features.shape) if torch.is_tensor(features) else f"{features!r:.80}"
        if len(shape) != 3 or shape[2] != self.config.feature_size or (shape[1] != 1 if is_pooled else shape[1] == 0):
            expected = f"(batch_size, {'' if is_pooled else 'num_regions, '}{self.config.feature_size})"
            raise ValueError(f"`encoder_outputs` must be features of shape {expected}, got {shape}")
        return features

    def prepare_decoder_input_ids_from_labels(self, labels: torch.Tensor) -> torch.Tensor:
        """Shift labels `(..., sequence_length)` to the right: `<bos>`, then all labels but the last."""
        decoder_input_ids = F.pad(labels[..., :-1], (1, 0), value=self.config.decoder_start_token_id)
        return decoder_input_ids.masked_fill(decoder_input_ids == IGNORED_LABEL, self.config.pad_token_id)

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        decoder_input_ids: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        encoder_outputs: BaseModelOutput | torch.Tensor | tuple[torch.Tensor, ...] | None = None,
        cache: NICCache | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
        past_key_values: NICCache | None = None,
        decoder_attention_mask: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> NICOutput:
        """Score captions of images.

        Args:
            pixel_values: the images, of shape `(batch_size, num_channels, height, width)`.
            decoder_input_ids: words to read, `<bos>` first, of shape `(batch_size, sequence_length)`. Made from
                `labels` by default.
            labels: words to predict, `<eos>` last, -100 at padding, of shape `(batch_size, sequence_length)`. Several
                captions per image, of shape `(batch_size, num_captions, sequence_length)`, share one pass of the
                backbone; logits are then those of `batch_size * num_captions` captions.
            encoder_outputs: replaces `pixel_values`, by `image_features` (see [`NICOutput`]) or the encoder's output.
                Adjacent captions of an image may share the features of its regions.
            cache, past_key_values: state to continue from. If it has read the image, no image is needed.
            use_cache: return the state after the last word. Defaults to the configuration's; `False` with labels.
            output_hidden_states, output_attentions: see [`NICOutput`]. Default to the configuration's.
            num_items_in_batch: divides the summed loss, with gradient accumulation. Passed by Trainer.
            decoder_attention_mask: 0 at padding of `decoder_input_ids`, which the LSTM does not read. Ignored in
                training with labels, where padding comes last.
            **kwargs: `return_dict`; others are ignored, so that `Trainer` may pass the inputs of other models.
        """
        cache = past_key_values if cache is None else cache
        config = self.config
        output_hidden_states = config.output_hidden_states if output_hidden_states is None else output_hidden_states
        output_attentions = config.output_attentions if output_attentions is None else output_attentions
        if decoder_input_ids is None:
            if labels is None:
                raise ValueError("no words: give `labels` to train, or `decoder_input_ids` (`<bos>` first) to score")
            decoder_input_ids = self.prepare_decoder_input_ids_from_labels(labels)
        num_captions = decoder_input_ids.shape[1] if decoder_input_ids.ndim == 3 else 1
        decoder_input_ids = decoder_input_ids.flatten(0, -2)
        use_cache = config.use_cache and labels is None if use_cache is None else use_cache
        cache = self.new_cache(None, False) if use_cache and cache is None else cache

        inputs = self.decoder.embed_tokens(decoder_input_ids)  # shape: (num_captions, sequence_length, embedding_size)
        state: Any = None
        regions, image, image_features, features, encoder_states = (None,) * 5
        if cache is not None and cache.has_read_image:
            state, regions = (cache.hidden_state, cache.cell_state), cache.regions
        else:
            if encoder_outputs is None and pixel_values is None:
                raise ValueError(NO_IMAGE)
            if encoder_outputs is None:
                encoder_outputs = self.encoder(pixel_values, output_hidden_states=output_hidden_states)
            encoder_states = getattr(encoder_outputs, "hidden_states", None)
            features = self.check_features(encoder_outputs)
            image_features = features.squeeze(1) if config.attention is None else features
            image = self.image_projection(image_features)
            if config.attention is not None:
                regions = self.decoder.attention.read_regions(image)
                num_captions = regions.captions_per_image(len(decoder_input_ids))
                image = image.mean(dim=1)
            # The image is the input at t = -1 (equation 7), one step before <bos>.
            first_input = image.unsqueeze(1).repeat_interleave(num_captions, dim=0)
            inputs = torch.cat([first_input, inputs.to(first_input.dtype)], dim=1)

        is_read = None if decoder_attention_mask is None else decoder_attention_mask.flatten(0, -2) > 0
        if is_read is None or (self.training and labels is not None) or is_read.all():
            is_read = None
        else:
            is_read = F.pad(is_read, (inputs.shape[1] - is_read.shape[1], 0), value=True)  # the image is read
        own_cache = cache if use_cache else None
        hidden_states, weights = self.read(inputs, state, regions, own_cache, image is not None, is_read, labels)
        if image is not None:
            hidden_states = hidden_states[:, 1:]  # no word is predicted from the image alone
        logits, loss = self.score(hidden_states, labels, num_items_in_batch, weights, image)

        return NICOutput(
            loss=loss,
            logits=logits,
            **{CACHE_NAME or "cache": own_cache},
            decoder_hidden_states=(hidden_states,) if output_hidden_states else None,
            cross_attentions=(weights,) if output_attentions and weights is not None else None,
            decoder_attentions=() if output_attentions else None,
            encoder_last_hidden_state=features,
            encoder_hidden_states=encoder_states if output_hidden_states else None,
            image_features=image_features,
        )

    def read(
        self,
        inputs: torch.Tensor,
        state: State | None,
        regions: NICRegions | None,
        cache: NICCache | None,
        starts_with_image: bool,
        is_read: torch.Tensor | None,
        labels: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Run the decoder and update the cache. At padding, state and output are those of the input before it."""
        is_by_word = is_read is not None or (cache is not None and cache.is_croppable)
        read: list[tuple[torch.Tensor, ...]] = []
        for position, step in enumerate(inputs.split(1, dim=1) if is_by_word else (inputs,)):
            output, new, weights = self.decoder(step, state, regions)
            if is_read is not None and state is not None:
                keep = is_read[:, position, None]
                new = (torch.where(keep, new[0], state[0]), torch.where(keep, new[1], state[1]))
                output = new[0][-1].unsqueeze(1)
            state = new
            read.append((output,) if weights is None else (output, weights))
            num_words = step.shape[1] - (starts_with_image and position == 0)
            if cache is not None and num_words:
                cache.update(state, num_words, regions)
        if len(read) == 1:
            return read[0][0], weights
        outputs, *parts = (torch.cat(each, dim=1) for each in zip(*read, strict=True))
        return outputs, parts[0] if parts else None

    def score(
        self,
        hidden_states: torch.Tensor,
        labels: torch.Tensor | None,
        num_items_in_batch: torch.Tensor | int | None,
        weights: torch.Tensor | None,
        image: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return logits and the loss. `weights` of attention and the `image` are for losses of a subclass."""
        logits = self.lm_head(hidden_states)
        if labels is None:
            return logits, None
        options = ("image_dropout", "variational_dropout", "recurrent_dropout", "bag_of_words_loss")
        ignored = [name for name in (*options, "attention_regularisation") if getattr(self.config, name)]
        if ignored and self.training:
            logger.warning_once(f"without the package nic_hf training ignores {', '.join(ignored)}")
        return logits, self.word_loss(logits.flatten(0, 1), labels.flatten().to(logits.device), num_items_in_batch)

    def word_loss(self, scores: torch.Tensor, labels: torch.Tensor, num_items: Any) -> torch.Tensor:
        """-sum_t log p_t(S_t), equation 10, over the number of words; `scores` are `(num_words, vocab_size)`."""
        smoothing = self.config.label_smoothing if self.training else 0.0
        options: dict[str, Any] = {"ignore_index": IGNORED_LABEL, "label_smoothing": smoothing}
        loss = F.cross_entropy(scores.float(), labels, **options, reduction="mean" if num_items is None else "sum")
        return loss if num_items is None else loss / torch.as_tensor(num_items, device=loss.device)


def default_generation_config(config: NICConfig) -> GenerationConfig:
    """Beam 3 and at most 20 words, as in the 2016 paper; a special token is never part of a caption."""
    never = sorted({config.pad_token_id, config.bos_token_id, config.unk_token_id})
    ids = {f"{name}_token_id": getattr(config, f"{name}_token_id") for name in ("pad", "bos", "eos", "decoder_start")}
    return GenerationConfig(num_beams=3, max_new_tokens=20, suppress_tokens=never, **ids)


NICForConditionalGeneration.register_for_auto_class("AutoModelForImageTextToText")
