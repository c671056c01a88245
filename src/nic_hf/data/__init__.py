"""Photos and captions in: one reader a format, all behind `load_captions`; then what a Trainer learns from."""

from .augmentation import PhotoView, default_views
from .captions import CaptionCollator, CaptionDataset, PhotoDataset
from .feature_cache import FeatureTable, cache_features
from .loading import load_captions
from .problems import CaptionDataError, SkippedItem
from .stream_loader import StreamLoader
from .streaming import StreamingCaptionDataset, stream_captions

__all__ = [
    "CaptionCollator",
    "CaptionDataError",
    "CaptionDataset",
    "FeatureTable",
    "PhotoDataset",
    "PhotoView",
    "SkippedItem",
    "StreamLoader",
    "StreamingCaptionDataset",
    "cache_features",
    "default_views",
    "load_captions",
    "stream_captions",
]
