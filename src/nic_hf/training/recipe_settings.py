"""Settings of a recipe for model and data, in addition to the training arguments."""

from dataclasses import dataclass, field
from typing import Any, Literal

SOURCE_OPTIONS = (
    *("images", "image_column", "caption_column"),
    *("dev_share", "test_share", "split_seed", "on_error"),
)


@dataclass
class ModelSettings:
    """Settings of the captioner."""

    backbone: str = field(metadata={"help": "Hub id or path of any Transformers vision model."})
    word_vectors: str | None = field(
        default=None,
        metadata={
            "help": "Pretrained word vectors: a SentenceTransformer (Hub id or path), or a GloVe/word2vec file."
        },
    )
    freeze_word_embeddings: bool = field(default=False, metadata={"help": "Do not train the word vectors."})
    segmentation: Literal["auto", "words", "characters", "spaces"] = field(
        default="auto",
        metadata={
            "help": "How captions in scripts without spaces (Chinese, Japanese, Thai, ...) are split: words needs the"
            " extra `languages`; auto is words, or characters without it."
        },
    )
    extend_vocabulary: bool = field(
        default=False,
        metadata={"help": "Add new words of the training captions to a captioner that is trained further."},
    )
    min_vocabulary_coverage: float = field(
        default=0.5,
        metadata={
            "help": "Refuse to train a captioner further if it knows a smaller share of the words of the captions; 0"
            " allows all."
        },
    )
    freeze_backbone: bool = field(
        default=True, metadata={"help": "Do not train the backbone; its features are then computed once and cached."}
    )
    trainable_backbone: str | None = field(
        default=None,
        metadata={
            "help": "Weights of the backbone to train: a share at its end, such as 0.3, or a regular expression that"
            " matches their names."
        },
    )
    freeze_batch_norm: bool = field(
        default=False, metadata={"help": "Keep the BatchNorm statistics of a trained backbone."}
    )
    feature_layers: str | None = field(
        default=None,
        metadata={
            "help": "Layers of the backbone to use in addition to its pooled feature: all, or numbers like 3,6,-1."
        },
    )
    embedding_size: int = field(default=512, metadata={"help": "Size of the word vectors, if none are given."})
    hidden_size: int = field(default=512, metadata={"help": "Number of units of the LSTM."})
    num_hidden_layers: int = field(default=1, metadata={"help": "Number of LSTM layers."})
    dropout: float = field(default=0.5, metadata={"help": "Dropout before and after the LSTM."})
    image_dropout: float | None = field(
        default=None, metadata={"help": "Dropout of the photo, the first input of the LSTM, if different."}
    )
    variational_dropout: bool = field(default=False, metadata={"help": "Drop the same units at each word."})
    recurrent_dropout: float = field(default=0.0, metadata={"help": "Dropout of the weights between hidden states."})
    label_smoothing: float = field(default=0.1, metadata={"help": "Label smoothing of the training loss."})
    bag_of_words_loss: float = field(
        default=0.0, metadata={"help": "Weight of a loss that predicts the words of a caption from the photo alone."}
    )
    initializer_range: float = field(
        default=0.08, metadata={"help": "New weights are drawn uniformly from [-this, this]."}
    )
    attention: str | None = field(
        default=None,
        metadata={"help": "soft: attend to regions of the photo before each word (Show, Attend and Tell)."},
    )
    attention_regularisation: float = field(
        default=0.0, metadata={"help": "Weight of the loss that spreads attention over all regions (lambda)."}
    )
    squeeze: int | None = field(
        default=None,
        metadata={
            "help": "Resize whole photos to this many pixels per side, instead of the backbone's resize and crop."
        },
    )
    num_beams: int = field(default=3, metadata={"help": "num_beams of the saved generation config."})
    length_penalty: float = field(default=1.0, metadata={"help": "length_penalty of the saved generation config."})


@dataclass
class DataSettings:
    """Settings of the data."""

    data: str = field(metadata={"help": "Captioned photos; see `nic_hf.data.load_captions` for the formats."})
    images: str | None = field(default=None, metadata={"help": "Folder of the photos, if it is not found."})
    image_column: str | None = field(
        default=None, metadata={"help": "Column of the file names, if it is not recognised."}
    )
    caption_column: str | None = field(
        default=None,
        metadata={"help": "Column of the captions, or several separated by commas, if not recognised."},
    )
    dev_share: float = field(default=0.1, metadata={"help": "Share of the validation split, if the data has none."})
    test_share: float = field(default=0.1, metadata={"help": "Share of the test split, if the data has no splits."})
    split_seed: int = field(default=0, metadata={"help": "Seed of the hash that splits data without splits."})
    train_split: str = field(default="train", metadata={"help": "Split to train on."})
    eval_split: str = field(default="validation", metadata={"help": "Split that selects the best checkpoint."})
    predict_split: str | None = field(
        default=None, metadata={"help": "Split to caption at the end, to predictions_SPLIT.json."}
    )
    min_frequency: int | None = field(
        default=None,
        metadata={
            "help": "Words that occur less often become <unk>; by default 5, or less if there are few captions."
        },
    )
    max_caption_length: int = field(default=50, metadata={"help": "Longer captions are truncated to this many words."})
    captions_per_sample: int = field(
        default=1, metadata={"help": "Captions of a photo that share a forward pass of a trained backbone."}
    )
    max_train_photos: int | None = field(default=None, metadata={"help": "Train on this many photos, the first ones."})
    max_eval_photos: int | None = field(
        default=None, metadata={"help": "Evaluate on this many photos, the first ones."}
    )
    on_error: Literal["raise", "skip"] = field(
        default="raise", metadata={"help": "raise or skip, for invalid lines and photos."}
    )
    cache_dir: str | None = field(default=None, metadata={"help": "Cache of image features."})
    views: int = field(
        default=1,
        metadata={"help": "Views of each training photo: itself, mirrored, then crops. Features of each are cached."},
    )
    edited_views: int = field(
        default=0,
        metadata={
            "help": "Further views: crops in grey, darker, with bars, or compressed more. Captioners trained with"
            " them bear such photos better."
        },
    )
    cache_lower_blocks: bool = field(
        default=False,
        metadata={"help": "Cache the output of the blocks below `trainable_backbone` for each photo."},
    )
    feature_dtype: Literal["float32", "float16"] = field(
        default="float32",
        metadata={"help": "Data type of cached features; float16 halves the size of the regions that attention uses."},
    )
    teacher: list[str] = field(
        default_factory=list,
        metadata={
            "help": "Captioners whose word probabilities are learned too, except in self-critical stages: folders or"
            " Hub ids, separated by spaces; start is the captioner that the stage starts from."
        },
    )
    teacher_captions: int = field(
        default=0,
        metadata={
            "help": "Captions of the teachers to add to those of each training photo; with unlabeled at least 1."
        },
    )
    unlabeled: str | None = field(
        default=None,
        metadata={
            "help": "Folder of further training photos, without captions; those of the teachers take their place."
        },
    )
    num_sample_photos: int = field(
        default=8, metadata={"help": "Number of photos whose captions are logged during training."}
    )

    def __post_init__(self) -> None:
        if self.unlabeled is not None and not self.teacher:
            raise ValueError("unlabeled needs a teacher, whose captions its photos get")

    def source_options(self) -> dict[str, Any]:
        """Arguments of [`nic_hf.data.load_captions`], except source and split."""
        return {name: getattr(self, name) for name in SOURCE_OPTIONS}
