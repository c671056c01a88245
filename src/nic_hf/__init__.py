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
    from .model.cache import NICCache
    from .model.captioner import NICForConditionalGeneration
    from .model.processor import NICProcessor
    from .modeling_nic import NICOutput
    from .pipeline_nic import ImageToTextPipeline

_MODULES = {
    "ImageToTextPipeline": "pipeline_nic",
    "NICCache": "model.cache",
    "NICConfig": "configuration_nic",
    "NICForConditionalGeneration": "model.captioner",
    "NICOutput": "modeling_nic",
    "NICProcessor": "model.processor",
}

__all__ = [
    "ImageToTextPipeline",
    "NICCache",
    "NICConfig",
    "NICForConditionalGeneration",
    "NICOutput",
    "NICProcessor",
    "__version__",
]


__getattr__, __dir__ = lazy_names(__name__, _MODULES)

register_with_transformers()
