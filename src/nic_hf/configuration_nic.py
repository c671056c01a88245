"""Configuration of the Show and Tell captioner."""

import math
from typing import Any

from transformers import AutoConfig, PreTrainedConfig

IGNORED_LABEL = -100  # of padding in labels: the `ignore_index` of torch.nn.CrossEntropyLoss

_TOKENS = ("pad_token_id", "bos_token_id", "eos_token_id", "unk_token_id")
_LARGEST = {"vocab_size": 2**24, "num_hidden_layers": 2**8, "embedding_size": 2**16, "hidden_size": 2**16}


class NICConfig(PreTrainedConfig):
    r"""
    Configuration of a [`NICForConditionalGeneration`]: a vision backbone, and an LSTM that reads the image feature and
    then words (Vinyals et al. 2015, [Show and Tell](https://arxiv.org/abs/1411.4555)).

    Args:
        backbone_config (`PreTrainedConfig` or `dict`, *optional*):
            Configuration of any Transformers vision model. Defaults to MobileNetV2 at 224 px.
        use_backbone_pooler (`bool`, *optional*, defaults to `True`):
            Build the backbone with its pooling layer, if that is optional. Attention never uses it.
        feature_layers (`str` or `list[int]`, *optional*):
            Layers of the backbone whose `hidden_states`, averaged over positions, are concatenated to the pooled
            feature: `"all"`, or their indices. Earlier layers still hold colours and textures.
        feature_size (`int`, *optional*): Size of the image feature. Inferred from the backbone by default.
        vocab_size (`int`, *optional*, defaults to 10000): Number of words, special tokens included.
        embedding_size (`int`, *optional*, defaults to 512): Size of word vectors and of the projected image feature.
        hidden_size, num_hidden_layers (`int`, *optional*, default to 512, 1): Size of the LSTM, and its layers.
        dropout (`float`, *optional*, defaults to 0.3): Dropout of the LSTM's inputs and outputs, as in `im2txt`.
        image_dropout (`float`, *optional*): Dropout of the first input, the image. Defaults to `dropout`.
        variational_dropout (`bool`, *optional*, defaults to `False`): Use one dropout mask for all words of a caption.
        recurrent_dropout (`float`, *optional*, defaults to 0.0): Dropout of the hidden-to-hidden weights.
        label_smoothing (`float`, *optional*, defaults to 0.0): Label smoothing of the loss, in training only.
        bag_of_words_loss (`float`, *optional*, defaults to 0.0):
            Weight of an auxiliary training loss, which predicts the words of a caption from the projected image alone.
        freeze_backbone (`bool`, *optional*, defaults to `True`):
            Keep the backbone in eval mode and without gradients, even in training.
        freeze_batch_norm (`bool`, *optional*, defaults to `False`): Keep the BatchNorm statistics of the backbone.
        freeze_word_embeddings (`bool`, *optional*, defaults to `False`): Do not train the word vectors.
        initializer_range (`float`, *optional*, defaults to 0.08): Largest initial weight outside the backbone.
        forget_bias (`float`, *optional*, defaults to 1.0): Initial bias of the forget gates.
        attention (`str`, *optional*):
            `"soft"` for the soft attention of [Show, Attend and Tell](https://arxiv.org/abs/1502.03044).
        attention_regularisation (`float`, *optional*, defaults to 0.0):
            Lambda of that paper's equation 14: in training each region should be attended to equally over a caption.
        pad_token_id, bos_token_id, eos_token_id, unk_token_id (`int`, *optional*, default to 0, 1, 2, 3):
            Ids of `<pad>`, `<bos>`, `<eos>` and `<unk>`.
        decoder_start_token_id (`int`, *optional*): First token of each caption. Defaults to `bos_token_id`.
        use_cache (`bool`, *optional*, defaults to `True`): Return the LSTM's state.
        is_encoder_decoder, tie_word_embeddings (`bool`, *optional*, default to `True`, `False`):
            As in other models. `tie_word_embeddings=True` needs `embedding_size == hidden_size`.

    Raises:
        ValueError: if a size is not positive, a rate is outside `[0, 1)`, a token id is outside the vocabulary, or
            options contradict each other.
    """

    model_type = "nic"
    sub_configs = {"backbone_config": AutoConfig}  # noqa: RUF012 - annotating it would make it a field
    keys_to_ignore_at_inference = [  # noqa: RUF012
        *("cache", "past_key_values", "image_features", "decoder_hidden_states", "cross_attentions"),
        *("encoder_last_hidden_state", "encoder_hidden_states"),
    ]

    backbone_config: PreTrainedConfig | dict | None = None
    use_backbone_pooler: bool = True
    feature_layers: str | list[int] | None = None
    feature_size: int | None = None
    vocab_size: int = 10000
    embedding_size: int = 512
    hidden_size: int = 512
    num_hidden_layers: int = 1
    dropout: float = 0.3
    image_dropout: float | None = None
    variational_dropout: bool = False
    recurrent_dropout: float = 0.0
    label_smoothing: float = 0.0
    bag_of_words_loss: float = 0.0
    freeze_backbone: bool = True
    freeze_batch_norm: bool = False
    freeze_word_embeddings: bool = False
    initializer_range: float = 0.08
    forget_bias: float = 1.0
    attention: str | None = None
    attention_regularisation: float = 0.0
    pad_token_id: int = 0
    bos_token_id: int = 1
    eos_token_id: int = 2
    unk_token_id: int = 3
    decoder_start_token_id: int | None = None
    is_encoder_decoder: bool = True
    tie_word_embeddings: bool = False
    use_cache: bool = True

    def __post_init__(self, **kwargs: Any) -> None:
        """Resolve the backbone's configuration and check all values."""
        self.backbone_config = resolve_backbone_config(self.backbone_config)
        if self.decoder_start_token_id is None:
            self.decoder_start_token_id = self.bos_token_id
        super().__post_init__(**kwargs)
        self._check_sizes()
        self._check_rates()
        self._check_tokens()
        if self.attention is not None:
            self.use_backbone_pooler = False  # its weights would get no gradient

    def _check_sizes(self) -> None:
        for name in ("vocab_size", "embedding_size", "hidden_size", "num_hidden_layers", "feature_size"):
            value, largest = getattr(self, name), _LARGEST.get(name, 2**20)
            if name == "feature_size" and value is None:
                continue
            if type(value) is not int or value < 1:
                raise ValueError(f"NICConfig: `{name}` must be a positive integer, got {value!r}")
            if value > largest:  # memory would be allocated before anyone compares it with the weights
                raise ValueError(f"NICConfig: `{name}` must be at most {largest:,}, got {value:,}")
        if self.tie_word_embeddings and self.embedding_size != self.hidden_size:
            raise ValueError(
                "NICConfig: `tie_word_embeddings` needs word vectors of the LSTM's size: `embedding_size` is "
                f"{self.embedding_size}, `hidden_size` {self.hidden_size}"
            )
        layers = self.feature_layers
        indices = isinstance(layers, list | tuple) and len(layers) > 0 and all(type(each) is int for each in layers)
        if layers not in (None, "all") and not indices:
            raise ValueError(f"NICConfig: `feature_layers` must be 'all', a list of integers or None, got {layers!r}")

    def _check_rates(self) -> None:
        rates = ("dropout", "image_dropout", "recurrent_dropout", "label_smoothing")
        for name in (*rates, "attention_regularisation", "bag_of_words_loss", "initializer_range"):
            value, end = getattr(self, name), 1 if name in rates else math.inf
            if name == "image_dropout" and value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < end:
                wanted = "a number in [0, 1)" if name in rates else "a number from 0"
                raise ValueError(f"NICConfig: `{name}` must be {wanted}, got {value!r}")
        if self.attention not in (None, "soft"):
            raise ValueError(f"NICConfig: `attention` must be 'soft' or None, got {self.attention!r}")
        if self.attention_regularisation and self.attention is None:
            raise ValueError("NICConfig: `attention_regularisation` needs attention='soft'")

    def _check_tokens(self) -> None:
        ids = {name: getattr(self, name) for name in _TOKENS}
        for name, value in ids.items():
            if type(value) is not int or not 0 <= value < self.vocab_size:
                raise ValueError(
                    f"NICConfig: `{name}` must be an id of the vocabulary, 0 to {self.vocab_size - 1} "
                    f"(`vocab_size` is {self.vocab_size}), got {value!r}"
                )
        if len(set(ids.values())) < len(ids):
            raise ValueError(f"NICConfig: the special tokens need ids of their own, got {ids}")


def resolve_backbone_config(config: PreTrainedConfig | dict | None) -> PreTrainedConfig:
    """Return the configuration of a vision model, from a configuration or a dict that names its `model_type`."""
    if config is None:
        config = {"model_type": "mobilenet_v2"}
    if isinstance(config, dict):
        if "model_type" not in config:
            raise ValueError("NICConfig: `backbone_config` needs a `model_type`, such as 'mobilenet_v2'")
        try:
            config = AutoConfig.for_model(**config)
        except Exception as error:  # of any model's configuration
            raise ValueError(f"NICConfig: `backbone_config`: {error!s:.300}") from error
    if not isinstance(config, PreTrainedConfig):
        raise ValueError(f"NICConfig: `backbone_config` must be a configuration or a dict, got {config!r:.80}")
    # CLIP, SigLIP and similar hold the image half of a two-tower model as `vision_config`.
    return getattr(config, "vision_config", config)


NICConfig.register_for_auto_class()
