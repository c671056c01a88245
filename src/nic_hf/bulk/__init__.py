"""Captions of many photos: what `nic caption` is made of."""

from .captioner import ArrayCaptioner, Captioner, TorchCaptioner, is_onnx, load_captioner
from .processes import Processes
from .run import BrokenPhoto, BrokenPhotoError, CaptionRun, CaptionSummary
from .sources import PhotoItem, PhotoSources
from .store import CaptionFile, CaptionSink, Printed, SidecarFiles

__all__ = [
    "ArrayCaptioner",
    "BrokenPhoto",
    "BrokenPhotoError",
    "CaptionFile",
    "CaptionRun",
    "CaptionSink",
    "CaptionSummary",
    "Captioner",
    "PhotoItem",
    "PhotoSources",
    "Printed",
    "Processes",
    "SidecarFiles",
    "TorchCaptioner",
    "is_onnx",
    "load_captioner",
]
