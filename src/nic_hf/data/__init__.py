"""Photos and captions in: one reader a format, all behind `load_captions`; then what a Trainer learns from."""

from .augmentation import PhotoView, default_views
from .captions import CaptionCollator, CaptionDataset, PhotoDataset
from .feature_cache import FeatureTable, cache_features
from .loading import load_captions
from .lower_blocks import LowerBlocks, UpperEncoder, split_encoder
from .problems import CaptionDataError, SkippedItem
from .stream_loader import StreamLoader
from .streaming import StreamingCaptionDataset, stream_captions

__all__ = [
    "CaptionCollator",
    "CaptionDataError",
    "CaptionDataset",
    "FeatureTable",
    "LowerBlocks",
    "PhotoDataset",
    "PhotoView",
    "SkippedItem",
    "StreamLoader",
    "StreamingCaptionDataset",
    "UpperEncoder",
    "cache_features",
    "default_views",
    "load_captions",
    "split_encoder",
    "stream_captions",
]
