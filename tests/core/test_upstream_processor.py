"""Transformers' own tests of processors, of its source distribution, on a processor of this package."""

import unittest
from typing import Any

import pytest
from tiny import tiny_processor
from upstream import import_suite

from nic_hf import NICProcessor

suite = import_suite("test_processing_common")

# Tests of the suite that do not hold for a captioner's processor, and why.
EXCLUDED = {
    "test_processor_text_has_no_visual": "it gives a text without a photo, and a captioner describes one photo",
    "test_call_arguments_not_in_processor_kwargs": (
        "captions to learn are `text_target`, as tokenizers call them; so it is among their keywords too"
    ),
}


class TestOfTransformers(suite.ProcessorTesterMixin, unittest.TestCase):  # type: ignore[misc, name-defined]
    processor_class = NICProcessor
    text_input_name = "decoder_input_ids"

    @classmethod
    def _setup_image_processor(cls) -> Any:
        return tiny_processor().image_processor

    @classmethod
    def _setup_tokenizer(cls) -> Any:
        return tiny_processor().tokenizer


for name, reason in EXCLUDED.items():
    if hasattr(TestOfTransformers, name):  # not in each version of Transformers
        setattr(TestOfTransformers, name, unittest.skip(reason)(lambda self: None))


@pytest.mark.parametrize("name", EXCLUDED)
def test_what_is_excluded_fails(name: str) -> None:
    """An exclusion that is no longer needed is to be taken off the list."""
    if not hasattr(suite.ProcessorTesterMixin, name):
        pytest.skip("this version of Transformers has no such test")

    class Alone(TestOfTransformers):
        pass

    setattr(Alone, name, getattr(suite.ProcessorTesterMixin, name))
    result = unittest.TestResult()
    unittest.TestSuite([Alone(name)]).run(result)
    assert result.failures or result.errors or result.skipped  # older versions skip one of them by themselves
