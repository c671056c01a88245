"""What a captioner is, and the terms of its weights: what `nic caption --verbose` prints."""

import re
from collections.abc import Mapping
from typing import Any

from huggingface_hub import metadata_load

from ..lookup import card_of
from .captioners import ArrayCaptioner, TorchCaptioner

_TERMS = re.compile(r"^\*\*Terms of the weights\*\*: *(.+)$", re.MULTILINE)


def about_captioner(captioner: TorchCaptioner | ArrayCaptioner, generation: Mapping[str, Any]) -> dict[str, str]:
    """Describe a captioner that is loaded: its parts and size, device, search, and the terms of its weights.

    Args:
        captioner: from [`load_captioner`].
        generation: arguments of `generate()` that differ from the captioner's own.
    """
    if isinstance(captioner, TorchCaptioner):
        model = captioner.model
        config, settings = model.config.to_dict(), model.generation_config.to_dict()
        size = f"{sum(weights.numel() for weights in model.parameters()) / 1e6:.1f} million parameters"
    else:
        model = captioner.captioner
        config, settings = model.config, model.generation_config
        size = f"ONNX, {model.manifest['precision']}"
    settings = {**settings, **generation}
    beams = settings.get("num_beams") or 1
    search = "sampling" if settings.get("do_sample") else f"beam {beams}" if beams > 1 else "greedy"
    parts = f"{config['backbone_config']['model_type']} + LSTM of {config['hidden_size']}"
    return {
        "captioner": captioner.name,
        "model": f"{parts}, {config['vocab_size']:,} words, {size}",
        "device": str(model.device),
        "captions": f"{search}, at most {settings.get('max_new_tokens')} words",
        "terms of the weights": terms_of_weights(captioner.name),
    }


def terms_of_weights(name_or_path: str) -> str:
    """The terms that the card of a captioner states: in words, or the licence in its metadata."""
    card = card_of(name_or_path)
    if card is None:
        return "not stated; it has no card"
    found = _TERMS.search(card.read_text("utf-8"))
    if found:
        return found[1]
    data = metadata_load(card) or {}
    terms = [str(data[name]) for name in ("license", "license_name", "license_link") if data.get(name)]
    return ", ".join(terms) or "not stated in its card"
