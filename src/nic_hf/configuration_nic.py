"""Configuration of the Show and Tell captioner."""

import math
from typing import Any

from transformers import AutoConfig, PreTrainedConfig


class NICConfig(PreTrainedConfig):
    r"""
    What a [`NICForConditionalGeneration`] is made of: a vision backbone, and an LSTM that reads its feature first and
    words after it (Vinyals et al. 2015, [Show and Tell](https://arxiv.org/abs/1411.4555)).

    Args:
        backbone_config (`PreTrainedConfig` or `dict`, *optional*):
            Configuration of any Transformers vision model. Defaults to MobileNetV2 at 224 px.
        use_backbone_pooler (`bool`, *optional*, defaults to `True`):
            Build the backbone with its pooling layer, where its class can do without one. `from_backbone_pretrained`
            sets it to `False` for a checkpoint without weights for that layer; features are then the mean over
            positions. Attention reads what comes before that layer, which is then left out.
        feature_layers (`str` or `list[int]`, *optional*):
            Layers of the backbone whose outputs (`hidden_states`), averaged over places, are put beside its pooled
            feature: `"all"`, or their numbers, from the end where negative. Earlier layers still know the colours and
            textures that the last one, trained to name objects, has thrown away. With attention each region has beside
            its feature what those layers give at its place. `None`, the default and the paper's, is the pooled feature
            alone.
        feature_size (`int`, *optional*):
            Size of the backbone's feature, pooled or of a region. Found by a dry run of the backbone where it is not
            given.
        vocab_size (`int`, *optional*, defaults to 10000):
            Number of words, special tokens included.
        embedding_size (`int`, *optional*, defaults to 512):
            Size of the LSTM's input, which word vectors and the projected image feature share. It differs from
            `hidden_size` where pretrained word vectors demand it (MiniLM: 384).
        hidden_size (`int`, *optional*, defaults to 512):
            Size of the LSTM's state.
        num_hidden_layers (`int`, *optional*, defaults to 1):
            Number of LSTM layers.
        dropout (`float`, *optional*, defaults to 0.3):
            Share of the LSTM's inputs, of its outputs and of the states between its layers set to zero in training.
            0.3 is the `im2txt` code's.
        variational_dropout (`bool`, *optional*, defaults to `False`):
            Let `dropout` take the same units from all words of a caption (Gal and Ghahramani 2016).
        image_dropout (`float`, *optional*):
            The share of the first input, the image, in place of `dropout`. 0 lets captions depend more on the photo.
        recurrent_dropout (`float`, *optional*, defaults to 0.0):
            Share of the weights from hidden state to hidden state set to zero in training (Merity et al. 2018).
        label_smoothing (`float`, *optional*, defaults to 0.0):
            Share of the target probability spread evenly over the vocabulary in training. The loss in eval mode is
            never smoothed, so that it stays comparable.
        bag_of_words_loss (`float`, *optional*, defaults to 0.0):
            Weight of a second loss in training: the projected image alone has to tell which words its caption has. A
            captioner then depends more on the photo and less on the words before. Above 0, the checkpoint holds a
            layer for it, which captioning does not use.
        freeze_backbone (`bool`, *optional*, defaults to `True`):
            Keep the backbone as it is: no gradient, and eval mode (no BatchNorm update, no dropout) even in training.
        freeze_batch_norm (`bool`, *optional*, defaults to `False`):
            Keep the BatchNorm statistics of a backbone that is trained, as fine-tuning with small batches should;
            scale and shift are trained all the same.
        freeze_word_embeddings (`bool`, *optional*, defaults to `False`):
            Keep the word vectors as they are.
        initializer_range (`float`, *optional*, defaults to 0.08):
            Weights outside the backbone start uniform in `[-initializer_range, initializer_range]`, as in `im2txt`.
        forget_bias (`float`, *optional*, defaults to 1.0):
            What the biases of the forget gates start at: 1, as in `im2txt`. A backbone that learns from scratch gets
            its gradient through every step between the image and a word, and needs more (3 to 5).
        attention (`str`, *optional*):
            `"soft"` for the soft attention of Xu et al. 2015,
            [Show, Attend and Tell](https://arxiv.org/abs/1502.03044): before each word the LSTM looks at the regions
            of the photo, which are the places of a CNN's feature map or the patches of a transformer (tokens that
            stand for no patch, such as CLS, are left out). `None`, the default, is Show and Tell: one look at the
            pooled feature, before the first word.
        attention_regularisation (`float`, *optional*, defaults to 0.0):
            Lambda of the paper's equation 14: how much each region's share of the looks, summed over a caption, is
            drawn to 1 in training. Implementations usually have 1.
        pad_token_id, bos_token_id, eos_token_id, unk_token_id (`int`, *optional*, default to 0, 1, 2, 3):
            Ids of `<pad>`, `<bos>`, `<eos>` and `<unk>`.
        decoder_start_token_id (`int`, *optional*):
            What each caption starts from; `bos_token_id` where it is not given.
        use_cache (`bool`, *optional*, defaults to `True`):
            Return the LSTM's state, from which the next word is one step.
        is_encoder_decoder, tie_word_embeddings (`bool`, *optional*, default to `True`, `False`):
            What the library wants to know of every model. With `tie_word_embeddings=True` a word's vector is also
            what scores it, and `embedding_size` has to be `hidden_size`.

    Raises:
        ValueError: where a size is not positive, a rate is outside `[0, 1)`, a token id is outside the vocabulary,
            there is no such attention, or words of another size than the LSTM are to be tied to its output.

    Example:

    ```python
    >>> from nic_hf import NICConfig, NICForConditionalGeneration

    >>> config = NICConfig(vocab_size=2540)
    >>> config.backbone_config.model_type
    'mobilenet_v2'
    >>> model = NICForConditionalGeneration(config)  # random weights

    ```
    """

    model_type = "nic"
    sub_configs = {"backbone_config": AutoConfig}  # noqa: RUF012 - annotating it would make it a field
    keys_to_ignore_at_inference = [  # noqa: RUF012
        "cache",
        "past_key_values",
        "image_features",
        "decoder_hidden_states",
        "cross_attentions",
        "encoder_last_hidden_state",
        "encoder_hidden_states",
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
        """Resolve the backbone's configuration and check every value."""
        self.backbone_config = resolve_backbone_config(self.backbone_config)
        if self.decoder_start_token_id is None:
            self.decoder_start_token_id = self.bos_token_id
        super().__post_init__(**kwargs)
        self._check()
        if self.attention is not None:
            self.use_backbone_pooler = False  # weights that would get no gradient

    def _check(self) -> None:
        for name in ("vocab_size", "embedding_size", "hidden_size", "num_hidden_layers"):
            _check_positive_int(name, getattr(self, name))
        if self.feature_size is not None:
            _check_positive_int("feature_size", self.feature_size)
        if self.tie_word_embeddings and self.embedding_size != self.hidden_size:
            raise ValueError(
                "NICConfig: `tie_word_embeddings` needs word vectors of the LSTM's size: `embedding_size` is "
                f"{self.embedding_size}, `hidden_size` {self.hidden_size}"
            )
        for name in ("dropout", "image_dropout", "recurrent_dropout", "label_smoothing"):
            rate = getattr(self, name)
            if name == "image_dropout" and rate is None:
                continue
            if isinstance(rate, bool) or not isinstance(rate, int | float) or not 0 <= rate < 1:
                raise ValueError(f"NICConfig: `{name}` must be a number in [0, 1), got {rate!r}")
        layers = self.feature_layers
        numbers = (
            isinstance(layers, list | tuple) and all(type(number) is int for number in layers) and len(layers) > 0
        )
        if layers not in (None, "all") and not numbers:
            raise ValueError(f"NICConfig: `feature_layers` must be 'all', a list of integers or None, got {layers!r}")
        if self.attention not in (None, "soft"):
            raise ValueError(f"NICConfig: `attention` must be 'soft' or None, got {self.attention!r}")
        for name in ("attention_regularisation", "bag_of_words_loss", "initializer_range"):
            factor = getattr(self, name)
            if isinstance(factor, bool) or not isinstance(factor, int | float) or not 0 <= factor < math.inf:
                raise ValueError(f"NICConfig: `{name}` must be a number from 0, got {factor!r}")
        if self.attention_regularisation and self.attention is None:
            raise ValueError("NICConfig: `attention_regularisation` needs attention='soft'")
        ids = {name: getattr(self, name) for name in ("pad_token_id", "bos_token_id", "eos_token_id", "unk_token_id")}
        for name, value in ids.items():
            if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < self.vocab_size:
                raise ValueError(
                    f"NICConfig: `{name}` must be an id of the vocabulary, 0 to {self.vocab_size - 1} "
                    f"(`vocab_size` is {self.vocab_size}), got {value!r}"
                )
        if len(set(ids.values())) < len(ids):
            raise ValueError(f"NICConfig: the special tokens need ids of their own, got {ids}")


_LARGEST = {"vocab_size": 2**24, "num_hidden_layers": 2**8, "embedding_size": 2**16, "hidden_size": 2**16}


def _check_positive_int(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"NICConfig: `{name}` must be a positive integer, got {value!r}")
    if value > _LARGEST.get(name, 2**20):
        # Memory would be taken for it before anyone compares it with the weights.
        raise ValueError(f"NICConfig: `{name}` must be at most {_LARGEST.get(name, 2**20):,}, got {value:,}")


def resolve_backbone_config(config: PreTrainedConfig | dict | None) -> PreTrainedConfig:
    """Turn what a user or a `config.json` gives into the configuration of a model that sees nothing but images.

    Raises:
        ValueError: where it is neither a configuration nor a dict that names its `model_type`.
    """
    if config is None:
        config = {"model_type": "mobilenet_v2"}
    if isinstance(config, dict):
        if "model_type" not in config:
            raise ValueError("NICConfig: `backbone_config` needs a `model_type`, such as 'mobilenet_v2'")
        try:
            config = AutoConfig.for_model(**config)
        except Exception as error:  # each model's configuration has checks, and errors, of its own
            raise ValueError(f"NICConfig: `backbone_config`: {error!s:.300}") from error
    if not isinstance(config, PreTrainedConfig):
        raise ValueError(f"NICConfig: `backbone_config` must be a configuration or a dict, got {config!r:.80}")
    # CLIP, SigLIP and their kind hold the image half of a two-tower model as `vision_config`.
    return getattr(config, "vision_config", config)


NICConfig.register_for_auto_class()
