"""The image-to-text pipeline, which Transformers removed in 5.0: photos in, captions out."""

from collections.abc import Sequence
from os import PathLike
from typing import Any

import torch
from torch.utils.data import Dataset
from transformers import Pipeline

from .images_nic import load_photo


class _Photos(Dataset):
    """A column of a table as what a pipeline reads lazily."""

    def __init__(self, column: Sequence[Any]) -> None:
        self.column = column

    def __len__(self) -> int:
        return len(self.column)

    def __getitem__(self, index: int) -> Any:
        return self.column[index]


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
    ```
    """

    _load_processor = True  # type: ignore[assignment]
    _load_image_processor = False  # type: ignore[assignment]
    _load_feature_extractor = False  # type: ignore[assignment]
    _load_tokenizer = False  # type: ignore[assignment]

    model: Any
    processor: Any

    def __call__(self, inputs: Any = None, *args: Any, **kwargs: Any) -> Any:
        """Caption one photo or many.

        Args:
            inputs: a path, URL, base64 text, bytes, PIL image or array, or a list, generator or data set of those; a
                column of Hugging Face Datasets, `photos["image"]`, too.
            *args: ignored, as by other pipelines.
            **kwargs:
                prompt (`str`): words that the caption starts with.
                timeout (`float`): seconds after which a download is given up.
                max_new_tokens (`int`), generate_kwargs (`dict`): as in the former pipeline.
                batch_size (`int`): photos a step.
                Everything else goes to `generate()`: `num_beams`, `num_return_sequences`, `do_sample`, ...

        Returns:
            `[{"generated_text": str}, ...]` for a photo, one entry for each of `num_return_sequences`; a list of those
            for a list of photos; an iterator of those for a generator, a data set or a column.

        Raises:
            OSError: naming the file of a photo that cannot be read.
        """
        if inputs is None:
            inputs = kwargs.pop("images", None)  # the former pipeline's name for it
        if inputs is None:
            raise ValueError("no photo: give a path, a URL, bytes, a PIL image, or a list of those")
        if isinstance(inputs, list | tuple):
            inputs = list(inputs)
            if not inputs:
                return []
        elif isinstance(inputs, Sequence) and not isinstance(inputs, str | bytes | bytearray):
            inputs = _Photos(inputs)
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
    ) -> dict[str, torch.Tensor]:
        """Read a photo, and make tensors of it and of the prompt."""
        inputs = self.processor(images=load_photo(image, timeout), text=prompt, return_tensors="pt")
        return dict(inputs)

    def _forward(self, input_tensors: Any, **generate_kwargs: Any) -> Any:
        batch_size = len(input_tensors["pixel_values"])
        ids = self.model.generate(**input_tensors, **generate_kwargs)
        ids = torch.as_tensor(getattr(ids, "sequences", ids))  # an ONNX captioner gives arrays
        # shape: (batch_size, num_return_sequences, sequence_length), so that a batch can be taken apart by photo
        return {"generated_ids": ids.view(batch_size, -1, ids.shape[-1])}

    def postprocess(self, model_outputs: dict[str, torch.Tensor]) -> list[dict[str, str]]:  # type: ignore[override]
        """Turn the ids of one photo's captions into text."""
        ids = model_outputs["generated_ids"].flatten(0, -2)
        captions = self.processor.tokenizer.batch_decode(ids, skip_special_tokens=True)
        return [{"generated_text": caption} for caption in captions]
