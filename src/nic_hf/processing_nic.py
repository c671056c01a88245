"""Preprocessing: photos to `pixel_values`, captions to `labels`, prefixes to `decoder_input_ids`."""

import io
import os
from os import PathLike
from typing import Any

import numpy as np
import transformers
from PIL import Image, ImageOps
from transformers import BatchFeature, ImageProcessingMixin, PreTrainedTokenizerFast
from transformers.image_utils import load_image
from transformers.processing_utils import ProcessorMixin

from .configuration_nic import IGNORED_LABEL

# Keywords of `from_pretrained` that say where files are. Others, such as `dtype`, are for the model.
SOURCE = {"cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder", "proxies"}


class NICProcessor(ProcessorMixin):
    """Image processor and tokenizer of a captioner.

    ```python
    inputs = processor(images=photo, text="a dog", return_tensors="pt")            # + decoder_input_ids: a prefix
    inputs = processor(images=photo, text_target="a dog runs", return_tensors="pt")  # + labels
    ```
    """

    def __init__(self, image_processor: Any = None, tokenizer: Any = None, **kwargs: Any) -> None:
        super().__init__(image_processor, tokenizer, **kwargs)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, **kwargs: Any) -> Any:  # type: ignore[override]
        """Load image processor and tokenizer, of which `image_processor` and `tokenizer` may be given."""
        image_processor, tokenizer = kwargs.pop("image_processor", None), kwargs.pop("tokenizer", None)
        if image_processor is None:
            image_processor = load_image_processor(pretrained_model_name_or_path, **kwargs)
        if tokenizer is None:
            source = {key: value for key, value in kwargs.items() if key in SOURCE}
            # Not AutoTokenizer, which would ask for trust in the model's code once more.
            tokenizer = PreTrainedTokenizerFast.from_pretrained(pretrained_model_name_or_path, **source)
        return cls(image_processor, tokenizer)

    def __call__(self, images: Any = None, text: Any = None, text_target: Any = None, **kwargs: Any) -> BatchFeature:
        """Prepare photos and captions for the model.

        Args:
            images: a photo or a list of photos (see [`load_photo`]), for `pixel_values` of shape `(batch_size,
                channels, height, width)`.
            text: caption prefixes, one per photo, for `decoder_input_ids` and `decoder_attention_mask` of shape
                `(batch_size, prefix_length)`. An empty string is no prefix.
            text_target: captions to learn, for `labels` of shape `(batch_size, caption_length)`, -100 at padding.
            **kwargs: of the image processor and the tokenizer, as in all processors of Transformers. `max_length`
                counts `<bos>` or `<eos>`.
        """
        if images is None and text is None and text_target is None:
            raise ValueError("give `images`, `text` or `text_target`")
        data: dict[str, Any] = {}
        if images is not None:
            images = list(images) if isinstance(images, list | tuple) else [images]
            # Other processors take a list of photos for each text; here it is a list of one.
            images = [image[0] if isinstance(image, list | tuple) and len(image) == 1 else image for image in images]
            images = [self.load_photo(image) for image in images]
        if images is not None and text is None and text_target is None and kwargs.keys() <= {"return_tensors"}:
            return BatchFeature({"pixel_values": self.image_processor(images, **kwargs)["pixel_values"]})
        kwargs = {key: dict(value) if key.endswith("_kwargs") else value for key, value in kwargs.items()}
        places = [kwargs, *(value for key, value in kwargs.items() if key.endswith("_kwargs"))]
        tensor_types = [place.pop("return_tensors") for place in places if "return_tensors" in place]
        if text is not None:
            prefixes = [text] if isinstance(text, str) else list(text)
            if images is not None and len(images) != len(prefixes):
                raise ValueError(
                    f'{len(prefixes)} texts for {len(images)} photos: give one per photo, "" for none. `text` is what '
                    "captions begin with; captions to learn go into `text_target`, which gives `labels`"
                )
            words = self._tokenize(prefixes, "left", kwargs, add_special_tokens=False)
            data["decoder_input_ids"] = [[self.tokenizer.bos_token_id, *ids] for ids in words["input_ids"]]
            data["decoder_attention_mask"] = [[1, *mask] for mask in words["attention_mask"]]
        if text_target is not None:
            captions = [text_target] if isinstance(text_target, str) else list(text_target)
            words = self._tokenize(captions, "right", kwargs)
            data["labels"] = [
                [word if is_word else IGNORED_LABEL for word, is_word in zip(ids, mask, strict=True)]
                for ids, mask in zip(words["input_ids"], words["attention_mask"], strict=True)
            ]
        if images is not None:
            data = {"pixel_values": super().__call__(images=images, **kwargs)["pixel_values"], **data}
        return BatchFeature(data, tensor_type=tensor_types[0] if tensor_types else None)

    def _tokenize(self, text: list[str], padding_side: str, kwargs: dict[str, Any], **own: Any) -> BatchFeature:
        """Token ids and attention mask of text, merging keywords as all processors do."""
        kwargs, of_text = {**kwargs, "return_attention_mask": True}, {**kwargs.get("text_kwargs", {}), **own}
        defaults = {"padding": True, "max_length": None, **self.tokenizer.init_kwargs, "padding_side": padding_side}
        for name in ("padding", "padding_side", "max_length"):
            if name not in kwargs:
                of_text.setdefault(name, defaults[name])
        for place in (kwargs, of_text):
            if own and place.get("max_length"):
                place["max_length"] -= 1  # for <bos>
        return super().__call__(text=text, **{**kwargs, "text_kwargs": of_text})

    def load_photo(self, source: Any, timeout: float | None = None) -> Image.Image:
        """Read a photo. See [`load_photo`]."""
        return load_photo(source, timeout)

    def post_process_image_text_to_text(
        self, generated_outputs: Any, skip_special_tokens: bool = True, **kwargs: Any
    ) -> list[str]:
        """Decode token ids of shape `(batch_size, sequence_length)`."""
        return self.tokenizer.batch_decode(generated_outputs, skip_special_tokens=skip_special_tokens, **kwargs)


def load_image_processor(name_or_path: str | PathLike, **kwargs: Any) -> Any:
    """Load a backbone's image processor, always the one that computes with Pillow and NumPy.

    torchvision resizes to slightly different pixels. Keywords are fields to change, such as `size`, and arguments of
    the Hub; others, such as `dtype`, have no effect.
    """
    settings, kwargs = ImageProcessingMixin.get_image_processor_dict(name_or_path, **kwargs)
    return build_image_processor(settings, **kwargs)


def build_image_processor(settings: dict[str, Any], **changes: Any) -> Any:
    """Build an image processor from the content of `preprocessor_config.json`, with `changes` of its fields."""
    name = settings.get("image_processor_type") or settings.get("feature_extractor_type") or ""
    name = name.replace("FeatureExtractor", "ImageProcessor").removesuffix("Fast").removesuffix("Pil")
    processor_class = getattr(transformers, f"{name}Pil", None) or getattr(transformers, name, None)
    if processor_class is None:
        raise ValueError(f"Transformers {transformers.__version__} has no image processor '{name}'")
    fields = ({*settings} | {*processor_class.valid_kwargs.__annotations__}) - {"return_tensors", "device"}
    settings = settings | {key: value for key, value in changes.items() if key in fields}
    settings.pop("auto_map", None)
    return processor_class.from_dict(settings)


def load_photo(source: Any, timeout: float | None = None) -> Image.Image:
    """Read a photo: a path, a URL, base64 text, the bytes of a file, or anything that [`to_rgb`] takes."""
    if not isinstance(source, str | PathLike | bytes | bytearray):
        return to_rgb(source)
    name = "the photo" if isinstance(source, bytes | bytearray) else f"{os.fspath(source)!s:.200}"
    try:
        if isinstance(source, bytes | bytearray):
            return to_rgb(Image.open(io.BytesIO(source)))
        if isinstance(source, PathLike) or os.path.isfile(source):  # noqa: PTH113 - pathlib refuses long text
            return to_rgb(Image.open(source))
        return to_rgb(load_image(source, timeout=timeout))
    except Exception as error:  # Pillow's, for damaged files, have many types
        raise OSError(f"{name}: cannot read it as an image: {error}") from error


def to_rgb(image: Any) -> Image.Image:
    """Turn a photo into an upright RGB one: EXIF orientation applied, transparency over white, levels as 8 bits.

    It may be a `PIL.Image.Image`, or an array or tensor of shape `(height, width)`, `(height, width, channels)` or
    `(channels, height, width)`. White is 65535 for `uint16` and 1 for boolean values. For other types it is the least
    of 1 (floating-point only), 255 and 65535 that is half of the highest value or more. Negative values are refused.
    """
    if hasattr(image, "is_floating_point"):  # a tensor
        image = (image.float() if image.is_floating_point() else image).detach().cpu().numpy()
    white = None
    if isinstance(image, np.ndarray):
        image = _array_to_image(image)
    elif isinstance(image, Image.Image):
        bits = getattr(image, "tag_v2", {}).get(258, (16,))[0]  # BitsPerSample of a TIFF
        white = 2.0**bits - 1 if image.mode.startswith("I;16") else None
    else:
        raise ValueError(f"not an image: {type(image).__name__}")
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I") or image.mode == "F":
        image = Image.fromarray(_to_bytes(np.asarray(image).clip(0), white))
    if image.mode in ("RGBA", "LA", "La", "PA", "RGBa") or "transparency" in image.info:
        image = image.convert("LA" if image.mode == "La" else "RGBA").convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def _array_to_image(array: np.ndarray) -> Image.Image:
    if array.ndim == 3 and array.shape[0] in (1, 3, 4) and array.shape[2] not in (1, 3, 4):
        array = array.transpose(1, 2, 0)
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    is_image = array.size > 0 and (array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (3, 4)))
    if not is_image or array.dtype.kind not in "iufb":
        raise ValueError(f"not an image: an array of shape {array.shape} and type {array.dtype}")
    return Image.fromarray(array if array.dtype == np.uint8 else _to_bytes(array, None))


def _to_bytes(array: np.ndarray, white: float | None) -> np.ndarray:
    """Scale levels to 0 to 255; `white` is found as [`to_rgb`] says if it is not given."""
    if white is None and array.dtype == np.uint16:
        white = 65535.0
    levels = np.nan_to_num(array.astype(np.float64), posinf=0.0, neginf=0.0)
    if white is None:
        highest, lowest = levels.max(), levels.min()
        scales = (255.0, 65535.0) if array.dtype.kind in "iu" else (1.0, 255.0, 65535.0)
        # Twice the scale, because resizing can overshoot.
        white = next((scale for scale in scales if highest <= 2 * scale), highest)
        if lowest < -0.2 * max(1.0, min(highest, white)):
            raise ValueError(f"levels from {lowest:g} to {highest:g}: give 0 to 255, 0 to 1 or 0 to 65535")
    return (levels.clip(0, white) * (255.0 / white)).round().astype(np.uint8)


NICProcessor.register_for_auto_class("AutoProcessor")
