"""The image-to-text pipeline, which Transformers removed in 5.0: photos in, captions out."""

from collections.abc import Sequence
from os import PathLike
from types import GeneratorType
from typing import Any, NamedTuple

import torch
from torch.utils.data import Dataset
from transformers import Pipeline

from .processing_nic import NICProcessor


class Prompted(NamedTuple):
    """A photo and the words that its caption begins with."""

    photo: Any
    prompt: str


class ImageToTextPipeline(Pipeline):
    """Caption photos, with the inputs and outputs of the pipeline of Transformers 4.

    Example:

    ```python
    captioner = pipeline("image-to-text", model="path/or/hub-id", trust_remote_code=True)
    captioner("photo.jpg")                                    # [{"generated_text": "a dog runs through the grass"}]
    captioner(["a.jpg", "b.jpg"], prompt=["two dogs", ""])    # captions begin with these words
    ```
    """

    _load_processor = True  # type: ignore[assignment]
    _load_image_processor = False  # type: ignore[assignment]
    _load_feature_extractor = False  # type: ignore[assignment]
    _load_tokenizer = False  # type: ignore[assignment]

    model: Any
    processor: Any

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        given = {name: kwargs[name] for name in ("image_processor", "tokenizer") if kwargs.get(name) is not None}
        if given:  # by the user, in place of the processor's own
            processor_class = NICProcessor if self.processor is None else type(self.processor)
            own = {name: getattr(self.processor, name, None) for name in ("image_processor", "tokenizer")}
            self.processor = processor_class(**{**own, **given})

    def __call__(self, inputs: Any = None, *args: Any, **kwargs: Any) -> Any:
        """Caption one photo or many.

        Args:
            inputs: a path, URL, base64 text, bytes, PIL image or array; or a list, generator or dataset of those.
            *args, **kwargs: `prompt` (`str` or `list[str]`), words that captions begin with; `timeout` of a download,
                in seconds; `batch_size`. Everything else, also in `generate_kwargs`, is passed to `generate()`.

        Returns:
            `[{"generated_text": str}, ...]` for a photo; a list of those for a list of photos, and an iterator of them
            for a generator or a dataset.
        """
        inputs = kwargs.pop("images", None) if inputs is None else inputs  # its former name
        if inputs is None:
            raise ValueError("no photo: give a path, a URL, bytes, a PIL image, or a list of those")
        is_list, prompts = isinstance(inputs, list | tuple), kwargs.get("prompt")
        is_column = isinstance(inputs, Sequence) and not is_list and not isinstance(inputs, str | bytes | bytearray)
        is_lazy = is_column or isinstance(inputs, GeneratorType | Dataset)
        if not isinstance(prompts, str | None):
            photos, prompts = inputs if is_list or is_lazy else [inputs], kwargs.pop("prompt")
            if not is_lazy and len(photos) != len(prompts):
                raise ValueError(f'{len(prompts)} prompts for {len(photos)} photos: give one per photo, "" for none')
            pairs = (Prompted(*pair) for pair in zip(photos, prompts, strict=True))
            inputs = pairs if is_lazy else list(pairs) if is_list else next(pairs)
        elif is_column:
            inputs = (photo for photo in inputs)
        inputs = list(inputs) if is_list else inputs
        return [] if is_list and not inputs else super().__call__(inputs, *args, **kwargs)

    def save_pretrained(self, save_directory: str | PathLike, **kwargs: Any) -> None:
        """Save model and processor."""
        self.model.save_pretrained(save_directory, **kwargs)
        self.processor.save_pretrained(save_directory, **kwargs)

    def _sanitize_parameters(self, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        preprocess: dict[str, Any] = {name: kwargs.pop(name) for name in ("prompt", "timeout") if name in kwargs}
        of_generate = kwargs.pop("generate_kwargs", None) or {}
        return preprocess, {**kwargs, **of_generate}, {}

    def preprocess(  # type: ignore[override]
        self, image: Any, prompt: str | None = None, timeout: float | None = None
    ) -> dict[str, Any]:
        """Turn a photo into a tensor; prompts stay text until those of the batch are known."""
        if isinstance(image, Prompted):
            image, prompt = image
        inputs = dict(self.processor(images=self.processor.load_photo(image, timeout), return_tensors="pt"))
        return inputs if prompt is None else {**inputs, "prompt": prompt}

    def _forward(self, input_tensors: Any, **generate_kwargs: Any) -> Any:
        batch_size, prompt = len(input_tensors["pixel_values"]), input_tensors.pop("prompt", None)
        if prompt is not None:
            words = self.processor(text=[prompt] if isinstance(prompt, str) else prompt, return_tensors="pt")
            input_tensors = {**input_tensors, **words.to(self.device)}
        ids = self.model.generate(**input_tensors, **generate_kwargs)
        ids = torch.as_tensor(getattr(ids, "sequences", ids))  # an ONNX captioner returns arrays
        # shape: (batch_size, num_return_sequences, sequence_length), so that a batch can be split by photo
        return {"generated_ids": ids.view(batch_size, -1, ids.shape[-1])}

    def postprocess(self, model_outputs: dict[str, torch.Tensor]) -> list[dict[str, str]]:  # type: ignore[override]
        """Decode the captions of one photo."""
        ids = model_outputs["generated_ids"].flatten(0, -2)
        captions = self.processor.tokenizer.batch_decode(ids, skip_special_tokens=True)
        return [{"generated_text": caption} for caption in captions]
