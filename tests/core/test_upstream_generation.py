"""Transformers' own tests of `generate()`, run on a small captioner.

No source distribution holds them: `NIC_HF_GENERATION_SUITE` names the file `tests/generation/test_utils.py` of a copy
of Transformers' repository, and without it they are skipped.
"""

import importlib.util
import os
import sys
import unittest
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from test_upstream_model import CaptionerTester
from upstream import PACKAGE, import_suite

from nic_hf import NICConfig, NICForConditionalGeneration

FILE = os.environ.get("NIC_HF_GENERATION_SUITE")
if not FILE:
    pytest.skip("NIC_HF_GENERATION_SUITE is unset: no source distribution holds this suite", allow_module_level=True)


def load_suite(file: str) -> Any:
    """The file as a module of the suites' package, where its imports find the others."""
    import_suite("test_modeling_common")
    name = f"{PACKAGE}.generation.suite"
    spec = importlib.util.spec_from_loader(name, loader=None)
    assert spec is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    # The repository's development version has a kind of cache that releases do not know.
    source = Path(file).read_text("utf-8").replace('"dynamic_full"', '"dynamic"')
    exec(compile(source, file, "exec"), module.__dict__)
    return module


suite = load_suite(FILE)


class OneBeam(NICForConditionalGeneration):
    """A captioner whose settings say greedy decoding, as those of most models do."""

    def __init__(self, config: NICConfig) -> None:
        super().__init__(config)
        self.generation_config.num_beams = 1


class CaptionerGenerationTest(suite.GenerationTesterMixin, unittest.TestCase):
    """The paper's captioner."""

    all_model_classes = (NICForConditionalGeneration,)
    all_generative_model_classes = (NICForConditionalGeneration,)
    input_name = "pixel_values"
    is_encoder_decoder = True
    has_attentions = False
    changes: ClassVar[dict[str, Any]] = {}

    def setUp(self) -> None:
        self.model_tester = CaptionerTester(**self.changes)

    def _prepare_for_class(self, inputs_dict: Any, model_class: Any, return_labels: bool = False) -> Any:
        return dict(inputs_dict)

    # What the suite knows of caches is keys and values.
    def _check_past_key_values_for_generate(
        self, batch_size: int, past_key_values: Any, seq_length: int, config: Any
    ) -> None:
        self.assertEqual(past_key_values.get_seq_length(), seq_length)
        shape = (config.num_hidden_layers, batch_size, config.hidden_size)
        self.assertEqual(past_key_values.hidden_state.shape, shape)

    def _check_caches_are_equal(self, cache: Any, other: Any) -> None:
        self.assertEqual(cache.get_seq_length(), other.get_seq_length())
        torch.testing.assert_close(cache.hidden_state, other.hidden_state)
        torch.testing.assert_close(cache.cell_state, other.cell_state)

    def test_generate_continue_from_past_key_values(self) -> None:
        self.all_generative_model_classes = (OneBeam,)  # the suite goes on from the state of one beam
        super().test_generate_continue_from_past_key_values()

    @unittest.skip("a caption needs an image: `generate()` without one is an error")
    def test_generate_without_input_ids(self) -> None: ...

    @unittest.skip("`prepare_inputs_for_generation` hands on what `forward` reads, and nothing else")
    def test_prepare_inputs_for_generation_kwargs_forwards(self) -> None: ...


class AttentiveCaptionerGenerationTest(CaptionerGenerationTest):
    """The captioner that looks at regions."""

    changes: ClassVar[dict[str, Any]] = {"attention": "soft"}
