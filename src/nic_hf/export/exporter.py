"""Export a PyTorch checkpoint to the folder of an ONNX captioner, verified against PyTorch."""

import copy
import json
import shutil
import tempfile
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import onnxruntime
import onnxscript  # noqa: F401 - torch needs it to write ONNX
import torch
import transformers

from .._version import __version__
from ..digests import weights_digest
from ..lookup import CARD_FILE, card_of
from ..model.captioner import NICForConditionalGeneration
from ..model.checkpoint import staged_save
from ..model.encoder import OptimizedEncoder
from ..model.processor import NICProcessor, check_vocabulary
from ..progress_bar import progress_bar
from ..writing import write_text
from .generation_settings import resolve_settings
from .graphs import OPSET, export_graphs
from .onnx_captioner import NICOnnxCaptioner
from .onnx_folder import (
    CONFIG,
    FLOAT32,
    GENERATION_CONFIG,
    PROCESSOR,
    TOKENIZER,
    TOKENIZER_CONFIG,
    check_output_folder,
    read_json,
    write_manifest,
)
from .quantization import quantize_onnx
from .verification import check_against_pytorch, check_pixels, check_words

# References to code, and the path that the checkpoint was loaded from, are not exported.
_LEFT_OUT = ("auto_map", "custom_pipelines", "_name_or_path")


def export_onnx(
    checkpoint: str | PathLike | NICForConditionalGeneration,
    out_dir: str | PathLike,
    *,
    processor: NICProcessor | None = None,
    int8: bool = False,
    calibration_photos: Sequence[Any] | None = None,
    progress: bool = False,
) -> NICOnnxCaptioner:
    """Export a captioner to ONNX files that run without torch and Transformers.

    The folder contains three graphs (see [`nic_hf.export.graphs`]), `config.json`, `generation_config.json`, the files
    of the processor, the card, and `nic_onnx.json` with digests of all other files. Before the folder is put in place,
    features and logits are compared with PyTorch's (to 1e-4), and pixels with the image processor's (exactly).

    Args:
        checkpoint: a folder, a Hub id, or a model.
        out_dir: output folder. An earlier export in it is replaced.
        processor: the processor, if `checkpoint` is a model.
        int8: store weights as 8-bit integers, in about a quarter of the size.
        calibration_photos: some hundred photos of the training split, to determine fixed ranges of activations (static
            quantization). Without them, ranges are computed for each batch (dynamic quantization), so that a caption
            may depend on the other photos of its batch.
        progress: show a progress bar of the steps.

    Returns:
        The exported captioner.

    Raises:
        OSError: if the checkpoint does not exist, or `out_dir` is a file or cannot be written.
        ValueError: if the captioner cannot be exported, the export computes different values, or `out_dir` contains
            files of these names that are not of an export.
        ImportError: if onnx, onnxscript or onnxruntime is not installed.
    """
    if calibration_photos is not None and not int8:
        raise ValueError("`calibration_photos` need int8=True")
    check_output_folder(Path(out_dir))
    with progress_bar(total=3 + int8, desc="loading", hidden=not progress, unit="step", leave=False) as bar:
        model, processor = _load(checkpoint, processor)
        card = card_of(checkpoint) if isinstance(checkpoint, str | PathLike) else None
        facts = _facts(model, processor)
        with tempfile.TemporaryDirectory() as temporary:
            with staged_save(temporary if int8 else out_dir) as folder:
                _next(bar, "writing graphs")
                _write_settings(model, processor, folder)
                if card is not None:
                    shutil.copyfile(card, folder / CARD_FILE)
                export_graphs(model, torch.zeros(2, *facts["image_shape"]), folder)
                write_manifest(folder, facts)
                _next(bar, "comparing with PyTorch")
                captioner = NICOnnxCaptioner(folder)
                check_against_pytorch(captioner, model)
                check_words(captioner, processor.tokenizer)
            if int8:
                _next(bar, "quantizing to 8 bits")
                captioner = quantize_onnx(temporary, out_dir, calibration_photos)
            else:
                captioner = NICOnnxCaptioner(out_dir)
    if card is None:
        (Path(out_dir) / CARD_FILE).unlink(missing_ok=True)  # of an earlier export
    return captioner


def _next(bar: Any, step: str) -> None:
    bar.update()
    bar.set_description(step)


def calibration_photos(data: Any, split: str = "train", number: int = 200) -> list[Any]:
    """Select photos for static quantization, evenly spaced over a split.

    Args:
        data: captioned photos in any form of [`nic_hf.data.load_captions`].
        split: split to take photos from, other than the one to evaluate on.
        number: maximum number of photos.

    Raises:
        nic_hf.data.CaptionDataError: if the data cannot be read.
    """
    from ..data import load_captions

    photos = load_captions(data, split)
    number = min(number, len(photos))
    return [photos[position * len(photos) // number]["image"] for position in range(number)]


def _facts(model: NICForConditionalGeneration, processor: NICProcessor) -> dict[str, Any]:
    return {
        "precision": FLOAT32,
        "opset": OPSET,
        "image_shape": list(check_pixels(processor.image_processor)),
        "weights_digest": weights_digest(model),
        "versions": {
            "nic_hf": __version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "onnxruntime": onnxruntime.__version__,
        },
    }


def _load(
    checkpoint: str | PathLike | NICForConditionalGeneration, processor: NICProcessor | None
) -> tuple[NICForConditionalGeneration, NICProcessor]:
    """A copy of the model in float32 and eval mode on the CPU, and the processor."""
    model: Any = checkpoint
    if isinstance(checkpoint, str | PathLike):
        model = NICForConditionalGeneration.from_pretrained(checkpoint)
        processor = NICProcessor.from_pretrained(checkpoint) if processor is None else processor
    elif not isinstance(checkpoint, NICForConditionalGeneration):
        raise ValueError(
            f"only a NICForConditionalGeneration or its checkpoint can be exported, got {type(checkpoint).__name__}"
        )
    elif processor is None:
        raise ValueError("give the model's `processor` too: an ONNX captioner preprocesses photos and decodes words")
    if isinstance(model.encoder, OptimizedEncoder):
        raise ValueError("a captioner that was optimized for inference cannot be exported: load it again")
    check_vocabulary(processor.tokenizer, model.config.to_dict(), "the processor")
    resolve_settings(model.generation_config.to_diff_dict())
    return copy.deepcopy(model).to("cpu", torch.float32).eval(), processor


def _write_settings(model: NICForConditionalGeneration, processor: NICProcessor, folder: Path) -> None:
    """Write configurations, the settings of the image processor, and the tokenizer."""
    config = {name: value for name, value in model.config.to_dict().items() if name not in _LEFT_OUT}
    config["backbone_config"].pop("_name_or_path", None)  # path on the machine that trained it
    _write_json(folder / CONFIG, config)
    _write_json(folder / GENERATION_CONFIG, model.generation_config.to_diff_dict())
    image_processor = processor.image_processor.to_dict()
    image_processor = {name: value for name, value in image_processor.items() if name not in _LEFT_OUT}
    _write_json(folder / PROCESSOR, {"image_processor": image_processor, "processor_class": "NICProcessor"})
    # Its own save() answers a full disk by a bare Exception.
    (folder / TOKENIZER).write_text(processor.tokenizer.backend_tokenizer.to_str(pretty=True), encoding="utf-8")
    with tempfile.TemporaryDirectory() as temporary:
        processor.tokenizer.save_pretrained(temporary)
        settings = read_json(Path(temporary) / TOKENIZER_CONFIG)
    _write_json(folder / TOKENIZER_CONFIG, {name: value for name, value in settings.items() if name not in _LEFT_OUT})


def _write_json(file: Path, content: dict[str, Any]) -> None:
    write_text(file, json.dumps(content, indent=2) + "\n")
