"""The captioner of this package: built around a pretrained backbone, trained, made faster, saved and loaded safely."""

import copy
import difflib
import inspect
from os import PathLike
from typing import Any

import torch
from torch import nn
from transformers import GenerationConfig, PreTrainedModel
from transformers import initialization as init
from transformers.tokenization_utils_base import PreTrainedTokenizerBase
from transformers.utils import TransformersKwargs, logging

from ..configuration_nic import IGNORED_LABEL, NICConfig
from ..layers_nic import NICCache as CoreCache
from ..layers_nic import NICDecoder, NICRegions, State
from ..lookup import look_up
from ..malloc_settings import keep_freed_memory
from ..modeling_nic import NICForConditionalGeneration as CoreModel
from ..modeling_nic import NICOutput
from ..processing_nic import SOURCE
from .backbone import load_backbone, vision_part
from .checkpoint import (
    check_all_weights_loaded,
    check_digests,
    check_local_files,
    damaged_file_as_oserror,
    own_weights,
    save_code,
    staged_save,
)
from .confidence import FIELD
from .decoder import TrainedAttentiveDecoder, TrainedDecoder
from .encoder import OptimizedEncoder, faster_encoder, supported_dtype
from .generation import FastGenerationMixin
from .losses import RARE, bag_of_words_loss, doubly_stochastic_penalty
from .timm_models import complete_timm_config, describe_timm_regions

logger = logging.get_logger(__name__)

NO_WORDS = (
    "no words: give `labels` to train, or `decoder_input_ids` (`<bos>` first) to score. Trainer's "
    "`label_smoothing_factor` and `compute_loss_func` take `labels` out of a batch: smooth by "
    "`NICConfig(label_smoothing=...)`, or let the collator add `prepare_decoder_input_ids_from_labels(labels)`"
)
NO_LABELS = (
    "no `labels`, so no loss: the processor's `text` is what captions begin with; captions to learn go into its "
    "`text_target`, which gives `labels`"
)


class NICForConditionalGeneration(FastGenerationMixin, CoreModel):
    """Show and Tell: a caption of an image, word by word.

    It has the weights, the inputs and the captions of the model in `modeling_nic.py`, which is saved with checkpoints.
    Here it also has all options of training, fast paths of `generate()` and of training on a CPU, and checkpoints that
    are saved whole or not at all, and loaded whole or refused.
    """

    _auto_class = None  # the core's code is saved in its place
    _no_split_modules = ["NICImageProjection", "NICLSTM"]  # noqa: RUF012
    _runs_plain_loop = True

    def build_decoder(self, config: NICConfig) -> NICDecoder:
        """The decoder, with random weights."""
        return TrainedDecoder(config) if config.attention is None else TrainedAttentiveDecoder(config)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if module is self.bag_of_words:
            init.constant_(module.bias, RARE)

    @classmethod
    def from_backbone_pretrained(
        cls,
        backbone: str | PathLike | PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase | None = None,
        word_embeddings: torch.Tensor | None = None,
        backbone_kwargs: dict[str, Any] | None = None,
        **config: Any,
    ) -> "NICForConditionalGeneration":
        """Build a captioner around a pretrained vision model; the LSTM has random weights.

        Args:
            backbone: a Hub id, a path, or a loaded vision model. The image half of a CLIP-like model is taken.
            tokenizer: gives `vocab_size` and the ids of the special tokens.
            word_embeddings (`torch.FloatTensor` of shape `(vocab_size, embedding_size)`): word vectors to start from,
                such as `nic_hf.tokenization.load_word_vectors(...).weights`; it sets `embedding_size`.
            backbone_kwargs: passed to the backbone's `from_pretrained` (`revision`, `token`, `subfolder`, ...).
            **config: fields of [`NICConfig`].

        Raises:
            ValueError: if the backbone returns no image feature, its checkpoint lacks weights, or sizes disagree.
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
        complete_timm_config(backbone_config)
        if config.get("attention") is not None:
            describe_timm_regions(backbone_config, backbone)
        backbone_config.num_labels = 2  # a classifier's labels are of no use to a captioner
        model = cls(NICConfig(backbone_config=backbone_config, use_backbone_pooler=use_pooler, **config))
        own = model.encoder.backbone.state_dict().keys()  # without the pooling layer, if that is left out
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
            OSError: if there is no such checkpoint, or its file is damaged. In a local folder also if the weights are
                not those that `save_pretrained` wrote, by `weights.sha256` next to them.
        """
        wants_info = kwargs.pop("output_loading_info", False)
        allow_mismatched_sizes = kwargs.pop("ignore_mismatched_sizes", False)
        kwargs.update(output_loading_info=True, ignore_mismatched_sizes=True, use_safetensors=True)
        name, subfolder = pretrained_model_name_or_path, kwargs.get("subfolder") or ""
        with damaged_file_as_oserror(name):
            if name is not None:
                kwargs.update(look_up(name, "captioner", **{key: kwargs[key] for key in SOURCE & kwargs.keys()}))
                check_local_files(name, subfolder)
            model, info = super().from_pretrained(name, *args, **kwargs)
        check_all_weights_loaded(name, info, allow_mismatched_sizes)
        if name is not None:
            check_digests(name, subfolder, kwargs.get("variant"))
        own_weights(model)
        # Transformers sets what changes the configuration, such as `dropout=0.1`, in the generation config too.
        for field in (
            vars(model.generation_config).keys() & vars(model.config).keys() - vars(GenerationConfig()).keys()
        ):
            delattr(model.generation_config, field)
        for module in model.modules():
            if isinstance(module, nn.LSTM):
                module.flatten_parameters()  # cuDNN wants them side by side; on a CPU it does nothing
        return (model, info) if wants_info else model

    def save_pretrained(  # type: ignore[override]
        self,
        save_directory: str | PathLike,
        is_main_process: bool = True,
        state_dict: dict[str, Any] | None = None,
        push_to_hub: bool = False,
        **kwargs: Any,
    ) -> None:
        """Save as in Transformers, but whole or not at all: a failure leaves an earlier checkpoint as it was.

        With `push_to_hub` the saved files are pushed too, in one commit.

        Raises:
            OSError: naming `save_directory`, if it cannot be written or the disk is full.
            ValueError: after [`optimize_for_inference`].
        """
        if isinstance(self.encoder, OptimizedEncoder):
            raise ValueError("a model that was optimized for inference cannot be saved: save the one it was loaded as")
        of_saving = inspect.signature(PreTrainedModel.save_pretrained).parameters
        of_hub = {name: kwargs.pop(name) for name in list(kwargs) if name not in of_saving or name == "token"}
        push = {"commit_message": "Upload model", "tags": self.model_tags, **of_hub} if push_to_hub else None
        with staged_save(save_directory, is_main_process, push) as directory:
            self.config.auto_map = save_code(directory if is_main_process else None)
            super().save_pretrained(directory, is_main_process, state_dict, **kwargs)

    def resize_token_embeddings(self, *args: Any, **kwargs: Any) -> nn.Embedding:
        """Resize word embedding and output layer as in Transformers, and the layer of the bag-of-words loss."""
        embedding = super().resize_token_embeddings(*args, **kwargs)
        old = self.bag_of_words
        if old is not None and len(old.weight) != self.config.vocab_size:
            self.bag_of_words = nn.Linear(old.in_features, self.config.vocab_size).to(old.weight)
            self._init_weights(self.bag_of_words)
            for weights, kept in zip(self.bag_of_words.parameters(), old.parameters(), strict=True):
                number = min(len(weights), len(kept))
                weights.data[:number] = kept.data[:number]
        return embedding

    def set_backbone_frozen(self, frozen: bool) -> None:
        """Freeze or unfreeze the backbone, also in the configuration.

        Raises:
            ValueError: if the model was optimized for inference and is to be trained.
        """
        self.encoder.set_frozen(frozen)
        self.config.freeze_backbone = frozen

    def optimize_for_inference(self, dtype: torch.dtype | None = None) -> "NICForConditionalGeneration":
        """Fold BatchNorm and use channels last: faster captions from a model that can be neither trained nor saved.

        On Linux, a model on the CPU also lets the process keep up to 2 GiB of freed memory for further batches
        ([`nic_hf.malloc_settings.keep_freed_memory`]).

        Args:
            dtype: dtype of the backbone, such as `torch.bfloat16`, which a CPU without instructions for it ignores;
                the LSTM keeps its own.

        Returns:
            This model.
        """
        if self.device.type == "cpu":
            keep_freed_memory()
        self.encoder = faster_encoder(self.encoder, None if dtype is None else supported_dtype(dtype, self.device))
        return self.eval().requires_grad_(False)

    def set_feature_statistics(self, mean: torch.Tensor, std: torch.Tensor) -> None:
        """Standardise image features by `mean` and `std` of the training images, each of shape `(feature_size,)`.

        With attention they are those of all regions of all images.
        """
        self.image_projection.mean.copy_(mean)
        self.image_projection.std.copy_(std.clamp_min(1e-6))  # a constant feature carries no information

    def _set_gradient_checkpointing(self, enable: bool = True, *args: Any, **kwargs: Any) -> None:
        backbone = self.encoder.backbone
        if any(hasattr(module, "gradient_checkpointing") for module in backbone.modules()):
            super()._set_gradient_checkpointing(enable, *args, **kwargs)
        elif enable:
            raise ValueError(
                f"gradient checkpointing is the backbone's, and {type(backbone).__name__} has none: train without "
                "`gradient_checkpointing`, with smaller batches and `gradient_accumulation_steps`"
            )

    def forward(self, *args: Any, **kwargs: Any) -> NICOutput:
        """Score captions of images; see the core's [`NICForConditionalGeneration.forward`].

        In training on a CPU logits are 0 where labels are padding.

        Raises:
            ValueError: if the image or the words are missing, or do not fit each other.
            TypeError: for a misspelt argument.
        """
        check_keywords(kwargs)
        if self.training and hasattr(self.config, FIELD):
            delattr(self.config, FIELD)  # it was fitted to the weights before this training
        if len(args) < 2 and kwargs.get("labels") is None and kwargs.get("decoder_input_ids") is None:
            raise ValueError(NO_WORDS)
        if self.training and kwargs.get("labels") is None and kwargs.get("decoder_attention_mask") is not None:
            logger.warning_once(NO_LABELS)
        return super().forward(*args, **kwargs)

    forward.__signature__ = inspect.signature(CoreModel.forward)  # type: ignore[attr-defined]

    def read(
        self,
        inputs: torch.Tensor,
        state: State | None,
        regions: NICRegions | None,
        cache: CoreCache | None,
        starts_with_image: bool,
        is_read: torch.Tensor | None,
        labels: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """See the core's; in training on a CPU padding is not read."""
        skips = labels is not None and self._skips(labels) and starts_with_image and cache is None
        if labels is None or not skips or self.config.attention is not None:
            return super().read(inputs, state, regions, cache, starts_with_image, is_read, labels)
        is_word = labels.flatten(0, -2) != IGNORED_LABEL
        positions = torch.arange(1, is_word.shape[1] + 1, device=is_word.device)
        lengths = 1 + (positions * is_word).amax(dim=1)  # the image, and words up to the last
        outputs, _, weights = self.decoder(inputs, state, lengths=lengths)
        return outputs, weights

    def _skips(self, labels: torch.Tensor) -> bool:
        """Whether padding of labels is left out; on a GPU it takes longer to find than to compute."""
        return self.training and labels.device.type == "cpu" and not torch.compiler.is_compiling()

    def score(
        self,
        hidden_states: torch.Tensor,
        labels: torch.Tensor | None,
        num_items_in_batch: torch.Tensor | int | None,
        weights: torch.Tensor | None,
        image: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """See the core's; in training with more losses than the paper's."""
        if labels is None or not self.training:
            return super().score(hidden_states, labels, num_items_in_batch, weights, image)
        config, targets = self.config, labels.flatten(0, -2)
        is_word = targets != IGNORED_LABEL
        if self._skips(labels):
            scores, targets = self.lm_head(hidden_states[is_word]), targets[is_word]  # shape: (num_words, vocab_size)
            logits = scores.new_zeros(*is_word.shape, scores.shape[-1]).index_put((is_word,), scores)
        else:
            logits = self.lm_head(hidden_states)
            scores, targets = logits.flatten(0, 1), targets.flatten().to(logits.device)
        loss = self.word_loss(scores, targets, num_items_in_batch)
        is_word, costs = is_word.to(loss.device), []  # per caption, so divided by the number of words like the loss
        if weights is not None and config.attention_regularisation:
            costs.append(config.attention_regularisation * doubly_stochastic_penalty(weights, is_word))
        if self.bag_of_words is not None and image is not None:
            targets = labels.flatten(0, -2).to(loss.device)
            costs.append(bag_of_words_loss(self.bag_of_words, image, targets, is_word, config))
        if costs:
            num_words = is_word.sum() if num_items_in_batch is None else num_items_in_batch
            loss = loss + sum(cost.to(loss.device) for cost in costs) / torch.as_tensor(num_words, device=loss.device)
        return logits, loss


_ARGUMENTS = inspect.signature(CoreModel.forward).parameters.keys() - {"self"}
_KNOWN = _ARGUMENTS | TransformersKwargs.__optional_keys__ | {"return_loss", "return_dict"}


def check_keywords(kwargs: dict[str, Any]) -> None:
    """Refuse a misspelt keyword of `forward`, which would have no effect; warn once of others that have none.

    Raises:
        TypeError: naming the keyword that was meant.
    """
    for name, value in kwargs.items():
        if value is None or name in _KNOWN:
            continue
        near = difflib.get_close_matches(name, _ARGUMENTS, n=1, cutoff=0.65)
        if near:
            raise TypeError(f"forward() got an unexpected keyword argument '{name}'. Did you mean '{near[0]}'?")
        logger.warning_once(f"a captioner does not read `{name}`")
