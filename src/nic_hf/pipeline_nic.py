"""The image-to-text pipeline, which Transformers removed in 5.0: photos in, captions out."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import zip_longest
from os import PathLike
from types import GeneratorType
from typing import Any, NamedTuple

import torch
from torch.utils.data import Dataset, IterableDataset
from transformers import Pipeline

from .images_nic import load_photo
from .processing_nic import NICProcessor


class _Prompted(NamedTuple):
    """A photo and the words that its caption starts with."""

    photo: Any
    prompt: str


class _Photos(Dataset):
    """A column of a table as what a pipeline reads lazily."""

    def __init__(self, column: Any, prompts: Sequence[str] | None = None) -> None:
        self.column, self.prompts = column, prompts
        if prompts is not None and len(prompts) != len(column):
            raise ValueError(f"{len(prompts)} prompts for {len(column)} photos: {_ONE_EACH}")

    def __len__(self) -> int:
        return len(self.column)

    def __getitem__(self, index: int) -> Any:
        photo = self.column[index]
        return photo if self.prompts is None else _Prompted(photo, self.prompts[index])


_ONE_EACH = 'give one for each photo, "" for none'


def _pairs(photos: Iterable[Any], prompts: Iterable[str]) -> Iterator[_Prompted]:
    missing: Any = object()
    for number, pair in enumerate(zip_longest(photos, prompts, fillvalue=missing)):
        if pair[0] is missing or pair[1] is missing:
            more, fewer = ("prompts", "photos") if pair[0] is missing else ("photos", "prompts")
            raise ValueError(f"{number} {fewer}, and more {more}: {_ONE_EACH}")
        yield _Prompted(*pair)


def _is_column(inputs: Any) -> bool:
    return isinstance(inputs, Sequence) and not isinstance(inputs, str | bytes | bytearray)


def _with_prompts(inputs: Any, prompts: Any) -> Any:
    """Photos and their prompts in the form that a pipeline takes: lists stay lists, what is read lazily stays so."""
    if isinstance(inputs, list | tuple):
        return list(_pairs(inputs, prompts))
    if isinstance(inputs, GeneratorType | IterableDataset):
        return _pairs(inputs, prompts)
    if isinstance(inputs, Dataset) or _is_column(inputs):
        return _Photos(inputs, list(prompts))
    (pair,) = _pairs([inputs], prompts)
    return pair


class ImageToTextPipeline(Pipeline):
    """Caption photos.

    Takes what the pipeline of Transformers 4 took, and answers as it did: one photo gives `[{"generated_text": ...}]`,
    a list of photos a list of those. `model` may also be a [`nic_hf.export.NICOnnxCaptioner`].

    Example:

    ```python
    captioner = pipeline("image-to-text", model="path/or/hub-id", trust_remote_code=True)
    captioner("photo.jpg")                                    # [{"generated_text": "a dog runs through the grass"}]
    captioner(["a.jpg", "b.jpg"], batch_size=2, num_beams=5)
    captioner("photo.jpg", prompt="two dogs")                 # the caption goes on from these words
    captioner(["a.jpg", "b.jpg"], prompt=["two dogs", ""])    # one for each photo
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
            own = {name: getattr(self.processor, name, None) for name in ("image_processor", "tokenizer")}
            self.processor = NICProcessor(**{**own, **given})

    def __call__(self, inputs: Any = None, *args: Any, **kwargs: Any) -> Any:
        """Caption one photo or many.

        Args:
            inputs: a path, URL, base64 text, bytes, PIL image or array, or a list, generator or data set of those; a
                column of Hugging Face Datasets, `photos["image"]`, too.
            *args: ignored, as by other pipelines.
            **kwargs:
                prompt (`str`, or a list of one for each photo): words that the caption starts with.
                timeout (`float`): seconds after which a download is given up.
                max_new_tokens (`int`), generate_kwargs (`dict`): as in the former pipeline.
                batch_size (`int`): photos a step.
                Everything else goes to `generate()`: `num_beams`, `num_return_sequences`, `do_sample`, ...

        Returns:
            `[{"generated_text": str}, ...]` for a photo, one entry for each of `num_return_sequences`; a list of those
            for a list of photos; an iterator of those for a generator, a data set or a column.

        Raises:
            OSError: naming the file of a photo that cannot be read.
            ValueError: where there are not as many prompts as photos.
        """
        if inputs is None:
            inputs = kwargs.pop("images", None)  # the former pipeline's name for it
        if inputs is None:
            raise ValueError("no photo: give a path, a URL, bytes, a PIL image, or a list of those")
        if not isinstance(kwargs.get("prompt"), str | None):
            inputs = _with_prompts(inputs, kwargs.pop("prompt"))
        elif isinstance(inputs, tuple):
            inputs = list(inputs)
        elif _is_column(inputs) and not isinstance(inputs, list):
            inputs = _Photos(inputs)
        if isinstance(inputs, list) and not inputs:
            return []
        return super().__call__(inputs, *args, **kwargs)

    def save_pretrained(self, save_directory: str | PathLike, **kwargs: Any) -> None:
        """Save model and processor, so that the directory can be given to `pipeline` again."""
        self.model.save_pretrained(save_directory, **kwargs)
        self.processor.save_pretrained(save_directory, **kwargs)

    def _sanitize_parameters(
        self,
        prompt: str | None = None,
        timeout: float | None = None,
        generate_kwargs: dict[str, Any] | None = None,
        **generation: Any,
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        preprocess = {"prompt": prompt, "timeout": timeout}
        preprocess = {name: value for name, value in preprocess.items() if value is not None}
        return preprocess, {**generation, **(generate_kwargs or {})}, {}

    def preprocess(  # type: ignore[override]
        self, image: Any, prompt: str | None = None, timeout: float | None = None
    ) -> dict[str, Any]:
        """Read a photo and make a tensor of it; the prompt stays text until the prompts of its batch are known."""
        if isinstance(image, _Prompted):
            image, prompt = image
        inputs = dict(self.processor(images=load_photo(image, timeout), return_tensors="pt"))
        return inputs if prompt is None else {**inputs, "prompt": prompt}

    def _forward(self, input_tensors: Any, **generate_kwargs: Any) -> Any:
        batch_size, prompt = len(input_tensors["pixel_values"]), input_tensors.pop("prompt", None)
        if prompt is not None:
            words = self.processor(text=[prompt] if isinstance(prompt, str) else prompt, return_tensors="pt")
            input_tensors = {**input_tensors, **words.to(self.device)}
        ids = self.model.generate(**input_tensors, **generate_kwargs)
        ids = torch.as_tensor(getattr(ids, "sequences", ids))  # an ONNX captioner gives arrays
        # shape: (batch_size, num_return_sequences, sequence_length), so that a batch can be taken apart by photo
        return {"generated_ids": ids.view(batch_size, -1, ids.shape[-1])}

    def postprocess(self, model_outputs: dict[str, torch.Tensor]) -> list[dict[str, str]]:  # type: ignore[override]
        """Turn the ids of one photo's captions into text."""
        ids = model_outputs["generated_ids"].flatten(0, -2)
        captions = self.processor.tokenizer.batch_decode(ids, skip_special_tokens=True)
        return [{"generated_text": caption} for caption in captions]
