"""Quantize graphs to 8 bits: weights and word embeddings are integers with one scale per output channel.

There are two ways to find the ranges of activations:

- *static*: from calibration photos. Convolutions (except the first ones) and matrix products are computed in integers.
- *dynamic*: from each batch. Matrix products and the LSTM are computed in integers. Dynamic convolutions would have a
  single scale for all output channels, which ruins MobileNetV2's features (CIDEr-D on Flickr8k's dev split drops from
  43 to 6), so their weights are stored in 8 bits and computed in float32.
"""

import shutil
import tempfile
from collections.abc import Iterable, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper
from onnxruntime import quantization
from onnxruntime.quantization.shape_inference import quant_pre_process
from PIL import Image

from ..images import load_photo
from ..model.checkpoint import staged_save
from ..quiet_libraries import errors_only
from .onnx_captioner import NICOnnxCaptioner
from .onnx_folder import (
    DECODER_STEP,
    ENCODER,
    FIRST_STEP,
    FLOAT32,
    GRAPHS,
    INT8_DYNAMIC,
    INT8_STATIC,
    check_output_folder,
    files_to_copy,
    write_manifest,
)
from .verification import trial_photos, word_agreement

# CPUs with 8-bit dot products (VNNI) multiply signed weights by unsigned activations.
_TYPES = {"activation_type": quantization.QuantType.QUInt8, "weight_type": quantization.QuantType.QInt8}
_WEIGHTED = ["MatMul", "Gemm", "Gather"]
# Operators that pool the outputs of the last layer, or of all layers, to one feature.
_POOLING = {
    "AveragePool",
    "Concat",
    "Flatten",
    "GlobalAveragePool",
    "ReduceMean",
    "Reshape",
    "Squeeze",
    "Transpose",
    "Unsqueeze",
}


def quantize_onnx(
    source: str | PathLike, out_dir: str | PathLike, calibration_photos: Sequence[Any] | None = None
) -> NICOnnxCaptioner:
    """Quantize a captioner to 8 bits.

    Args:
        source: folder of a float32 captioner.
        out_dir: output folder. An earlier export in it is replaced.
        calibration_photos: photos for static quantization; without them it is dynamic.

    Returns:
        The quantized captioner. `next_words_as_float32` in its manifest is the share of next words that are the same
        as in float32, on the calibration photos or, without them, on random images.

    Raises:
        OSError: if the captioner does not exist, or `out_dir` cannot be written.
        ValueError: if `source` is not in float32, `calibration_photos` is empty, the result disagrees with `source`
            on most words, or `out_dir` contains files of these names that are not of an export.
    """
    check_output_folder(Path(out_dir))
    captioner = NICOnnxCaptioner(source)
    facts = {name: value for name, value in captioner.manifest.items() if name not in ("format", "files")}
    if facts["precision"] != FLOAT32:
        raise ValueError(f"{source} is in {facts['precision']}; only float32 captioners can be quantized")
    with staged_save(out_dir) as folder:
        for name in files_to_copy(captioner.folder):
            shutil.copyfile(captioner.folder / name, folder / name)
        if calibration_photos is None:
            photos = trial_photos()
            _quantize_dynamic(captioner.folder, folder)
            facts["precision"] = INT8_DYNAMIC
        else:
            photos = [load_photo(photo) for photo in calibration_photos]
            _quantize_static(captioner, photos, folder)
            facts.update(precision=INT8_STATIC, calibration_photos=len(photos))
        write_manifest(folder, facts)
        facts["next_words_as_float32"] = round(word_agreement(captioner, NICOnnxCaptioner(folder), photos), 4)
        write_manifest(folder, facts)
    return NICOnnxCaptioner(out_dir)


def _quantize_dynamic(source: Path, folder: Path) -> None:
    with errors_only():  # the library recommends preprocessing that these graphs do not need
        for name in GRAPHS:
            quantization.quantize_dynamic(
                source / name,
                folder / name,
                op_types_to_quantize=_WEIGHTED,
                per_channel=True,
                weight_type=_TYPES["weight_type"],
            )
    graph = onnx.load(folder / ENCODER)
    _store_convolutions(graph)
    onnx.save(graph, folder / ENCODER)


def _quantize_static(captioner: NICOnnxCaptioner, photos: Sequence[Image.Image], folder: Path) -> None:
    if len(photos) == 0:
        raise ValueError("static quantization needs photos: `calibration_photos` is empty")
    first_inputs, word_inputs = _lstm_inputs(captioner, photos)
    with errors_only(), tempfile.TemporaryDirectory() as temporary:
        prepared = Path(temporary) / ENCODER
        quant_pre_process(captioner.folder / ENCODER, prepared, skip_symbolic_shape=True)
        pixels = ({"pixel_values": captioner.preprocess([photo])} for photo in photos)
        graph = onnx.load(prepared)
        quantization.quantize_static(
            prepared,
            folder / ENCODER,
            _Reader(pixels),
            nodes_to_exclude=_first_convolutions(graph) + _pooling_nodes(graph),
            per_channel=True,
            # Average the extremes of the photos: the overall extremes would leave few levels for other values.
            extra_options={"CalibMovingAverage": True},
            **_TYPES,
        )
        for name, inputs in ((FIRST_STEP, first_inputs), (DECODER_STEP, word_inputs)):
            quantization.quantize_static(
                captioner.folder / name,
                folder / name,
                _Reader(inputs),
                op_types_to_quantize=_WEIGHTED,
                per_channel=True,
                # 8-bit logits would have 256 levels for all words; gates need their precision too.
                extra_options={"OpTypesToExcludeOutputQuantization": _WEIGHTED},
                **_TYPES,
            )


def _first_convolutions(model: onnx.ModelProto) -> list[str]:
    """Names of the first eighth of the convolutions, which stay in float32.

    They have few weights, are as fast in float32, and their rounding errors affect all later layers: quantizing them
    raises the error of MobileNetV2's features from 6 % to 8 % of their standard deviation.
    """
    names = [node.name for node in model.graph.node if node.op_type == "Conv"]
    return names[: len(names) // 8]


def _pooling_nodes(model: onnx.ModelProto) -> list[str]:
    """Names of the nodes between the layers of the backbone and the features, which stay in float32.

    In 8 bits, the means of all layers would share one scale.
    """
    made_by = {name: node for node in model.graph.node for name in node.output}
    found: set[str] = set()
    waiting = [output.name for output in model.graph.output]
    while waiting:
        node = made_by.get(waiting.pop())
        if node is not None and node.op_type in _POOLING and node.name not in found:
            found.add(node.name)
            waiting += node.input
    return sorted(found)


class _Reader(quantization.CalibrationDataReader):
    def __init__(self, inputs: Iterable[dict[str, np.ndarray]]) -> None:
        self.inputs = iter(inputs)

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self.inputs, None)


def _lstm_inputs(
    captioner: NICOnnxCaptioner, photos: Sequence[Image.Image]
) -> tuple[list[dict[str, np.ndarray]], list[dict[str, np.ndarray]]]:
    """Inputs of the LSTM's two graphs while captioning the photos: at the first step, and at each word."""
    first, words = [], []
    for start in range(0, len(photos), 32):
        features = captioner.get_image_features(captioner.preprocess(photos[start : start + 32]))
        first.append({"image_features": features})
        captions = captioner.generate(encoder_outputs=features, num_beams=1, num_return_sequences=1, do_sample=False)
        reader = captioner.reader(features)
        for position in range(captions.shape[1] - 1):
            ids = np.ascontiguousarray(captions[:, position : position + 1])
            words.append({"input_ids": ids, **reader.state, **reader.regions})
            reader.read(ids)
    return first, words


def _store_convolutions(model: onnx.ModelProto) -> None:
    """Store the weights of convolutions as integers with one scale per output channel, converted when loaded."""
    graph = model.graph
    weights = {tensor.name: tensor for tensor in graph.initializer}
    names = {node.input[1] for node in graph.node if node.op_type == "Conv" and node.input[1] in weights}
    for name in sorted(names):
        values = numpy_helper.to_array(weights[name])
        scales = np.abs(values).reshape(len(values), -1).max(axis=1) / 127
        scales = np.where(scales == 0, 1, scales).astype(np.float32)
        integers = np.rint(values / scales.reshape(-1, *[1] * (values.ndim - 1))).clip(-127, 127).astype(np.int8)
        graph.initializer.remove(weights[name])
        graph.initializer.extend(
            [numpy_helper.from_array(integers, f"{name}_int8"), numpy_helper.from_array(scales, f"{name}_scale")]
        )
        node = helper.make_node("DequantizeLinear", [f"{name}_int8", f"{name}_scale"], [name], axis=0)
        graph.node.insert(0, node)
