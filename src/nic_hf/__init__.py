"""Show and Tell as a first-class citizen of Hugging Face Transformers."""

from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor
from transformers.pipelines import PIPELINE_REGISTRY

from ._version import __version__
from .configuration_nic import NICConfig
from .modeling_nic import NICCache, NICForConditionalGeneration, NICOutput
from .pipeline_nic import ImageToTextPipeline
from .processing_nic import NICProcessor

AutoConfig.register(NICConfig.model_type, NICConfig, exist_ok=True)
AutoModelForImageTextToText.register(NICConfig, NICForConditionalGeneration, exist_ok=True)
AutoProcessor.register(NICConfig, NICProcessor, exist_ok=True)
# "image-to-text" itself cannot be registered: Transformers 5.19 and later rewrite the name before they look here.
PIPELINE_REGISTRY.register_pipeline(
    "image-captioning", pipeline_class=ImageToTextPipeline, pt_model=(AutoModelForImageTextToText,), type="multimodal"
)

__all__ = [
    "ImageToTextPipeline",
    "NICCache",
    "NICConfig",
    "NICForConditionalGeneration",
    "NICOutput",
    "NICProcessor",
    "__version__",
]
