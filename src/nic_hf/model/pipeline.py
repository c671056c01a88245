"""The pipeline of this package, which opens on the captioner that comes with it."""

import os
from typing import Any

from .. import pipeline_nic
from ..captioners import captioner_path
from .captioner import NICForConditionalGeneration
from .processor import NICProcessor


class ImageToTextPipeline(pipeline_nic.ImageToTextPipeline):
    """Caption photos, with the inputs and outputs of the `image-to-text` pipeline of Transformers 4.

    It is the pipeline in `pipeline_nic.py`, which is saved with checkpoints.

    Example:

    ```python
    captioner = ImageToTextPipeline.from_pretrained()         # the captioner that comes with nic_hf
    captioner("photo.jpg")                                    # [{"generated_text": "a dog runs through the grass"}]
    captioner(["a.jpg", "b.jpg"], prompt=["two dogs", ""])    # captions begin with these words
    ```
    """

    @classmethod
    def from_pretrained(
        cls, name_or_path: str | os.PathLike[str] | None = None, *, device: Any = None, **kwargs: Any
    ) -> "ImageToTextPipeline":
        """Load a captioner, optimized for inference.

        Args:
            name_or_path: a folder, a Hub id, or the name of a captioner that comes with the package; `"flickr8k"` if
                not given.
            device: device of the model, such as `"cuda"`; as in `pipeline()` if not given.
            **kwargs: arguments of `from_pretrained` of model and processor, such as `dtype` and `revision`.

        Raises:
            OSError, ValueError: there is no such captioner, or its files are damaged or inconsistent.
        """
        name = captioner_path(name_or_path)
        processor = NICProcessor.from_pretrained(name, **kwargs)
        model = NICForConditionalGeneration.from_pretrained(name, **kwargs).optimize_for_inference()
        return cls(model=model, processor=processor, device=device)
