"""Export captioners to ONNX, and run them without torch and Transformers."""

from typing import TYPE_CHECKING, Any

from .._lazy import lazy_names
from .generation_settings import GenerationSettings
from .onnx_captioner import NICOnnxCaptioner
from .search import NICOnnxOutput

if TYPE_CHECKING:
    from .exporter import calibration_photos, export_onnx
    from .quantization import quantize_onnx

# Imported on first use: writing ONNX files needs more packages than running them.
_MODULES = {"calibration_photos": "exporter", "export_onnx": "exporter", "quantize_onnx": "quantization"}

__all__ = [
    "GenerationSettings",
    "NICOnnxCaptioner",
    "NICOnnxOutput",
    "calibration_photos",
    "export_onnx",
    "quantize_onnx",
]


_lazy_attribute, __dir__ = lazy_names(__name__, _MODULES)


def __getattr__(name: str) -> Any:
    try:
        return _lazy_attribute(name)
    except ImportError as error:
        raise ImportError(
            f"writing ONNX files needs onnx, onnxruntime, onnxscript and torch: pip install 'nic_hf[onnx]' ({error})"
        ) from error
