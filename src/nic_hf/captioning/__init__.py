"""Caption many photos: the building blocks of `nic caption`."""

from .caption_file import CaptionFile
from .caption_run import BrokenPhoto, BrokenPhotoError, CaptionRun, CaptionSummary
from .caption_sinks import CaptionSink, Printed, SidecarFiles
from .captioners import ArrayCaptioner, Captioner, TorchCaptioner, is_onnx, load_captioner
from .photo_sources import PhotoItem, PhotoSources
from .processes import Processes

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
