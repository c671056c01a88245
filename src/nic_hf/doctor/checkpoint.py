"""Check the files of a checkpoint, and compare it with its backbone."""

from collections.abc import Iterator
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..model.backbone import load_backbone, vision_part
from ..model.captioner import NICForConditionalGeneration
from ..model.checkpoint import DIGESTS, ChangedWeightsError, changed_weights, read_digests
from ..model.processor import NICProcessor, load_image_processor
from .findings import Finding, Status

# A change of dtype is smaller than this; the statistics of a BatchNorm in training mode soon change by more.
_ROUNDING = 1e-2


def load_checkpoint(name: str) -> tuple[Any, Any, list[Finding]]:
    """Load model and processor, None for one that cannot be loaded, and check the files."""
    findings = []
    model = processor = None
    try:
        model = NICForConditionalGeneration.from_pretrained(name)
    except ChangedWeightsError:
        pass  # reported by check_digests
    except (OSError, ValueError) as error:
        advice = "copy the whole folder again; model.safetensors and config.json must be from the same training run"
        findings.append(Finding("weights", Status.PROBLEM, str(error), advice))
    else:
        findings.append(check_weights(model))
    findings.append(check_digests(Path(name)))
    try:
        processor = NICProcessor.from_pretrained(name)
    except (OSError, ValueError) as error:
        is_vocabulary = _has_image_processor(name)  # which is loaded first
        advice = (
            "copy tokenizer.json from the same training run; with another vocabulary captions are meaningless"
            if is_vocabulary
            else "copy processor_config.json from the training run"
        )
        check = "vocabulary" if is_vocabulary else "preprocessing"
        findings.append(Finding(check, Status.PROBLEM, str(error), advice))
    else:
        words = len(processor.tokenizer)
        findings.append(Finding("vocabulary", Status.OK, f"{words:,} tokens in the tokenizer and in the model"))
    return model, processor, findings


def _has_image_processor(name: str) -> bool:
    try:
        load_image_processor(name)
    except (OSError, ValueError):
        return False
    return True


def check_digests(folder: Path) -> Finding:
    """Check that the weights are bit for bit what was saved."""
    recorded = read_digests(folder)
    files = sorted(file.name for file in folder.glob("*.safetensors")) if folder.is_dir() else []
    unknown = [name for name in files if name not in recorded]
    if not files or len(unknown) == len(files):
        message = f"no {DIGESTS} next to the weights" if files else "downloads are checked by the Hub"
        return Finding("weights' digest", Status.SKIPPED, message)
    changed = changed_weights(folder)
    good = f"{len(files) - len(unknown)} files are unchanged since they were saved"
    return Finding.judge(
        "weights' digest",
        not changed,
        good
        if not changed
        else f"{', '.join(changed)}: changed since it was saved: the SHA-256 differs from {DIGESTS}",
        f"copy the checkpoint again; if the weights were changed on purpose, delete {folder / DIGESTS}",
    )


def check_weights(model: NICForConditionalGeneration) -> Finding:
    """Check that the weights are finite."""
    tensors = {name: tensor for name, tensor in model.state_dict().items() if tensor.is_floating_point()}
    bad = [name for name, tensor in tensors.items() if not tensor.isfinite().all()]
    number = sum(parameter.numel() for parameter in model.parameters())
    return Finding.judge(
        "weights",
        not bad,
        f"{len(bad)} tensors contain NaN or Inf: {', '.join(bad[:5])}" if bad else f"{number:,} parameters",
        "use an earlier checkpoint, and train it with a lower learning rate",
    )


def check_preprocessing(model: Any, processor: Any, backbone: str | PathLike[str] | None) -> Finding:
    """Check that photos are preprocessed as for the training of the backbone."""
    own = processor.image_processor
    wrong = _without_sense(own.to_dict())
    wrong += _other_size(model, processor)
    if backbone is not None:
        try:
            wrong += _differences(own.to_dict(), load_image_processor(backbone).to_dict())
        except (OSError, ValueError) as error:
            return Finding(
                "preprocessing", Status.SKIPPED, f"the image processor of the backbone cannot be loaded: {error}"
            )
    if wrong:
        return Finding(
            "preprocessing",
            Status.PROBLEM,
            "; ".join(wrong),
            "copy processor_config.json from the training run; if it was trained this way, train again with the "
            "image processor of the backbone (load_image_processor)",
        )
    settings = own.to_dict()
    message = (
        f"size {_plain(settings.get('size'))}, mean {settings.get('image_mean')}, std {settings.get('image_std')}"
    )
    return Finding("preprocessing", Status.OK, message + ("" if backbone is None else ", as for the backbone"))


def _without_sense(settings: dict[str, Any]) -> list[str]:
    """List settings that no backbone was trained with."""
    wrong = []
    levels = 1.0 if settings.get("do_rescale") else 255.0
    if levels == 1.0 and not 1 / 512 < (settings.get("rescale_factor") or 1 / 255) < 1 / 64:
        wrong.append(f"rescale_factor is {settings['rescale_factor']}, but should be 1/255 or 1/127.5")
    if settings.get("do_normalize"):
        mean, std = settings.get("image_mean"), settings.get("image_std")
        values = [*(mean or []), *(std or [])]
        if len(values) != 6:
            wrong.append(f"image_mean {mean} and image_std {std} are not three numbers each")
        elif levels == 1.0 and max(values) > 4:
            wrong.append(f"image_mean {mean} and image_std {std} are for pixel values up to 255, but do_rescale is on")
        elif levels == 255.0 and max(values) <= 4:
            wrong.append(f"image_mean {mean} and image_std {std} are for pixel values up to 1, but do_rescale is off")
        elif min(std or [0]) <= 0:
            wrong.append(f"image_std {std} is not positive")
    elif levels == 255.0:
        wrong.append("neither do_rescale nor do_normalize is on: the backbone gets pixel values up to 255")
    return wrong


def _other_size(model: Any, processor: Any) -> list[str]:
    from PIL import Image

    expected = getattr(model.config.backbone_config, "image_size", None)
    if expected is None:
        return []
    expected = (expected, expected) if isinstance(expected, int) else tuple(expected)[-2:]
    try:
        pixels = processor(images=Image.new("RGB", (640, 480)), return_tensors="pt")["pixel_values"]
    except (ValueError, TypeError) as error:
        return [f"a photo cannot be preprocessed: {error}"]
    found = tuple(pixels.shape[-2:])
    return [] if found == expected else [f"photos are resized to {found} pixels, but the backbone needs {expected}"]


def _differences(own: dict[str, Any], original: dict[str, Any]) -> list[str]:
    names = ["do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std", "do_flip_channel_order"]
    return [
        f"{name} is {_plain(own.get(name))}, but {_plain(original.get(name))} for the backbone"
        for name in names
        if (_plain(own.get(name)) or None) != (_plain(original.get(name)) or None)
    ]


def _plain(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    if isinstance(value, float):
        return round(value, 6)
    return {key: each for key, each in dict(value).items() if each} if hasattr(value, "items") else value


def check_backbone_drift(model: NICForConditionalGeneration, backbone: str | PathLike[str] | None) -> Finding:
    """Check that a frozen backbone and its BatchNorm statistics have not changed."""
    if not model.config.freeze_backbone:
        return Finding("backbone drift", Status.OK, "the backbone was trained, so it differs from the original")
    if backbone is None:
        return Finding("backbone drift", Status.SKIPPED, "set --backbone to compare with the original")
    try:
        loaded, use_pooler = load_backbone(backbone, model.config.use_backbone_pooler, {})
        original, _ = vision_part(loaded, use_pooler)
    except (OSError, ValueError) as error:
        return Finding("backbone drift", Status.SKIPPED, f"{backbone} cannot be loaded: {error}")
    own = model.encoder.backbone
    before = original.state_dict()
    shapes = {name: tensor.shape for name, tensor in before.items()}
    unknown = [name for name, tensor in own.state_dict().items() if shapes.get(name) != tensor.shape]
    if unknown:
        return Finding(
            "backbone drift",
            Status.PROBLEM,
            f"{backbone} is another model: {len(unknown)} tensors are missing or different, such as {unknown[0]}",
            "specify the backbone that the captioner was built on",
        )
    statistics = set(_batch_norm_statistics(own))
    moved = {
        name: change
        for name, tensor in own.state_dict().items()
        if tensor.is_floating_point() and (change := _change(tensor, before[name])) > _ROUNDING
    }
    buffers = {name: change for name, change in moved.items() if name in statistics}
    weights = moved.keys() - buffers.keys()
    if weights:
        return Finding(
            "backbone drift",
            Status.PROBLEM,
            f"the config says the backbone is frozen, but {len(weights)} weights differ from {backbone}, such as "
            f"{min(weights)}",
            "specify the backbone it was built on; if this is the one, set freeze_backbone to false in config.json",
        )
    if buffers:
        worst = max(buffers, key=buffers.__getitem__)
        return Finding(
            "backbone drift",
            Status.PROBLEM,
            f"the backbone is frozen, but {len(buffers)} of {len(statistics)} BatchNorm statistics changed (most: "
            f"{worst}, by {buffers[worst]:.0%})",
            "BatchNorm was in training mode: load the backbone again and retrain the LSTM with nic train or "
            "CaptioningTrainer, which keep a frozen backbone in eval mode; cached features do not match either",
        )
    return Finding(
        "backbone drift", Status.OK, f"weights and {len(statistics)} statistics are the same as in {backbone}"
    )


def _batch_norm_statistics(model: nn.Module) -> Iterator[str]:
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None:
            yield from (f"{name}.running_mean", f"{name}.running_var")


def _change(tensor: torch.Tensor, before: torch.Tensor) -> float:
    tensor, before = tensor.detach().double(), before.detach().double()
    return float((tensor - before).norm() / before.norm().clamp_min(1e-6))
