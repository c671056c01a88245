"""The processor of this package: photos from anywhere, read safely, and checks that it fits its model."""

from contextlib import suppress
from os import PathLike
from pathlib import Path
from typing import Any

from PIL import Image
from transformers import PreTrainedConfig, PreTrainedTokenizerFast
from transformers.feature_extraction_utils import BatchFeature
from transformers.processing_utils import TextKwargs
from transformers.utils import logging

from .. import processing_nic
from ..images import load_photo
from ..lookup import look_up
from ..processing_nic import SOURCE, build_image_processor
from .checkpoint import save_code, staged_save
from .timm_models import read_timm_settings

__all__ = ["NICProcessor", "build_image_processor", "check_vocabulary", "load_image_processor", "squeeze_to"]

logger = logging.get_logger(__name__)

_OF_TOKENIZER = {*PreTrainedTokenizerFast.SPECIAL_TOKENS_ATTRIBUTES, *TextKwargs.__annotations__}
_OF_TOKENIZER |= {"extra_special_tokens", "model_max_length", "truncation_side", "clean_up_tokenization_spaces"}
_OF_TOKENIZER -= {"return_tensors", "device"}
# Options of chat templates of other models, which have no effect here.
_OF_TEMPLATES = {"tools", "documents", "add_generation_prompt", "continue_final_message", "return_dict"}
_OF_TEMPLATES |= {"return_assistant_tokens_mask", "load_audio_from_video", "sanitize_control_tokens"}


def load_image_processor(name_or_path: str | PathLike, **kwargs: Any) -> Any:
    """Load a backbone's image processor; see the core's [`load_image_processor`]. Models of timm have one too.

    Raises:
        OSError: if there is no such directory or repository, or it holds no image processor.
        ValueError: if Transformers has no such image processor.
    """
    kwargs.update(look_up(name_or_path, **{key: value for key, value in kwargs.items() if key in SOURCE}))
    try:
        return processing_nic.load_image_processor(name_or_path, **kwargs)
    except OSError:
        found = None
        with suppress(OSError):
            found = read_timm_settings(name_or_path, **kwargs)
        if found is None:
            raise
        settings, changes = found
        return build_image_processor(settings, **changes)


def squeeze_to(image_processor: Any, height: int, width: int | None = None) -> Any:
    """Let an image processor resize whole photos to `height` x `width` pixels, aspect ratio given up, without a crop.

    A centre crop loses what stands at the edges, which captions speak of.
    """
    image_processor.do_resize = True
    image_processor.size = type(image_processor.size)(height=height, width=width or height)
    image_processor.do_center_crop = False
    return image_processor


class NICProcessor(processing_nic.NICProcessor):
    """Image processor and tokenizer of a captioner.

    It is the processor in `processing_nic.py`, which is saved with checkpoints. Here photos are read by
    [`nic_hf.images.load_photo`], with limits of size and time, and it is saved whole or not at all.

    Args:
        image_processor: any Transformers image processor (see [`load_image_processor`]).
        tokenizer: a tokenizer of [`nic_hf.tokenization.train_tokenizer`].

    Example:

    ```python
    inputs = processor(images=photo, return_tensors="pt")                          # pixel_values
    inputs = processor(images=photo, text="a dog", return_tensors="pt")            # + decoder_input_ids: a prefix
    inputs = processor(images=photo, text_target="a dog runs", return_tensors="pt")  # + labels
    ```
    """

    _auto_class = None  # the core's code is saved in its place

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, **kwargs: Any) -> Any:  # type: ignore[override]
        """Load image processor and tokenizer, of which `image_processor` and `tokenizer` may be given.

        Raises:
            OSError: if there is no such directory or repository, or a file is missing.
            ValueError: if the vocabulary is not the one of the model in the same place.
        """
        name = pretrained_model_name_or_path
        kwargs.update(look_up(name, "captioner", **{key: value for key, value in kwargs.items() if key in SOURCE}))
        image_processor, tokenizer = kwargs.pop("image_processor", None), kwargs.pop("tokenizer", None)
        if image_processor is None:
            image_processor = load_image_processor(name, **kwargs)
        if tokenizer is None:
            folder = Path(name, kwargs.get("subfolder") or "")
            if folder.is_dir() and not (folder / "tokenizer.json").is_file():
                message = "holds no tokenizer.json; save the processor there: processor.save_pretrained(...)"
                raise OSError(f"{folder} {message}")
            of_tokenizer = {key: value for key, value in kwargs.items() if key in SOURCE | _OF_TOKENIZER}
            tokenizer = PreTrainedTokenizerFast.from_pretrained(name, **of_tokenizer)
        config = _model_config(name, **{key: value for key, value in kwargs.items() if key in SOURCE})
        if config is not None:
            check_vocabulary(tokenizer, config, name)
        return cls(image_processor, tokenizer)

    @property
    def model_input_names(self) -> list[str]:
        """Names of the model's inputs that this processor makes."""
        return ["pixel_values", "decoder_input_ids", "decoder_attention_mask"]

    def load_photo(self, source: Any, timeout: float | None = None) -> Image.Image:
        """Read a photo. See [`nic_hf.images.load_photo`]."""
        return load_photo(source, timeout)

    def __call__(self, images: Any = None, text: Any = None, text_target: Any = None, **kwargs: Any) -> BatchFeature:
        """Prepare photos and captions for the model; see the core's. Warn of words of a prefix that it does not know.

        Raises:
            ValueError: if nothing is given, the numbers of photos and prefixes differ, or a value is not allowed.
            OSError: naming the file of a photo that cannot be read.
        """
        data = super().__call__(images, text, text_target, **kwargs)
        if text is not None:
            self._warn_of_unknown([text] if isinstance(text, str) else list(text))
        return data

    def _warn_of_unknown(self, prefixes: list[str]) -> None:
        unk = self.tokenizer.unk_token_id
        for prefix in prefixes:
            words = self.tokenizer(prefix, add_special_tokens=False, return_offsets_mapping=True)
            pairs = zip(words.offset_mapping, words.input_ids, strict=True)
            unknown = [prefix[slice(*span)] for span, word in pairs if word == unk]
            if unknown:
                logger.warning_once(
                    f"words of a prefix that the captioner does not know, and reads as <unk>: {', '.join(unknown)}"
                )

    def apply_chat_template(  # type: ignore[override]
        self,
        conversation: list[Any],
        chat_template: Any = None,
        *,
        tokenize: bool = False,
        return_tensors: str | None = None,
        processor_kwargs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> Any:
        """Prepare chats that show a photo, in which form Transformers' `image-text-to-text` pipeline takes it.

        A captioner takes no instructions: the user's message is the photo alone. If the last message is the
        assistant's, the caption begins with its words.

        Args:
            conversation: a list of messages, or a list of such lists. The photo is an entry of a message's content,
                `{"type": "image", "image": ...}`, or `"url"`, `"path"` or `"base64"` in place of the second key.
            chat_template: must be `None`; there is none to choose.
            tokenize: return model inputs, and not the words that the caption starts with.
            return_tensors: `"pt"` or `"np"`.
            processor_kwargs, **kwargs: passed to `__call__`. What templates of other models take, such as `tools`, has
                no effect.

        Returns:
            As `__call__` with `images` and `text`.

        Raises:
            ValueError: if a chat shows no photo or several, or has instructions.
            OSError: naming the file of a photo that cannot be read.
        """
        chats = conversation if conversation and isinstance(conversation[0], list | tuple) else [conversation]
        photos, prefixes = zip(*map(_photo_and_prefix, chats), strict=True)
        if tokenize:
            kwargs = {key: value for key, value in kwargs.items() if key not in _OF_TEMPLATES}
            options = {"return_tensors": return_tensors, **kwargs, **(processor_kwargs or {})}
            return self(images=list(photos), text=list(prefixes), **options)
        return list(prefixes) if chats is conversation else prefixes[0]

    def to_dict(self) -> dict[str, Any]:
        """As in Transformers, with the place of the code noted once, and not in each part."""
        output = super().to_dict()
        output.get("image_processor", {}).pop("auto_map", None)
        return output

    def save_pretrained(self, save_directory: str | PathLike, push_to_hub: bool = False, **kwargs: Any) -> list[str]:
        """Save as Transformers does, but whole or not at all: a failure leaves earlier files as they were.

        With `push_to_hub` the saved files are pushed too, by `push_to_hub(**kwargs)`; `repo_id` is the folder's name
        by default.

        Raises:
            OSError: naming `save_directory`, if it cannot be written or the disk is full.
        """
        push = {"commit_message": "Upload processor", **kwargs} if push_to_hub else None
        with staged_save(save_directory, push=push) as directory:
            save_code(directory)
            self.auto_map = {"AutoProcessor": "processing_nic.NICProcessor"}
            try:
                files = super().save_pretrained(directory)
            finally:
                del self.auto_map  # a processor is the same before and after it was saved
        return [str(Path(save_directory) / Path(file).name) for file in files]


def _photo_and_prefix(chat: list[dict[str, Any]]) -> tuple[Any, str]:
    """The photo that a chat shows, and the words that the caption starts with."""
    photos, prefix = [], ""
    for message in chat:
        content = message["content"]
        for part in [{"type": "text", "text": content}] if isinstance(content, str) else content:
            if part["type"] == "text" and message["role"] == "assistant" and message is chat[-1]:
                prefix = f"{prefix} {part['text']}".strip()
            elif part["type"] == "text" and part["text"].strip():
                raise ValueError(
                    f"a captioner takes no instructions ({part['text']!r}): give the photo alone; words that the"
                    " caption starts with go into a last message of the assistant"
                )
            elif part["type"] == "image":
                photos += [part[name] for name in ("image", "url", "path", "base64") if part.get(name) is not None]
    if len(photos) != 1:
        raise ValueError(f"a captioner describes one photo; the chat shows {len(photos)}")
    return photos[0], prefix


def _model_config(name_or_path: str | PathLike, **kwargs: Any) -> dict[str, Any] | None:
    """Configuration of the captioner in the same place; `None` if the processor was saved alone."""
    try:
        config, _ = PreTrainedConfig.get_config_dict(name_or_path, **kwargs)
    except OSError:
        return None
    return config if config.get("model_type") == "nic" else None


def check_vocabulary(tokenizer: Any, config: dict[str, Any], name: Any) -> None:
    """Refuse a tokenizer that is not the one that a model was trained with.

    Args:
        tokenizer: a Transformers tokenizer.
        config: the model's configuration.
        name: what an error calls them.

    Raises:
        ValueError: if the number of words or the id of a special token differs.
    """
    if len(tokenizer) != config["vocab_size"]:
        raise ValueError(
            f"{name}: the tokenizer has {len(tokenizer)} words and the model {config['vocab_size']}; "
            "they are not from the same training run"
        )
    for token in ("pad_token_id", "bos_token_id", "eos_token_id", "unk_token_id"):
        token_id = getattr(tokenizer, token)
        if token_id != config[token]:
            raise ValueError(
                f"{name}: `{token}` is {token_id} in the tokenizer and {config[token]} in the model; "
                "they are not from the same training run"
            )
