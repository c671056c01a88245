"""Show and Tell as a first-class citizen of Hugging Face Transformers.

Nothing heavy is imported before it is used: `nic --help` and the ONNX captioner (`nic_hf.export`) do without torch and
Transformers. The classes are registered with Transformers as soon as that is imported, before or after this package.
"""

from typing import TYPE_CHECKING

from ._lazy import lazy_names
from ._registration import register_with_transformers
from ._version import __version__

if TYPE_CHECKING:
    from .configuration_nic import NICConfig
    from .data.feature_cache import cache_features
    from .data.loading import load_captions
    from .data.torch_datasets import CaptionDataset, PhotoDataset
    from .model.cache import NICCache
    from .model.captioner import NICForConditionalGeneration
    from .model.pipeline import ImageToTextPipeline
    from .model.processor import NICProcessor, load_image_processor
    from .modeling_nic import NICOutput
    from .tokenization import train_tokenizer
    from .training.arguments import CaptioningTrainingArguments
    from .training.trainer import CaptioningTrainer

_MODULES = {
    "CaptionDataset": "data.torch_datasets",
    "CaptioningTrainer": "training.trainer",
    "CaptioningTrainingArguments": "training.arguments",
    "ImageToTextPipeline": "model.pipeline",
    "NICCache": "model.cache",
    "NICConfig": "configuration_nic",
    "NICForConditionalGeneration": "model.captioner",
    "NICOutput": "modeling_nic",
    "NICProcessor": "model.processor",
    "PhotoDataset": "data.torch_datasets",
    "cache_features": "data.feature_cache",
    "load_captions": "data.loading",
    "load_image_processor": "model.processor",
    "train_tokenizer": "tokenization",
}

__all__ = [
    "CaptionDataset",
    "CaptioningTrainer",
    "CaptioningTrainingArguments",
    "ImageToTextPipeline",
    "NICCache",
    "NICConfig",
    "NICForConditionalGeneration",
    "NICOutput",
    "NICProcessor",
    "PhotoDataset",
    "__version__",
    "cache_features",
    "load_captions",
    "load_image_processor",
    "train_tokenizer",
]


__getattr__, __dir__ = lazy_names(__name__, _MODULES)

register_with_transformers()
