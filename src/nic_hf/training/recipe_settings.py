"""What a run of training is made of, besides the arguments of its Trainer: the model and the data."""

from dataclasses import dataclass, field
from typing import Any, Literal

SOURCE_OPTIONS = (
    *("images", "image_column", "caption_column"),
    *("dev_share", "test_share", "split_seed", "on_error"),
)


@dataclass
class ModelSettings:
    """What the captioner is made of."""

    backbone: str = field(metadata={"help": "Hub id or path of any Transformers vision model."})
    word_vectors: str | None = field(
        default=None,
        metadata={
            "help": "Word vectors to start from: a SentenceTransformer (Hub id or path), or a GloVe/word2vec file"
        },
    )
    freeze_word_embeddings: bool = field(default=False, metadata={"help": "Keep the word vectors as they are."})
    segmentation: Literal["auto", "words", "characters", "spaces"] = field(
        default="auto",
        metadata={
            "help": "How captions in scripts without spaces (Chinese, Japanese, Thai, ...) are cut: words needs the"
            " extra `languages`; auto is words, or characters without it."
        },
    )
    extend_vocabulary: bool = field(
        default=False,
        metadata={"help": "Teach a captioner that is trained further the new words of the training captions."},
    )
    min_vocabulary_coverage: float = field(
        default=0.5,
        metadata={
            "help": "Refuse to train a captioner further on captions of whose words it knows a smaller share; 0 allows"
            " all."
        },
    )
    freeze_backbone: bool = field(
        default=True, metadata={"help": "Keep the backbone as it is; its features are then computed once and cached."}
    )
    trainable_backbone: str | None = field(
        default=None,
        metadata={
            "help": "Of a backbone that is trained, the weights to train: a share at its end, such as 0.3, or a"
            " regular expression of their names."
        },
    )
    freeze_batch_norm: bool = field(
        default=False, metadata={"help": "Keep the BatchNorm statistics of a backbone that is trained."}
    )
    feature_layers: str | None = field(
        default=None,
        metadata={"help": "Layers of the backbone to read beside its pooled feature: all, or numbers like 3,6,-1."},
    )
    embedding_size: int = field(default=512, metadata={"help": "Size of word vectors, where none are given."})
    hidden_size: int = field(default=512, metadata={"help": "Size of the LSTM."})
    num_hidden_layers: int = field(default=1, metadata={"help": "Layers of the LSTM."})
    dropout: float = field(default=0.5, metadata={"help": "Dropout before and after the LSTM."})
    image_dropout: float | None = field(
        default=None, metadata={"help": "Dropout of the photo, the first thing that the LSTM reads, where it differs."}
    )
    variational_dropout: bool = field(default=False, metadata={"help": "Drop the same units from all words."})
    recurrent_dropout: float = field(default=0.0, metadata={"help": "Dropout of weights from one word to the next."})
    label_smoothing: float = field(default=0.1, metadata={"help": "Label smoothing of the training loss."})
    bag_of_words_loss: float = field(
        default=0.0, metadata={"help": "Weight of the loss of telling a caption's words from the photo alone."}
    )
    initializer_range: float = field(default=0.08, metadata={"help": "New weights start in [-this, this]."})
    attention: str | None = field(
        default=None, metadata={"help": "soft: look at the photo's regions before each word (Show, Attend and Tell)."}
    )
    attention_regularisation: float = field(
        default=0.0, metadata={"help": "How much attention is to spread over all regions of the photo (lambda)."}
    )
    squeeze: int | None = field(
        default=None,
        metadata={"help": "Resize whole photos to so many pixels a side, in place of the backbone's resize and crop."},
    )
    num_beams: int = field(default=3, metadata={"help": "Beams of the saved generation config."})
    length_penalty: float = field(default=1.0, metadata={"help": "Length penalty of the saved generation config."})


@dataclass
class DataSettings:
    """What it learns from."""

    data: str = field(metadata={"help": "Captioned photos: see `nic_hf.data.load_captions` for the forms it takes."})
    images: str | None = field(default=None, metadata={"help": "Folder of the photos, where it is not found."})
    image_column: str | None = field(
        default=None, metadata={"help": "Column of the photos' names, where it is not recognised."}
    )
    caption_column: str | None = field(
        default=None,
        metadata={"help": "Column of the captions, or several with commas between, where it is not recognised."},
    )
    dev_share: float = field(default=0.1, metadata={"help": "Share of the validation split, where the data has none."})
    test_share: float = field(default=0.1, metadata={"help": "Share of the test split, where the data has no splits."})
    split_seed: int = field(default=0, metadata={"help": "Seed of the hash that splits data without splits."})
    train_split: str = field(default="train", metadata={"help": "Split to learn from."})
    eval_split: str = field(default="validation", metadata={"help": "Split to choose by."})
    predict_split: str | None = field(
        default=None, metadata={"help": "Split to caption at the end, into predictions_SPLIT.json."}
    )
    min_frequency: int | None = field(
        default=None,
        metadata={
            "help": "Words seen less often in training become <unk>; by default 5, or less where the captions are few."
        },
    )
    max_caption_length: int = field(default=50, metadata={"help": "Longer captions are cut to so many words."})
    captions_per_sample: int = field(
        default=1, metadata={"help": "Captions of a photo that share a pass of its backbone, where that is trained."}
    )
    max_train_photos: int | None = field(default=None, metadata={"help": "Learn from the first photos only."})
    max_eval_photos: int | None = field(default=None, metadata={"help": "Evaluate on the first photos only."})
    on_error: Literal["raise", "skip"] = field(
        default="raise", metadata={"help": "raise or skip, for broken lines and photos."}
    )
    cache_dir: str | None = field(default=None, metadata={"help": "Where image features are kept between runs."})
    views: int = field(
        default=1,
        metadata={"help": "Ways to see each training photo: itself, mirrored, then cuts. Features are kept of each."},
    )
    cache_lower_blocks: bool = field(
        default=False,
        metadata={"help": "Keep what the blocks below `trainable_backbone` give of each photo, as features are kept."},
    )
    feature_dtype: Literal["float32", "float16"] = field(
        default="float32",
        metadata={
            "help": "Number format of features that are kept; float16 halves the 49 regions that attention reads."
        },
    )
    num_sample_photos: int = field(default=8, metadata={"help": "Photos whose captions are logged through training."})

    def source_options(self) -> dict[str, Any]:
        """The arguments of [`nic_hf.data.load_captions`] besides source and split."""
        return {name: getattr(self, name) for name in SOURCE_OPTIONS}
