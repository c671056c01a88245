"""The interface of captioners for many photos, and its implementations for PyTorch and ONNX Runtime."""

import copy
import errno
import gc
import logging
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from PIL import Image

from ..digests import captioner_digest, file_digest, settings_digest
from ..lookup import look_up_captioner

if TYPE_CHECKING:
    from ..model.confidence import Calibration

logger = logging.getLogger(__name__)

ONNX_MANIFEST = "nic_onnx.json"


class Captioner(Protocol):
    """A captioner for many photos.

    Attributes:
        name: where it was loaded from.
        photo_size: smallest useful width and height of a photo (see [`nic_hf.images.load_photo`]), if known.
        calibration: numbers of its confidence, or a reason why it has none.
    """

    name: str
    photo_size: tuple[int, int] | None
    calibration: "Calibration | str"

    def prepare(self, photo: Image.Image) -> np.ndarray:
        """Return `pixel_values` of shape `(channels, height, width)`; called by several threads at once."""

    def caption(self, pixel_values: np.ndarray, **generation: Any) -> list[str]:
        """Caption photos of shape `(batch_size, channels, height, width)`; captions of a photo are consecutive."""

    def caption_with_confidence(self, pixel_values: np.ndarray, **generation: Any) -> list[tuple[str, float]]:
        """Caption photos like [`caption`], each caption with its confidence."""

    def digest(self) -> str:
        """Return a digest of everything captions depend on, except the photo and the arguments of `generate`."""


def load_captioner(
    name_or_path: str | os.PathLike[str], device: str | None = None
) -> "TorchCaptioner | ArrayCaptioner":
    """Load a captioner for many photos.

    Args:
        name_or_path: a checkpoint, a folder written by `nic export onnx`, or a Hub id.
        device: device for PyTorch; a GPU if available, else the CPU.

    Raises:
        OSError, ValueError: there is no such captioner, or its files are damaged or inconsistent.
    """
    if is_onnx(name_or_path):
        from ..export import NICOnnxCaptioner

        return ArrayCaptioner(NICOnnxCaptioner.from_pretrained(name_or_path), os.fspath(name_or_path))
    return TorchCaptioner(*load_checkpoint(name_or_path), os.fspath(name_or_path), device, copy_model=False)


def load_checkpoint(name_or_path: str | os.PathLike[str]) -> tuple[Any, Any]:
    """Load the model and processor of a checkpoint."""
    look_up_captioner(name_or_path)
    from ..model.captioner import NICForConditionalGeneration
    from ..model.processor import NICProcessor

    processor = NICProcessor.from_pretrained(name_or_path)
    return NICForConditionalGeneration.from_pretrained(name_or_path), processor


def is_onnx(name_or_path: str | os.PathLike[str]) -> bool:
    """Whether this is a folder written by `nic export onnx`."""
    return (Path(name_or_path) / ONNX_MANIFEST).is_file()


class TorchCaptioner:
    """A [`Captioner`] for a model and its processor.

    Args:
        model: a [`NICForConditionalGeneration`], which is not modified unless `copy_model` is false.
        processor: its [`NICProcessor`].
        name: where they were loaded from.
        device: device to run on; a GPU if available, else the CPU.
        copy_model: copy the model. False saves time and memory if nobody else uses it.

    Raises:
        ValueError: there is no such device.
    """

    def __init__(
        self, model: Any, processor: Any, name: str = "", device: str | None = None, *, copy_model: bool = True
    ) -> None:
        import torch

        self.name, self.processor = name, processor
        self.photo_size = photo_size(processor.image_processor.to_dict())
        self._digest = captioner_digest(model, processor)
        device = device or (f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if torch.cuda.is_available() else "cpu")
        try:
            torch.empty(0, device=device)
        except (AssertionError, RuntimeError) as error:  # depends on the missing device
            raise ValueError(f"cannot compute on {device!r}: {str(error).splitlines()[0]}") from error
        self.model = (copy.deepcopy(model) if copy_model else model).to(device).optimize_for_inference()
        from ..model.confidence import NOT_CALIBRATED, Calibration

        self.calibration = Calibration.of(model.config) or NOT_CALIBRATED.format(name or "CAPTIONER")

    def prepare(self, photo: Image.Image) -> np.ndarray:
        """See [`Captioner`]."""
        return self.processor(images=photo, return_tensors="np")["pixel_values"][0]

    def caption(self, pixel_values: np.ndarray, **generation: Any) -> list[str]:
        """See [`Captioner`]."""
        import torch

        with torch.inference_mode():
            ids = self.model.generate(pixel_values=self._pixels(pixel_values, generation), **generation)
        return self.processor.tokenizer.batch_decode(ids, skip_special_tokens=True)

    def caption_with_confidence(self, pixel_values: np.ndarray, **generation: Any) -> list[tuple[str, float]]:
        """See [`Captioner`].

        Raises:
            ValueError: the captioner is not calibrated.
        """
        import torch

        from ..model.confidence import caption_confidences

        if isinstance(self.calibration, str):
            raise ValueError(f"{self.name}: {self.calibration}")
        with torch.inference_mode():
            features = self.model.get_image_features(self._pixels(pixel_values, generation))
            ids = self.model.generate(encoder_outputs=features, **generation)
            confidences = caption_confidences(self.model, features, ids, self.calibration)
        captions = self.processor.tokenizer.batch_decode(ids, skip_special_tokens=True)
        return [(caption, round(each, 4)) for caption, each in zip(captions, confidences.tolist(), strict=True)]

    def _pixels(self, pixel_values: np.ndarray, generation: dict[str, Any]) -> Any:
        """Return the photos on the model's device, and set the seed, which `generate` does not know."""
        import torch

        seed = generation.pop("seed", None)
        if seed is not None:
            torch.manual_seed(seed)
        return torch.from_numpy(pixel_values).to(self.model.device)

    def digest(self) -> str:
        """See [`Captioner`]."""
        return self._digest


class ArrayCaptioner:
    """A [`Captioner`] for an object with NumPy arrays, such as [`nic_hf.export.NICOnnxCaptioner`].

    Args:
        captioner: has `preprocess(photos)`, `generate(pixel_values=...)` and `decode(ids)`.
        name: where it was loaded from.
    """

    calibration: "Calibration | str" = (
        "ONNX captioners give no confidence: name the checkpoint that it was exported from"
    )

    def __init__(self, captioner: Any, name: str = "") -> None:
        self.captioner, self.name = captioner, name
        size = getattr(captioner.preprocess, "size", None)
        self.photo_size = photo_size({"do_resize": True, "size": size}) if size else None

    def prepare(self, photo: Image.Image) -> np.ndarray:
        """See [`Captioner`]."""
        return self.captioner.preprocess([photo])[0]

    def caption(self, pixel_values: np.ndarray, **generation: Any) -> list[str]:
        """See [`Captioner`]."""
        return self.captioner.decode(self.captioner.generate(pixel_values=pixel_values, **generation))

    def caption_with_confidence(self, pixel_values: np.ndarray, **generation: Any) -> list[tuple[str, float]]:
        """See [`Captioner`]; it raises ValueError."""
        raise ValueError(f"{self.name}: {self.calibration}")

    def digest(self) -> str:
        """See [`Captioner`]."""
        folder = Path(getattr(self.captioner, "folder", self.name))
        files = sorted(folder.glob("*")) if folder.is_dir() else []
        return settings_digest([[f.name, file_digest(f)] for f in files if f.suffix in (".onnx", ".json", ".data")])


def photo_size(settings: Mapping[str, Any]) -> tuple[int, int] | None:
    """Return width and height of a photo after preprocessing; None if it is not resized."""
    size = settings.get("size") if settings.get("do_resize") else None
    if not size:
        return None
    if size.get("shortest_edge"):
        return size["shortest_edge"], size["shortest_edge"]
    return (size["width"], size["height"]) if size.get("width") and size.get("height") else None


def caption_batch(
    captioner: Captioner,
    photos: Sequence[np.ndarray],
    number: int,
    *,
    with_confidence: bool = False,
    **generation: Any,
) -> list[list[Any]]:
    """Return `number` captions of each photo, in smaller batches if sizes differ or memory does not suffice.

    They are strings, or with `with_confidence` pairs of a caption and its confidence.

    Raises:
        MemoryError, RuntimeError: a single photo does not fit into memory.
    """
    settings: dict[str, Any] = {"with_confidence": with_confidence, **generation}
    if len({photo.shape for photo in photos}) > 1:
        return [caption_batch(captioner, [photo], number, **settings)[0] for photo in photos]
    try:
        call = captioner.caption_with_confidence if with_confidence else captioner.caption
        texts: Any = call(np.stack(photos), num_return_sequences=number, **generation)
        return [texts[start : start + number] for start in range(0, len(texts), number)]
    except (MemoryError, OSError, RuntimeError) as error:
        if len(photos) == 1 or not _fewer_may_do(error, captioner):
            raise
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    # Outside the handler, where the error would keep the tensors alive.
    half = len(photos) // 2
    logger.warning("a batch of %d photos failed (%s): trying %d photos", len(photos), reason, half)
    gc.collect()
    parts = (photos[:half], photos[half:])
    return [captions for part in parts for captions in caption_batch(captioner, part, number, **settings)]


def _fewer_may_do(error: Exception, captioner: Captioner) -> bool:
    """Whether a smaller batch may fit into memory. Other errors of a GPU would occur again."""
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    if isinstance(error, MemoryError):
        return True
    torch = sys.modules.get("torch")  # not imported for ONNX captioners
    if torch is not None and isinstance(error, torch.OutOfMemoryError):
        return True
    # On a CPU, PyTorch and ONNX Runtime raise a plain RuntimeError.
    device = getattr(getattr(captioner, "model", None), "device", None)
    return type(error) is RuntimeError and (device is None or device.type == "cpu")
