"""Preprocessing: photos to `pixel_values`, captions to `labels`, prefixes to `decoder_input_ids`."""

from os import PathLike
from pathlib import Path
from typing import Any

import transformers
from transformers import BatchFeature, ImageProcessingMixin, PreTrainedConfig, PreTrainedTokenizerFast
from transformers.processing_utils import ProcessingKwargs, ProcessorMixin, TextKwargs
from transformers.utils import logging

from .checkpoint_nic import check_path, staged_save
from .images_nic import load_photo

logger = logging.get_logger(__name__)
IGNORED_LABEL = -100

# Keywords of `from_pretrained` that say where files come from, and those that a tokenizer is built with. The others of
# a call, such as `dtype` and `device_map`, are for the model, and must not be saved with the processor.
_SOURCE = {"cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder", "proxies"}
_OF_CALL = {"return_tensors", "device"}
_OF_TEMPLATES = {"tools", "documents", "add_generation_prompt", "continue_final_message", "return_dict"}
_OF_TEMPLATES |= {"return_assistant_tokens_mask", "load_audio_from_video", "sanitize_control_tokens"}
_OF_TOKENIZER = {*PreTrainedTokenizerFast.SPECIAL_TOKENS_ATTRIBUTES, *TextKwargs.__annotations__} - _OF_CALL
_OF_TOKENIZER |= {"extra_special_tokens", "model_max_length", "truncation_side", "clean_up_tokenization_spaces"}


def load_image_processor(name_or_path: str | PathLike, **kwargs: Any) -> Any:
    """Load a backbone's image processor, always the one that computes with Pillow and NumPy.

    Transformers otherwise takes torchvision where that is installed; its resize gives slightly other pixels, and a
    captioner should see the same photo on every machine. (5.17 cannot even load one without torchvision.)

    Args:
        name_or_path: a Hub id or a directory.
        **kwargs: fields to change, such as `size={"height": 224, "width": 224}`, and Hub arguments; others, such as
            `dtype`, are for the model and have no effect.

    Raises:
        OSError: where there is no such directory or repository, or it holds no image processor.
    """
    check_path(name_or_path)
    settings, kwargs = ImageProcessingMixin.get_image_processor_dict(name_or_path, **kwargs)
    return build_image_processor(settings, **kwargs)


def build_image_processor(settings: dict[str, Any], **changes: Any) -> Any:
    """Build an image processor from what `preprocessor_config.json` holds, with `changes` of fields that it has."""
    name = settings.get("image_processor_type") or settings.get("feature_extractor_type") or ""
    name = name.replace("FeatureExtractor", "ImageProcessor").removesuffix("Fast").removesuffix("Pil")
    processor_class = getattr(transformers, f"{name}Pil", None)
    if processor_class is None:
        processor_class = getattr(transformers, name, None)
    if processor_class is None:
        raise ValueError(f"Transformers {transformers.__version__} has no image processor '{name}'")
    fields = ({*settings} | {*processor_class.valid_kwargs.__annotations__}) - _OF_CALL
    settings = settings | {key: value for key, value in changes.items() if key in fields}
    return processor_class.from_dict({key: value for key, value in settings.items() if key not in ("auto_map",)})


def squeeze_to(image_processor: Any, height: int, width: int | None = None) -> Any:
    """Let an image processor resize whole photos to `height` x `width` pixels, aspect ratio given up, without a crop.

    A centre crop loses what stands at the edges, which captions speak of.
    """
    image_processor.do_resize = True
    image_processor.size = type(image_processor.size)(height=height, width=width or height)
    image_processor.do_center_crop = False
    return image_processor


class NICProcessorKwargs(ProcessingKwargs, total=False):
    """Defaults of the keywords of [`NICProcessor`]: prefixes are padded on the left, where captions do not go on."""

    _defaults = {"text_kwargs": {"padding": True, "padding_side": "left"}}  # type: ignore[misc]  # noqa: RUF012


class NICProcessor(ProcessorMixin):
    """Image processor and tokenizer of a captioner, in one.

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

    valid_processor_kwargs = NICProcessorKwargs

    def __init__(self, image_processor: Any = None, tokenizer: Any = None, **kwargs: Any) -> None:
        super().__init__(image_processor, tokenizer, **kwargs)

    def __call__(
        self,
        images: Any = None,
        text: str | list[str] | None = None,
        text_target: str | list[str] | None = None,
        **kwargs: Any,
    ) -> BatchFeature:
        """Prepare photos and captions for the model.

        Args:
            images: a photo or a list of them: paths, URLs, bytes, PIL images, arrays or tensors (see
                [`load_photo`]).
            text: caption prefixes to go on from, one a photo; an empty string is no prefix. Shorter ones are padded
                behind `<bos>`, which changes no caption. A warning lists words that the vocabulary lacks, which are
                read as `<unk>`.
            text_target: captions to learn, one a photo.
            **kwargs: `return_tensors`, `"pt"` or `"np"`, and keywords of the image processor and of the tokenizer, as
                every processor of Transformers takes them: flat, or as `images_kwargs`, `text_kwargs` and
                `common_kwargs`. `max_length` counts `<bos>` or `<eos>`. Unknown ones are warned of.

        Returns:
            `BatchFeature` with, for what was given, `pixel_values` of shape `(batch_size, channels, height, width)`,
            `decoder_input_ids` and `decoder_attention_mask`, 0 where padded, of shape `(batch_size, prefix_length)`,
            and `labels` of shape `(batch_size, caption_length)`, -100 where padded.

        Raises:
            ValueError: where nothing was given, numbers of photos and prefixes differ, or a keyword has a value that
                it cannot have.
            OSError: naming the file of a photo that cannot be read.
        """
        if images is None and text is None and text_target is None:
            raise ValueError("give `images`, `text` or `text_target`")
        if text is None and text_target is None and kwargs.keys() <= {"return_tensors"}:
            # As a data set prepares photo after photo; to merge nothing takes a fifth of a small photo's time.
            merged: Any = {"images_kwargs": kwargs, "text_kwargs": {**kwargs}}
        else:
            # Captions are padded on the right whatever the tokenizer says, prefixes on the left unless the call does.
            own = {key: value for key, value in self.tokenizer.init_kwargs.items() if key != "padding_side"}
            defaults: Any = NICProcessorKwargs
            merged = self._merge_kwargs(defaults, tokenizer_init_kwargs=own, **kwargs)
        text_kwargs = merged["text_kwargs"]
        tensor_type = text_kwargs.pop("return_tensors", None)
        data: dict[str, Any] = {}
        if images is not None:
            images = list(images) if isinstance(images, list | tuple) else [images]
            data["pixel_values"] = self._pixel_values(images, merged["images_kwargs"])
        if text is not None:
            prefixes = [text] if isinstance(text, str) else list(text)
            if images is not None and len(images) != len(prefixes):
                raise ValueError(f'{len(prefixes)} texts for {len(images)} photos: give one a photo, "" for none')
            data.update(self._prefixes(prefixes, text_kwargs))
        if text_target is not None:
            captions = [text_target] if isinstance(text_target, str) else list(text_target)
            data["labels"] = self._labels(captions, text_kwargs)
        return BatchFeature(data, tensor_type=tensor_type)

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
        assistant's, the caption goes on from its words.

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
            ValueError: where a chat shows no photo or several, or says something to the captioner.
            OSError: naming the file of a photo that cannot be read.
        """
        chats = conversation if conversation and isinstance(conversation[0], list | tuple) else [conversation]
        photos, prefixes = zip(*map(_photo_and_prefix, chats), strict=True)
        if tokenize:
            kwargs = {key: value for key, value in kwargs.items() if key not in _OF_TEMPLATES}
            options = {"return_tensors": return_tensors, **kwargs, **(processor_kwargs or {})}
            return self(images=list(photos), text=list(prefixes), **options)
        return list(prefixes) if chats is conversation else prefixes[0]

    def _pixel_values(self, images: list[Any], images_kwargs: dict[str, Any]) -> Any:
        # Other processors take a list of photos for each text; here it is a list of one.
        images = [image[0] if isinstance(image, list | tuple) and len(image) == 1 else image for image in images]
        return self.image_processor([load_photo(image) for image in images], **images_kwargs)["pixel_values"]

    def _prefixes(self, prefixes: list[str], text_kwargs: dict[str, Any]) -> dict[str, list[list[int]]]:
        """Ids and mask of prefixes; `<bos>` comes first and padding after it, as `generate()` looks for `<bos>`."""
        words = self._tokenize(prefixes, {**text_kwargs, "add_special_tokens": False}, room=1)
        self._warn_of_unknown(prefixes, words.input_ids)
        bos = self.tokenizer.bos_token_id
        return {
            "decoder_input_ids": [[bos, *ids] for ids in words.input_ids],
            "decoder_attention_mask": [[1, *mask] for mask in words.attention_mask],
        }

    def _warn_of_unknown(self, prefixes: list[str], words: list[list[int]]) -> None:
        unk = self.tokenizer.unk_token_id
        for prefix, ids in zip(prefixes, words, strict=True):
            if unk in ids:
                whole = self.tokenizer(prefix, add_special_tokens=False, return_offsets_mapping=True)
                places = zip(whole.offset_mapping, whole.input_ids, strict=True)
                unknown = [prefix[slice(*span)] for span, word in places if word == unk]
                logger.warning_once(
                    f"words of a prefix that the captioner does not know, and reads as <unk>: {', '.join(unknown)}"
                )

    def _labels(self, captions: list[str], text_kwargs: dict[str, Any]) -> list[list[int]]:
        words = self._tokenize(captions, {**text_kwargs, "padding_side": "right"})
        return [
            [word if is_word else IGNORED_LABEL for word, is_word in zip(ids, mask, strict=True)]
            for ids, mask in zip(words.input_ids, words.attention_mask, strict=True)
        ]

    def _tokenize(self, text: list[str], text_kwargs: dict[str, Any], room: int = 0) -> Any:
        if text_kwargs.get("max_length"):
            text_kwargs = {**text_kwargs, "max_length": text_kwargs["max_length"] - room}
        return self.tokenizer(text, **{**text_kwargs, "return_attention_mask": True})

    @property
    def model_input_names(self) -> list[str]:
        """Names of what the model takes from this processor."""
        return ["pixel_values", "decoder_input_ids", "decoder_attention_mask"]

    def to_dict(self) -> dict[str, Any]:
        """As Transformers' own, but where the code is, which saving notes in each part too, stands once."""
        output = super().to_dict()
        output.get("image_processor", {}).pop("auto_map", None)
        return output

    def save_pretrained(self, save_directory: str | PathLike, push_to_hub: bool = False, **kwargs: Any) -> list[str]:
        """Save as Transformers does, but whole or not at all: a failure leaves earlier files as they were.

        With `push_to_hub` the saved files are pushed too, by `push_to_hub(**kwargs)`; `repo_id` is the folder's name
        where not given.

        Raises:
            OSError: naming `save_directory`, where it cannot be written or the disk is full.
        """
        push = {"commit_message": "Upload processor", **kwargs} if push_to_hub else None
        with staged_save(save_directory, push=push) as directory:
            files = super().save_pretrained(directory)
        for part in (self, self.image_processor):
            vars(part).pop("auto_map", None)  # a processor is the same before and after it was saved
        return [str(Path(save_directory) / Path(file).name) for file in files]

    def post_process_image_text_to_text(
        self, generated_outputs: Any, skip_special_tokens: bool = True, **kwargs: Any
    ) -> list[str]:
        """Token ids of shape `(batch_size, sequence_length)` to captions."""
        return self.tokenizer.batch_decode(generated_outputs, skip_special_tokens=skip_special_tokens, **kwargs)

    @classmethod
    def _get_arguments_from_pretrained(
        cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any
    ) -> list[Any]:
        source = {key: value for key, value in kwargs.items() if key in _SOURCE}
        image_processor, tokenizer = kwargs.pop("image_processor", None), kwargs.pop("tokenizer", None)
        if image_processor is None:
            image_processor = load_image_processor(pretrained_model_name_or_path, **kwargs)
        if tokenizer is None:
            folder = Path(pretrained_model_name_or_path, kwargs.get("subfolder") or "")
            if folder.is_dir() and not (folder / "tokenizer.json").is_file():
                raise OSError(
                    f"{folder} holds no tokenizer.json; save the processor there: processor.save_pretrained(...)"
                )
            kwargs = {key: value for key, value in kwargs.items() if key in _SOURCE | _OF_TOKENIZER}
            # Not AutoTokenizer, which would read the model's config.json first and ask about its code once more.
            tokenizer = PreTrainedTokenizerFast.from_pretrained(pretrained_model_name_or_path, **kwargs)
        model_config = _model_config(pretrained_model_name_or_path, **source)
        if model_config is not None:
            check_vocabulary(tokenizer, model_config, pretrained_model_name_or_path)
        return [image_processor, tokenizer]


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
    """What `config.json` says of the captioner beside a processor; `None` where it was saved on its own."""
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
        ValueError: where the number of words or the id of a special token differs.
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


NICProcessor.register_for_auto_class("AutoProcessor")
