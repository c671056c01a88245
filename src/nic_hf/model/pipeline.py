"""The pipeline of this package, which opens on the captioner that comes with it."""

import math
import os
from collections.abc import Mapping
from typing import Any

import torch
from transformers.utils import logging

from .. import pipeline_nic
from ..batching import BatchedCalls
from ..captioners import captioner_path
from .captioner import NICForConditionalGeneration
from .confidence import NOT_CALIBRATED, Calibration, caption_confidences
from .processor import NICProcessor

logger = logging.get_logger(__name__)

_PLAIN = (bool, int, float, str)


class ImageToTextPipeline(pipeline_nic.ImageToTextPipeline):
    """Caption photos, with the inputs and outputs of the `image-to-text` pipeline of Transformers 4.

    It is the pipeline in `pipeline_nic.py`, which is saved with checkpoints.

    Example:

    ```python
    captioner = ImageToTextPipeline.from_pretrained()         # the captioner that comes with nic_hf
    captioner("photo.jpg")                                    # [{"generated_text": "a dog runs through the grass"}]
    captioner(["a.jpg", "b.jpg"], prompt=["two dogs", ""])    # captions begin with these words
    captioner("photo.jpg", return_scores=True)                # [{"generated_text": "...", "confidence": 0.57}]
    ```

    With `return_scores` each caption has its `confidence`, the chance that people would accept it: a number from 0 to
    1, or `None` if the captioner is not calibrated ([`nic_hf.evaluation.calibrate`]).

    Threads may share a pipeline: photos that they send at the same time are captioned in one batch.
    """

    _batches: BatchedCalls

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._batches = BatchedCalls(self._caption_together)

    def _sanitize_parameters(
        self, return_scores: bool | None = None, **kwargs: Any
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        preprocess, forward, postprocess = super()._sanitize_parameters(**kwargs)
        forward |= {} if return_scores is None else {"return_scores": return_scores}
        return preprocess, forward, postprocess

    def _forward(self, input_tensors: Any, **generate_kwargs: Any) -> Any:
        """Caption a batch of one caller, or photos of several threads that call the pipeline at the same time."""
        pixels = input_tensors.get("pixel_values")
        if len(input_tensors) > 1 or len(pixels) > 1 or not self._can_share(generate_kwargs):
            return self._caption(input_tensors, **generate_kwargs)
        group = (pixels.shape, pixels.dtype, *sorted(generate_kwargs.items()))
        return self._batches((pixels, generate_kwargs), group)

    def _can_share(self, generate_kwargs: dict[str, Any]) -> bool:
        """Whether the captions of a photo do not depend on the other photos of its batch: not if they are drawn."""
        own = self.model.generation_config  # an ONNX captioner's is a mapping
        samples = own.get("do_sample") if isinstance(own, Mapping) else own.do_sample
        if generate_kwargs.get("do_sample", samples):
            return False
        return all(isinstance(value, _PLAIN) for value in generate_kwargs.values())

    def _caption_together(self, asked: list[tuple[torch.Tensor, dict[str, Any]]]) -> list[dict[str, torch.Tensor]]:
        """Caption single photos with the same settings."""
        pixels = torch.cat([each[0] for each in asked])
        outputs = self._caption({"pixel_values": pixels}, **asked[0][1])
        return [{name: value[row : row + 1] for name, value in outputs.items()} for row in range(len(asked))]

    def _caption(self, input_tensors: Any, **generate_kwargs: Any) -> Any:
        if not generate_kwargs.pop("return_scores", False):
            return super()._forward(input_tensors, **generate_kwargs)
        if not hasattr(self.model, "get_image_features"):
            raise ValueError("return_scores=True: an ONNX captioner gives no confidence; load the checkpoint instead")
        calibration = Calibration.of(self.model.config)
        features = self.model.get_image_features(input_tensors["pixel_values"])
        outputs = super()._forward(input_tensors, encoder_outputs=features, **generate_kwargs)
        ids = outputs["generated_ids"]  # shape: (batch_size, num_return_sequences, sequence_length)
        if calibration is None:
            logger.warning_once("the captioner is " + NOT_CALIBRATED.format("CAPTIONER"))
            return {**outputs, "confidences": torch.full(ids.shape[:2], torch.nan)}
        confidences = caption_confidences(self.model, features, ids.flatten(0, 1), calibration)
        return {**outputs, "confidences": confidences.view(ids.shape[:2])}

    def postprocess(self, model_outputs: dict[str, torch.Tensor]) -> list[dict[str, Any]]:  # type: ignore[override]
        """Decode the captions of one photo."""
        captions: list[dict[str, Any]] = [*super().postprocess(model_outputs)]
        if "confidences" in model_outputs:
            for caption, confidence in zip(captions, model_outputs["confidences"].flatten().tolist(), strict=True):
                caption["confidence"] = None if math.isnan(confidence) else round(confidence, 4)
        return captions

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
