"""Captioned photos: loading, streaming, feature caching, and datasets for Trainer."""

from typing import TYPE_CHECKING

from .._lazy import lazy_names

if TYPE_CHECKING:
    from .augmentation import PhotoView, default_views
    from .caption_streams import stream_captions
    from .errors import CaptionDataError, SkippedItem
    from .feature_cache import cache_features
    from .feature_files import FeatureTable
    from .loading import load_captions
    from .lower_blocks import LowerBlocks, UpperEncoder, split_encoder
    from .stream_loader import StreamLoader
    from .streaming import StreamingCaptionDataset
    from .torch_datasets import CaptionCollator, CaptionDataset, PhotoDataset, SoftTargets

_MODULES = {
    "CaptionCollator": "torch_datasets",
    "CaptionDataError": "errors",
    "CaptionDataset": "torch_datasets",
    "FeatureTable": "feature_files",
    "LowerBlocks": "lower_blocks",
    "PhotoDataset": "torch_datasets",
    "PhotoView": "augmentation",
    "SkippedItem": "errors",
    "StreamLoader": "stream_loader",
    "SoftTargets": "torch_datasets",
    "StreamingCaptionDataset": "streaming",
    "UpperEncoder": "lower_blocks",
    "cache_features": "feature_cache",
    "default_views": "augmentation",
    "load_captions": "loading",
    "split_encoder": "lower_blocks",
    "stream_captions": "caption_streams",
}

__all__ = [
    "CaptionCollator",
    "CaptionDataError",
    "CaptionDataset",
    "FeatureTable",
    "LowerBlocks",
    "PhotoDataset",
    "PhotoView",
    "SkippedItem",
    "SoftTargets",
    "StreamLoader",
    "StreamingCaptionDataset",
    "UpperEncoder",
    "cache_features",
    "default_views",
    "load_captions",
    "split_encoder",
    "stream_captions",
]

__getattr__, __dir__ = lazy_names(__name__, _MODULES)
