"""Photos and captions in: one reader a format, all behind `load_captions`; then what a Trainer learns from."""

from .captions import CaptionCollator, CaptionDataset, PhotoDataset
from .feature_cache import FeatureTable, cache_features
from .loading import load_captions
from .problems import CaptionDataError, SkippedItem

__all__ = [
    "CaptionCollator",
    "CaptionDataError",
    "CaptionDataset",
    "FeatureTable",
    "PhotoDataset",
    "SkippedItem",
    "cache_features",
    "load_captions",
]
