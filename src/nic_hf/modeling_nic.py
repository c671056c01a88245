"""The Show and Tell captioner: a vision backbone, an LSTM, and the loss of the paper.

Equation numbers are those of Vinyals et al. 2015, Show and Tell, https://arxiv.org/abs/1411.4555.
"""

import copy
import difflib
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from os import PathLike
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import GenerationConfig, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutput
from transformers.tokenization_utils_base import PreTrainedTokenizerBase
from transformers.utils import ModelOutput, TransformersKwargs, can_return_tuple, logging

from .attention_nic import NICAttention, NICAttentiveDecoder, NICRegions, doubly_stochastic_penalty
from .backbone_nic import NICEncoder, infer_feature_size, load_backbone, vision_part
from .cache_nic import CACHE_NAME, NICCache, cache_field
from .checkpoint_nic import (
    check_all_weights_loaded,
    check_digests,
    check_local_files,
    check_path,
    custom_pipelines,
    damaged_file_as_oserror,
    own_weights,
    staged_save,
)
from .configuration_nic import NICConfig
from .decoder_nic import NICDecoder, State, read_around_padding
from .generation_nic import NO_IMAGE, NICGenerationMixin, default_generation_config
from .inference_nic import faster_encoder, supported_dtype
from .projection_nic import RARE, NICBagOfWords, NICImageProjection
from .sampling_nic import runs_plain, sample

logger = logging.get_logger(__name__)

IGNORED_LABEL = -100
NO_WORDS = (
    "no words: give `labels` to train, or `decoder_input_ids` (`<bos>` first) to score. Trainer's "
    "`label_smoothing_factor` and `compute_loss_func` take `labels` out of a batch: smooth by "
    "`NICConfig(label_smoothing=...)`, or let the collator add `prepare_decoder_input_ids_from_labels(labels)`"
)


@dataclass
class NICOutput(ModelOutput):
    """What [`NICForConditionalGeneration`] returns.

    Args:
        loss (`torch.FloatTensor` of shape `(1,)`): equation 10, the mean over the words of the batch; with `labels`.
        logits (`torch.FloatTensor` of shape `(batch_size, sequence_length, vocab_size)`): scores of each next word; in
            training on a CPU 0 where labels are padding.
        cache (`NICCache`): the LSTM's state, with `use_cache`; `past_key_values` is another name for it.
        decoder_hidden_states (tuple of one `torch.FloatTensor`, `(batch_size, sequence_length, hidden_size)`):
            outputs of the last LSTM layer, with `output_hidden_states`.
        cross_attentions (tuple of one `torch.FloatTensor`, `(batch_size, sequence_length, num_regions)`):
            where the model looked before each next word, weights that add up to 1, with `output_attentions` and a
            model that has attention.
        decoder_attentions: an empty tuple, with `output_attentions`: no layer of an LSTM attends to words.
        encoder_last_hidden_state (`torch.FloatTensor` of shape `(batch_size, num_features, feature_size)`): what the
            encoder returned, one feature an image or one a region of it.
        encoder_hidden_states (tuple of `torch.FloatTensor`): the backbone's hidden states, with
            `output_hidden_states` and a backbone that returns them.
        image_features (`torch.FloatTensor` of shape `(batch_size, feature_size)`): the backbone's pooled features,
            or, of shape `(batch_size, num_regions, feature_size)`, its regions where the model has attention; `None`
            where a cache that has seen the image made them unnecessary.
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    if CACHE_NAME == "cache":
        cache: NICCache | None = None
    else:
        past_key_values: NICCache | None = None

        @property
        def cache(self) -> NICCache | None:  # type: ignore[misc]
            """The LSTM's state, by the name that it has in Transformers 5.24 and later."""
            return self.past_key_values

    decoder_hidden_states: tuple[torch.Tensor, ...] | None = None
    cross_attentions: tuple[torch.Tensor, ...] | None = None
    decoder_attentions: tuple[()] | None = None
    encoder_last_hidden_state: torch.Tensor | None = None
    encoder_hidden_states: tuple[torch.Tensor, ...] | None = None
    image_features: torch.Tensor | None = None


class NICForConditionalGeneration(PreTrainedModel, NICGenerationMixin):
    """Show and Tell: a caption of an image, word by word.

    The encoder-decoder shape lets `generate()` run the backbone once an image, whatever the number of beams.
    """

    config_class = NICConfig
    base_model_prefix = "model"
    main_input_name = "pixel_values"
    supports_gradient_checkpointing = True
    _no_split_modules = ["NICImageProjection", "NICLSTM"]  # noqa: RUF012
    _tied_weights_keys = {"lm_head.weight": "decoder.embed_tokens.weight"}  # noqa: RUF012

    config: NICConfig

    def __init__(self, config: NICConfig) -> None:
        super().__init__(config)
        if config.feature_size is None:
            config.feature_size = infer_feature_size(
                config.backbone_config,
                config.use_backbone_pooler,
                keep_regions=config.attention is not None,
                feature_layers=config.feature_layers,
            )
        self.encoder = NICEncoder(config)
        self.image_projection = NICImageProjection(config.feature_size, config.embedding_size)
        self.decoder = NICDecoder(config) if config.attention is None else NICAttentiveDecoder(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size)
        self.bag_of_words = NICBagOfWords(config) if config.bag_of_words_loss else None
        self._freeze()
        self.generation_config = default_generation_config(config)
        self.post_init()

    def _freeze(self) -> None:
        self.encoder.set_frozen(self.config.freeze_backbone)
        self.decoder.embed_tokens.weight.requires_grad_(not self.config.freeze_word_embeddings)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        bound = self.config.initializer_range
        if isinstance(module, nn.Linear | nn.Embedding):
            init.uniform_(module.weight, -bound, bound)
            if isinstance(module, nn.Linear) and module.bias is not None:
                init.constant_(module.bias, RARE if isinstance(module, NICBagOfWords) else 0.0)
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
    def from_backbone_pretrained(
        cls,
        backbone: str | PathLike | PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase | None = None,
        word_embeddings: torch.Tensor | None = None,
        backbone_kwargs: dict[str, Any] | None = None,
        **config: Any,
    ) -> "NICForConditionalGeneration":
        """Build a captioner around a pretrained vision model; the LSTM starts at random.

        Args:
            backbone: a Hub id, a path, or a loaded vision model. The image half of a CLIP-like model is taken.
            tokenizer: gives `vocab_size` and the ids of the special tokens.
            word_embeddings (`torch.FloatTensor` of shape `(vocab_size, embedding_size)`): word vectors to start from,
                such as `nic_hf.tokenization.load_word_vectors(...).weights`; it sets `embedding_size`.
            backbone_kwargs: passed to the backbone's `from_pretrained` (`revision`, `token`, `subfolder`, ...).
            **config: fields of [`NICConfig`].

        Raises:
            ValueError: where the backbone gives no image feature, its checkpoint lacks weights, or sizes disagree.
        """
        use_pooler = config.pop("use_backbone_pooler", True) and config.get("attention") is None
        if isinstance(backbone, PreTrainedModel):
            backbone, use_pooler = vision_part(backbone, use_pooler)
        else:
            backbone, use_pooler = load_backbone(backbone, use_pooler, backbone_kwargs or {})
        if tokenizer is not None:
            config["vocab_size"] = len(tokenizer)
            for name in ("pad", "bos", "eos", "unk"):
                token_id = getattr(tokenizer, f"{name}_token_id")
                if token_id is None:
                    raise ValueError(f"the tokenizer has no {name} token; a captioner needs pad, bos, eos and unk")
                config[f"{name}_token_id"] = token_id
        if word_embeddings is not None:
            config["embedding_size"] = word_embeddings.shape[1]
        backbone_config = copy.deepcopy(backbone.config)
        backbone_config.num_labels = 2  # a classifier's labels are of no use to a captioner
        model = cls(NICConfig(backbone_config=backbone_config, use_backbone_pooler=use_pooler, **config))
        own = model.encoder.backbone.state_dict().keys()  # without the pooling layer, where that is left out
        model.encoder.backbone.load_state_dict({k: v for k, v in backbone.state_dict().items() if k in own})
        if word_embeddings is not None:
            if len(word_embeddings) != model.config.vocab_size:
                raise ValueError(
                    f"{len(word_embeddings)} word vectors do not fit a vocabulary of {model.config.vocab_size} words"
                )
            model.decoder.embed_tokens.weight.data.copy_(word_embeddings)
        return model

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """Load a checkpoint, as in Transformers, but refuse one that lacks weights, and read no pickle.

        Raises:
            ValueError: naming the tensors that are missing or have another shape than the configuration says.
            OSError: where there is no such checkpoint, or its file is damaged. In a local folder also where the
                weights are not those that `save_pretrained` wrote, by `weights.sha256` beside them.
        """
        if pretrained_model_name_or_path is not None:
            check_path(pretrained_model_name_or_path)
        wants_info = kwargs.pop("output_loading_info", False)
        allow_mismatched_sizes = kwargs.pop("ignore_mismatched_sizes", False)
        kwargs.update(output_loading_info=True, ignore_mismatched_sizes=True, use_safetensors=True)
        with damaged_file_as_oserror(pretrained_model_name_or_path):
            if pretrained_model_name_or_path is not None:
                check_local_files(pretrained_model_name_or_path, kwargs.get("subfolder") or "")
            loaded: Any = super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        model, info = loaded
        check_all_weights_loaded(pretrained_model_name_or_path, info, allow_mismatched_sizes)
        if pretrained_model_name_or_path is not None:
            check_digests(pretrained_model_name_or_path, kwargs.get("subfolder") or "", kwargs.get("variant"))
        own_weights(model)
        for module in model.modules():
            if isinstance(module, nn.LSTM):
                module.flatten_parameters()  # cuDNN wants them side by side; on a CPU it does nothing
        model._freeze()  # loading made every weight trainable
        return (model, info) if wants_info else model

    def save_pretrained(  # type: ignore[override]
        self,
        save_directory: str | PathLike,
        is_main_process: bool = True,
        state_dict: dict[str, Any] | None = None,
        push_to_hub: bool = False,
        **kwargs: Any,
    ) -> None:
        """Save as Transformers does, but whole or not at all: a failure leaves an earlier checkpoint as it was.

        With `push_to_hub` the saved files are pushed too, all in one commit.

        Raises:
            OSError: naming `save_directory`, where it cannot be written or the disk is full.
            ValueError: after [`optimize_for_inference`].
        """
        if self.encoder.optimized:
            raise ValueError(
                "a captioner that was optimised for inference cannot be saved: save the one it was loaded as"
            )
        self.config.custom_pipelines = custom_pipelines()
        of_saving = inspect.signature(PreTrainedModel.save_pretrained).parameters
        of_hub = {name: kwargs.pop(name) for name in list(kwargs) if name not in of_saving or name == "token"}
        push = {"commit_message": "Upload model", "tags": self.model_tags, **of_hub} if push_to_hub else None
        with staged_save(save_directory, is_main_process, push) as directory:
            super().save_pretrained(directory, is_main_process, state_dict, **kwargs)

    def get_input_embeddings(self) -> nn.Module:
        """The word embedding."""
        return self.decoder.embed_tokens

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the word embedding."""
        self.decoder.embed_tokens = value  # type: ignore[assignment]

    def resize_token_embeddings(self, *args: Any, **kwargs: Any) -> nn.Embedding:
        """Resize word embedding and output layer as in Transformers, and the layer of the bag-of-words loss."""
        embedding = super().resize_token_embeddings(*args, **kwargs)
        old = self.bag_of_words
        if old is not None and len(old.weight) != self.config.vocab_size:
            new = NICBagOfWords(self.config).to(old.weight)
            self._init_weights(new)
            for weights, kept in zip(new.parameters(), old.parameters(), strict=True):
                number = min(len(weights), len(kept))
                weights.data[:number] = kept.data[:number]
            self.bag_of_words = new
        return embedding

    def get_encoder(self, *args: Any, **kwargs: Any) -> nn.Module:
        """The backbone with its pooling, which `generate()` runs once an image."""
        return self.encoder

    def set_backbone_frozen(self, frozen: bool) -> None:
        """Freeze or thaw the backbone, and say so in the configuration."""
        self.config.freeze_backbone = frozen
        self.encoder.set_frozen(frozen)

    def optimize_for_inference(self, dtype: torch.dtype | None = None) -> "NICForConditionalGeneration":
        """Caption faster from here on: BatchNorm folded, channels last. It can then be neither trained nor saved.

        Args:
            dtype: number format of the backbone, such as `torch.bfloat16`, which a CPU that has no instructions for it
                leaves as it is; the LSTM keeps its own.

        Returns:
            This captioner.
        """
        if dtype is not None:
            dtype = supported_dtype(dtype, self.device)
        self.encoder = faster_encoder(self.encoder, dtype)
        return self.eval().requires_grad_(False)

    def set_feature_statistics(self, mean: torch.Tensor, std: torch.Tensor) -> None:
        """Standardise image features by `mean` and `std`, each of shape `(feature_size,)`, of the training photos.

        With attention they are those of all regions of all photos.
        """
        self.image_projection.mean.copy_(mean)
        self.image_projection.std.copy_(std.clamp_min(1e-6))  # a feature that never moves carries no information

    def get_image_features(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Backbone features: what `encoder_outputs` takes.

        Their shape is `(batch_size, feature_size)`, or `(batch_size, num_regions, feature_size)` with attention.
        """
        features = self.encoder(pixel_values).last_hidden_state
        return features.squeeze(1) if self.config.attention is None else features

    def prepare_decoder_input_ids_from_labels(self, labels: torch.Tensor) -> torch.Tensor:
        """The words read to predict labels `(..., sequence_length)`: `<bos>`, then all labels but the last."""
        decoder_input_ids = F.pad(labels[..., :-1], (1, 0), value=self.config.decoder_start_token_id)
        return decoder_input_ids.masked_fill(decoder_input_ids == IGNORED_LABEL, self.config.pad_token_id)

    def _set_gradient_checkpointing(self, enable: bool = True, *args: Any, **kwargs: Any) -> None:
        backbone = self.encoder.backbone
        if any(hasattr(module, "gradient_checkpointing") for module in backbone.modules()):
            super()._set_gradient_checkpointing(enable, *args, **kwargs)
        elif enable:
            raise ValueError(
                f"gradient checkpointing is the backbone's, and {type(backbone).__name__} has none: train without "
                "`gradient_checkpointing`, with smaller batches and `gradient_accumulation_steps`"
            )

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
            pixel_values (`torch.FloatTensor` of shape `(batch_size, num_channels, height, width)`): the images.
            decoder_input_ids (`torch.LongTensor` of shape `(batch_size, sequence_length)`): words read, `<bos>` first.
                Made from `labels` where it is not given.
            labels (`torch.LongTensor` of shape `(batch_size, sequence_length)`): words to predict, `<eos>` last, -100
                where padded. Several captions of each image, of shape `(batch_size, num_captions, sequence_length)`,
                share one pass of the backbone; logits are then those of `batch_size * num_captions` captions.
            encoder_outputs (`torch.FloatTensor` of shape `(batch_size, feature_size)`, or what the encoder returned):
                image features, in place of `pixel_values`. With attention `(batch_size, num_regions, feature_size)`;
                several captions of each image, those of an image together, may then look at the same features.
            cache (`NICCache`): state to go on from; once it has read the image, no image is needed.
            use_cache: return the state after the last word. Defaults to the configuration's; `False` with labels.
            output_hidden_states: also return the LSTM's outputs and the backbone's hidden states. Defaults to the
                configuration's.
            output_attentions: also return the weights of the regions, where there is attention. Defaults to the
                configuration's.
            num_items_in_batch: number of words over which the sum of losses is averaged, where it is more than this
                batch holds (gradient accumulation). Trainer passes it.
            past_key_values: the name of `cache` before Transformers 5.24.
            decoder_attention_mask (`torch.LongTensor` of the shape of `decoder_input_ids`): 0 where these are padding,
                which the LSTM then does not read. Not used in training with labels, where padding comes last.
            return_dict (`bool`): return a [`NICOutput`], or a tuple of what it holds. Defaults to the configuration's.
            **kwargs: ignored, so that `Trainer` and `generate()` may pass what other models need, and batches may
                hold other columns.

        Raises:
            ValueError: where the image or the words are missing, or one does not fit the other.
            TypeError: where a name among `kwargs` is close to one of those above.
        """
        check_keywords(kwargs)
        cache = past_key_values if cache is None else cache
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        if output_attentions is None:
            output_attentions = self.config.output_attentions
        if decoder_input_ids is None:
            if labels is None:
                raise ValueError(NO_WORDS)
            decoder_input_ids = self.prepare_decoder_input_ids_from_labels(labels)
        if use_cache is None:
            use_cache = self.config.use_cache and labels is None
        num_captions = decoder_input_ids.shape[1] if decoder_input_ids.ndim == 3 else 1
        decoder_input_ids = decoder_input_ids.flatten(0, -2)

        inputs_embeds = self.decoder.embed_tokens(decoder_input_ids)  # shape: (batch_size, sequence_length, embedding)
        image_features, image, regions = None, None, None
        state: Any = None
        features, encoder_states = None, None
        if cache is not None and cache.hidden_state is not None and cache.has_read_image:
            state, regions = (cache.hidden_state, cache.cell_state), cache.regions
        else:
            # The image is the input at t = -1 (equation 7), one step before <bos>.
            features, encoder_states = self._encode(pixel_values, encoder_outputs, output_hidden_states)
            image_features = features.squeeze(1) if self.config.attention is None else features
            first_input = self.image_projection(image_features)
            if self.config.attention is not None:
                attention: NICAttention = self.decoder.attention  # type: ignore[assignment]
                regions = attention.read_regions(first_input)
                num_captions = regions.captions_a_photo(len(decoder_input_ids))
                first_input = first_input.mean(dim=1)
            image = first_input
            first_input = first_input.unsqueeze(1).repeat_interleave(num_captions, dim=0)
            inputs_embeds = torch.cat([first_input, inputs_embeds.to(first_input.dtype)], dim=1)

        # Padding is not computed in training on a CPU; elsewhere to find it takes longer than to compute it.
        is_word = None
        if labels is not None and self.training and labels.device.type == "cpu" and not torch.compiler.is_compiling():
            is_word = labels.flatten(0, -2) != IGNORED_LABEL
        lengths = None if is_word is None or image is None else 1 + _num_words(is_word)  # and the image
        is_read = None if decoder_attention_mask is None else decoder_attention_mask.flatten(0, -2) > 0
        if is_read is None or (self.training and labels is not None) or is_read.all():
            is_read = None
        else:
            is_read = F.pad(is_read, (inputs_embeds.shape[1] - is_read.shape[1], 0), value=True)  # the image is read
        pieces, masks = [inputs_embeds], [is_read]
        if use_cache:
            cache = NICCache() if cache is None else cache
            if cache.is_croppable:  # which takes the state after each word; the image is none
                sizes = [1 + (image is not None)] + [1] * (decoder_input_ids.shape[1] - 1)
                pieces = list(inputs_embeds.split(sizes, dim=1))
                masks = [None] * len(pieces) if is_read is None else list(is_read.split(sizes, dim=1))
        read = []
        for number, piece in enumerate(pieces):
            of_all = lengths if len(pieces) == 1 else None
            outputs, state, weights = self._read(piece, state, regions, of_all, masks[number])
            read.append((outputs, weights))
            if use_cache and cache is not None:
                num_tokens = piece.shape[1] - (image is not None and number == 0)
                cache.update(state[0], state[1], num_tokens, regions)
        hidden_states, weights = read[0]
        if len(read) > 1:
            hidden_states = torch.cat([outputs for outputs, _ in read], dim=1)
            weights = None if weights is None else torch.cat([each for _, each in read if each is not None], dim=1)
        if image_features is not None:
            hidden_states = hidden_states[:, 1:]  # what the LSTM says on seeing the image alone predicts no word
        if is_word is None:
            logits = self.lm_head(hidden_states)  # shape: (batch_size, sequence_length, vocab_size)
            scores = logits.flatten(0, 1)
        else:
            scores = self.lm_head(hidden_states[is_word])  # shape: (num_words, vocab_size)
            logits = scores.new_zeros(*is_word.shape, scores.shape[-1]).index_put((is_word,), scores)

        return NICOutput(
            loss=None if labels is None else self._loss(scores, labels, num_items_in_batch, weights, image),
            logits=logits,
            **cache_field(cache if use_cache else None),
            decoder_hidden_states=(hidden_states,) if output_hidden_states else None,
            cross_attentions=(weights,) if output_attentions and weights is not None else None,
            decoder_attentions=() if output_attentions else None,
            encoder_last_hidden_state=features,
            encoder_hidden_states=encoder_states if output_hidden_states else None,
            image_features=image_features,
        )

    def _encode(
        self, pixel_values: torch.Tensor | None, encoder_outputs: Any, output_hidden_states: bool | None
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, ...] | None]:
        """The encoder's output, of the shape that it has, and the backbone's hidden states where there are any."""
        if encoder_outputs is None:
            if pixel_values is None:
                raise ValueError(NO_IMAGE)
            encoder_outputs = self.encoder(pixel_values, output_hidden_states=output_hidden_states)
        return self._check_features(encoder_outputs), getattr(encoder_outputs, "hidden_states", None)

    def _read(
        self,
        inputs: torch.Tensor,
        state: State | None,
        regions: NICRegions | None,
        lengths: torch.Tensor | None,
        is_read: torch.Tensor | None,
    ) -> tuple[torch.Tensor, State, torch.Tensor | None]:
        """The LSTM's outputs, its state after them, and with attention the weights of the regions."""
        if self.config.attention is not None and regions is None:
            raise ValueError("`cache` holds no regions to look at: it is of a model without attention")
        if is_read is not None:
            return read_around_padding(self.decoder, inputs, is_read, state, *(() if regions is None else (regions,)))
        if self.config.attention is None:
            return *self.decoder(inputs, state, lengths), None
        return self.decoder(inputs, state, regions)

    def _check_features(self, encoder_outputs: Any) -> torch.Tensor:
        """Features of shape `(batch_size, 1, feature_size)`, from every form that users and caches hold them in.

        With attention, of shape `(batch_size, num_regions, feature_size)`.
        """
        features, size = unwrapped_features(encoder_outputs), self.config.feature_size
        if self.config.attention is not None:
            fits = torch.is_tensor(features) and features.ndim == 3 and features.shape[1] > 0
            fits, expected = fits and features.shape[2] == size, f"num_regions, {size}"
        else:
            if torch.is_tensor(features) and features.ndim == 2:
                features = features.unsqueeze(1)
            fits, expected = torch.is_tensor(features) and features.shape[1:] == (1, size), f"{size}"
        if not fits:
            given = f"shape {tuple(features.shape)}" if torch.is_tensor(features) else f"{features!r:.80}"
            raise ValueError(f"`encoder_outputs` must be features of shape (batch_size, {expected}), got {given}")
        return features

    def _loss(
        self,
        scores: torch.Tensor,
        labels: torch.Tensor,
        num_items_in_batch: torch.Tensor | int | None,
        weights: torch.Tensor | None = None,
        image: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """-sum_t log p_t(S_t), equation 10, over the number of words; in training, with the losses beside it.

        `scores` are of shape `(num_places, vocab_size)`, of all places of `labels` or of those alone that have words.
        """
        labels = labels.flatten(0, -2).to(scores.device)
        is_word = labels != IGNORED_LABEL
        loss = F.cross_entropy(
            scores.float(),
            labels.flatten() if len(scores) == labels.numel() else labels[is_word],
            ignore_index=IGNORED_LABEL,
            reduction="mean" if num_items_in_batch is None else "sum",
            label_smoothing=self.config.label_smoothing if self.training else 0.0,
        )
        if self.training:
            costs = []  # of each caption, so over the number of words like the rest of its cost
            if weights is not None and self.config.attention_regularisation:
                penalty = doubly_stochastic_penalty(weights, is_word)
                costs.append(self.config.attention_regularisation * penalty)
            if self.bag_of_words is not None and image is not None:
                costs.append(self.bag_of_words.loss(image, labels, is_word))
            for cost in costs:
                loss = loss + (cost / is_word.sum() if num_items_in_batch is None else cost).to(loss.device)
        if num_items_in_batch is None:
            return loss
        if torch.is_tensor(num_items_in_batch):
            num_items_in_batch = num_items_in_batch.to(loss.device)
        return loss / num_items_in_batch

    def _sample(
        self,
        input_ids: torch.Tensor,
        logits_processor: Any,
        stopping_criteria: Any,
        generation_config: GenerationConfig,
        synced_gpus: bool = False,
        streamer: Any = None,
        **model_kwargs: Any,
    ) -> Any:
        given = (logits_processor, stopping_criteria, generation_config)
        cache: Any = model_kwargs.get(CACHE_NAME)
        is_plain = type(cache) is NICCache and runs_plain(self, NICForConditionalGeneration)
        wants_more = synced_gpus or streamer is not None or generation_config.return_dict_in_generate
        if wants_more or not is_plain or input_ids.device.type != "cpu":
            theirs: Any = super()._sample  # type: ignore[misc]
            return theirs(input_ids, *given, synced_gpus, streamer, **model_kwargs)
        outputs = self(**self.prepare_inputs_for_generation(input_ids, **model_kwargs), return_dict=True)
        return sample(self, input_ids, outputs.logits[:, -1], cache, *given)

    def get_compiled_call(self, compile_config: Any) -> Callable[..., Any]:
        """What `generate(cache_implementation="static")` runs for each word after the first: a compiled `forward`."""
        compiled = super().get_compiled_call(compile_config)

        def step(*args: Any, **kwargs: Any) -> Any:
            # Without it the graph would break at the LSTM, of which a step runs the cell alone.
            with torch._dynamo.config.patch(allow_rnn=True):
                return compiled(*args, **kwargs)

        return step


def _num_words(is_word: torch.Tensor) -> torch.Tensor:
    """Number of places up to the last word of each caption; those before it may be masked out."""
    places = torch.arange(1, is_word.shape[1] + 1, device=is_word.device)
    return (places * is_word).amax(dim=1)


_ARGUMENTS = list(inspect.signature(NICForConditionalGeneration.forward).parameters)[1:]


def check_keywords(kwargs: dict[str, Any]) -> None:
    """Refuse a misspelt keyword of `forward`, which would be without effect; say once which others are.

    Raises:
        TypeError: naming the keyword that was meant.
    """
    for name, value in kwargs.items():
        if value is None or name in TransformersKwargs.__optional_keys__ or name == "return_loss":
            continue
        near = difflib.get_close_matches(name, _ARGUMENTS, n=1, cutoff=0.65)
        if near:
            raise TypeError(f"forward() got an unexpected keyword argument '{name}'. Did you mean '{near[0]}'?")
        logger.warning_once(f"a captioner does not read `{name}`")


def unwrapped_features(encoder_outputs: Any) -> Any:
    """The tensor in what users and caches hold features in, unchecked."""
    if isinstance(encoder_outputs, dict):  # the encoder's output is one
        return encoder_outputs.get("last_hidden_state")
    return encoder_outputs[0] if isinstance(encoder_outputs, tuple | list) and encoder_outputs else encoder_outputs


NICForConditionalGeneration.register_for_auto_class("AutoModelForImageTextToText")
