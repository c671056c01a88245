"""Image processors of every kind that photos are prepared by, in ONNX captioners and in the browser."""

from typing import Any

MEAN_STD = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
IMAGE_PROCESSORS: dict[str, dict[str, Any]] = {
    "MobileNetV1": {"image_processor_type": "MobileNetV1ImageProcessor"},
    "MobileNetV2": {"image_processor_type": "MobileNetV2ImageProcessor"},
    "odd crop": {
        "image_processor_type": "MobileNetV2ImageProcessor",
        "size": {"shortest_edge": 150},
        "crop_size": {"height": 133, "width": 158},
    },
    "crop of photos too small for it": {
        "image_processor_type": "MobileNetV2ImageProcessor",
        "do_resize": False,
        "crop_size": {"height": 97, "width": 224},
    },
    "ViT": {"image_processor_type": "ViTImageProcessor"},
    "a size that is not square": {
        "image_processor_type": "ViTImageProcessor",
        "size": {"height": 96, "width": 128},
        "resample": 3,
        **MEAN_STD,
    },
    "levels as they are": {"image_processor_type": "ViTImageProcessor", "do_normalize": False, "do_rescale": False},
    "normalised without rescaling": {"image_processor_type": "ViTImageProcessor", "do_rescale": False},
    "CLIP": {"image_processor_type": "CLIPImageProcessor"},
    "SigLIP": {"image_processor_type": "SiglipImageProcessor"},
    "BiT, as DINOv2": {"image_processor_type": "BitImageProcessor", **MEAN_STD},
    "ConvNeXt cuts the edges off": {
        "image_processor_type": "ConvNextImageProcessor",
        "size": {"shortest_edge": 150},
        "crop_pct": 0.8,
    },
    "ConvNeXt squeezes large photos": {"image_processor_type": "ConvNextImageProcessor"},
    "MobileViT turns channels round": {"image_processor_type": "MobileViTImageProcessor"},
}
