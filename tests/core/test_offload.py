"""Weights that are on a disk, or in another memory, until a module runs: the captions stay the same."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import cpu_offload, disk_offload, dispatch_model
from tiny import save_tiny_checkpoint, tiny_model, tiny_pixels

from nic_hf import NICForConditionalGeneration

CPU = torch.device("cpu")
PARTS = {"encoder": "cpu", "image_projection": "disk", "decoder": "disk", "lm_head": "disk"}
CAPTIONERS: list[dict[str, Any]] = [
    {},
    {"num_hidden_layers": 2},
    {"attention": "soft"},
    {"attention": "soft", "num_hidden_layers": 2},
    {"tie_word_embeddings": True, "embedding_size": 9},
]


def loaded_in_parts(changes: dict[str, Any], folder: Path) -> NICForConditionalGeneration:
    save_tiny_checkpoint(folder / "checkpoint", **changes)
    return NICForConditionalGeneration.from_pretrained(
        folder / "checkpoint", device_map=PARTS, offload_folder=str(folder / "offload")
    )


WAYS: dict[str, Callable[[dict[str, Any], Path], Any]] = {
    "cpu_offload": lambda changes, folder: cpu_offload(tiny_model(**changes), execution_device=CPU),
    "disk_offload": lambda changes, folder: disk_offload(tiny_model(**changes), str(folder), execution_device=CPU),
    "dispatch_model": lambda changes, folder: dispatch_model(
        tiny_model(**changes), PARTS, main_device=CPU, offload_dir=str(folder)
    ),
    "device_map": loaded_in_parts,
}


@pytest.mark.parametrize("changes", CAPTIONERS, ids=str)
@pytest.mark.parametrize("way", WAYS)
def test_captions_do_not_depend_on_where_the_weights_wait(changes: dict[str, Any], way: str, tmp_path: Path) -> None:
    model, plain = WAYS[way](changes, tmp_path), tiny_model(**changes)
    assert any(parameter.device.type == "meta" for parameter in model.parameters())
    for settings in ({}, {"num_beams": 1}, {"num_beams": 1, "cache_implementation": "static"}):
        expected = plain.generate(pixel_values=tiny_pixels(3), **settings)
        assert torch.equal(model.generate(pixel_values=tiny_pixels(3), **settings), expected)
