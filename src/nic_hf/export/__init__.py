"""A captioner as ONNX files, and what runs them without torch and Transformers."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .generation_settings import GenerationSettings
from .onnx_captioner import NICOnnxCaptioner
from .search import NICOnnxOutput

if TYPE_CHECKING:
    from .exporter import calibration_photos, export_onnx
    from .quantization import quantize_onnx

# What writes ONNX files needs more than what runs them, and is imported when it is first used.
_MODULES = {"calibration_photos": "exporter", "export_onnx": "exporter", "quantize_onnx": "quantization"}

__all__ = [
    "GenerationSettings",
    "NICOnnxCaptioner",
    "NICOnnxOutput",
    "calibration_photos",
    "export_onnx",
    "quantize_onnx",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used (PEP 562)."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        module = import_module(f".{_MODULES[name]}", __name__)
    except ImportError as error:
        raise ImportError(
            f"writing ONNX files needs onnx, onnxruntime, onnxscript and torch: pip install 'nic_hf[onnx]' ({error})"
        ) from error
    return getattr(module, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
