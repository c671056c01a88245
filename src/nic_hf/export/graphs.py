"""Trace the PyTorch model to three ONNX graphs.

| file | inputs | outputs |
|---|---|---|
| `encoder.onnx` | `pixel_values` | `image_features` |
| `first_step.onnx` | `image_features` | `hidden_state`, `cell_state` after the image |
| `decoder_step.onnx` | `input_ids`, `hidden_state`, `cell_state` | `logits`, the new state |

The image is the LSTM's input at t = -1 (equation 7 of Show and Tell), so it has a separate graph; `<bos>` is an
ordinary word. With attention, the first step also outputs `region_features` and `region_keys`, which the decoder step
reads. The numbers of photos and of captions per photo are dynamic, the height and width of photos are fixed.
"""

import copy
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from ..layers_nic import NICAttention, NICRegions
from ..model.captioner import NICForConditionalGeneration
from ..model.encoder import pool_whole_maps, skip_neutral_gates
from ..quiet_libraries import errors_only
from .onnx_folder import DECODER_STEP, ENCODER, FIRST_STEP

OPSET = 18
REGIONS = ("region_features", "region_keys")
STATE = ("hidden_state", "cell_state")


class _Encoder(nn.Module):
    def __init__(self, model: NICForConditionalGeneration) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return self.model.get_image_features(pixel_values)


class _FirstStep(nn.Module):
    def __init__(self, model: NICForConditionalGeneration) -> None:
        super().__init__()
        self.model = model

    def forward(self, image_features: torch.Tensor) -> tuple[torch.Tensor, ...]:
        model, config = self.model, self.model.config
        first_input = model.image_projection(image_features)
        if config.attention is None:
            zeros = first_input.new_zeros(config.num_hidden_layers, first_input.shape[0], config.hidden_size)
            _, state, _ = model.decoder(first_input.unsqueeze(1), (zeros, zeros))
            return state
        attention: NICAttention = model.decoder.attention
        regions = attention.read_regions(first_input)
        _, state, _ = model.decoder(first_input.mean(dim=1, keepdim=True), None, regions)
        return (*state, *regions)


class _DecoderStep(nn.Module):
    def __init__(self, model: NICForConditionalGeneration) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, input_ids: torch.Tensor, hidden_state: torch.Tensor, cell_state: torch.Tensor, *regions: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        decoder, shape = self.model.decoder, input_ids.shape
        inputs = decoder.embed_tokens(input_ids.flatten()).unsqueeze(1)
        state = (hidden_state.flatten(1, 2), cell_state.flatten(1, 2))
        outputs, state, *_ = decoder(inputs, state, NICRegions(*regions)) if regions else decoder(inputs, state)
        logits = self.model.lm_head(outputs[:, 0])
        return (logits.unflatten(0, shape), *(part.unflatten(1, shape) for part in state))


def export_graphs(model: NICForConditionalGeneration, pixel_values: torch.Tensor, folder: Path) -> None:
    """Write the three graphs.

    Args:
        model: in float32, on the CPU, in eval mode.
        pixel_values: at least two photos with the height and width of the exported graphs.
        folder: output folder.

    Raises:
        ValueError: if the backbone cannot be traced, or its weights do not fit into one file (2 GB).
    """
    photos, captions = torch.export.Dim("batch_size"), torch.export.Dim("num_captions")
    has_regions = model.config.attention is not None
    with torch.no_grad():
        simpler = copy.deepcopy(model)  # the model itself is what the graphs are compared with
        skip_neutral_gates(simpler.encoder)
        pool_whole_maps(simpler.encoder, max(pixel_values.shape[-2:]))
        encoder, first_step, decoder_step = _Encoder(simpler), _FirstStep(model), _DecoderStep(model)
        features = encoder(pixel_values)
        hidden, cell, *regions = first_step(features)
        hidden, cell = (part.unsqueeze(2).repeat(1, 1, 3, 1) for part in (hidden, cell))
        ids = torch.full((len(pixel_values), 3), model.config.bos_token_id)
        state = {1: photos, 2: captions}
        region_names = REGIONS if has_regions else ()
        _write(encoder, (pixel_values,), [{0: photos}], ["pixel_values"], ["image_features"], folder / ENCODER)
        _write(
            first_step, (features,), [{0: photos}], ["image_features"], [*STATE, *region_names], folder / FIRST_STEP
        )
        _write(
            decoder_step,
            (ids, hidden, cell, *regions),
            [{0: photos, 1: captions}, state, state, *([{0: photos}] * len(regions))],
            ["input_ids", *STATE, *region_names],
            ["logits", *(f"new_{name}" for name in STATE)],
            folder / DECODER_STEP,
        )


def _write(
    module: nn.Module,
    inputs: tuple[torch.Tensor, ...],
    dimensions: Sequence[dict[int, torch.export.Dim]],
    input_names: Sequence[str],
    output_names: Sequence[str],
    file: Path,
) -> None:
    # *regions is a single argument, a tuple.
    shapes = tuple(dimensions) if len(inputs) <= 3 else (*dimensions[:3], tuple(dimensions[3:]))
    try:
        # torch logs about its own internals (torchvision operators that no captioner has, pytree leaves).
        with errors_only("torch.onnx"):
            program = torch.onnx.export(
                module.eval(),
                inputs,
                dynamo=True,
                opset_version=OPSET,
                input_names=input_names,
                output_names=output_names,
                dynamic_shapes=shapes,
                external_data=False,
                verbose=False,
            )
            assert program is not None  # always the case with dynamo
            program.save(file)
    except (ImportError, OSError):  # a missing package or a disk error is not the captioner's fault
        raise
    except Exception as error:
        raise ValueError(f"this captioner cannot be exported to {file.name}: {error}") from error
