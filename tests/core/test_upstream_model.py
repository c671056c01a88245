"""Transformers' own tests of a model, run on a small captioner with and without attention."""

import unittest
from typing import Any, ClassVar

import torch
from tiny import IMAGE_SIZE, TOKENIZER_SIZE, tiny_config, tiny_pixels
from transformers import ViTConfig
from upstream import import_suite

from nic_hf import NICConfig, NICForConditionalGeneration

suite = import_suite("test_modeling_common")


class CaptionerTester:
    """What the suite asks of a model: a small configuration, and inputs."""

    batch_size, seq_length = 3, 5
    num_hidden_layers, hidden_size, is_training = 2, 12, True
    encoder_seq_length, decoder_seq_length = 17, 5
    has_input_ids = False

    def __init__(self, **changes: Any) -> None:
        self.changes = changes

    def get_config(self) -> NICConfig:
        backbone = ViTConfig(
            image_size=IMAGE_SIZE,
            patch_size=8,
            hidden_size=12,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=16,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )
        sizes = {"num_hidden_layers": self.num_hidden_layers, "hidden_size": self.hidden_size, "embedding_size": 12}
        return tiny_config(backbone_config=backbone, freeze_backbone=False, **sizes, **self.changes)

    def prepare_config_and_inputs_for_common(self) -> tuple[NICConfig, dict[str, Any]]:
        words = torch.randint(4, TOKENIZER_SIZE, (self.batch_size, self.seq_length))
        inputs = {"pixel_values": tiny_pixels(self.batch_size), "decoder_input_ids": words}
        return self.get_config(), {**inputs, "input_ids": words.clone()} if self.has_input_ids else inputs


class CaptionerModelTest(suite.ModelTesterMixin, unittest.TestCase):
    """The paper's captioner, on a vision transformer."""

    all_model_classes = (NICForConditionalGeneration,)
    is_encoder_decoder = True
    has_attentions = False  # the suite means those of all layers
    changes: ClassVar[dict[str, Any]] = {}

    def setUp(self) -> None:
        self.model_tester = CaptionerTester(**self.changes)

    def _prepare_for_class(self, inputs_dict: Any, model_class: Any, return_labels: bool = False) -> Any:
        inputs = super()._prepare_for_class(inputs_dict, model_class, return_labels)
        inputs.pop("input_ids", None)
        if return_labels:
            inputs["labels"] = inputs["decoder_input_ids"].clone()
        return inputs

    def test_resize_tokens_embeddings(self) -> None:
        self.model_tester.has_input_ids = True  # which the suite cuts to the words that are left
        super().test_resize_tokens_embeddings()

    def test_resize_embeddings_untied(self) -> None:
        self.model_tester.has_input_ids = True
        super().test_resize_embeddings_untied()

    def test_hidden_states_output(self) -> None:
        """The suite's but for the LSTM's, which are its outputs: the fused LSTM hides what its lower layers say."""
        config, inputs = self.model_tester.prepare_config_and_inputs_for_common()
        for given in ({"output_hidden_states": True}, {}):
            outputs = NICForConditionalGeneration(config).eval()(**inputs, **given)
            shapes = [tuple(states.shape) for states in outputs.encoder_hidden_states]
            self.assertEqual(shapes, [(3, self.model_tester.encoder_seq_length, 12)] * 3)
            self.assertEqual([tuple(states.shape) for states in outputs.decoder_hidden_states], [(3, 5, 12)])
            config.output_hidden_states = True


# What the suite asks and a captioner rightly lacks.
EXCLUDED = {
    "test_generation_tester_mixin_inheritance": "the suite of `generate()` is run by test_upstream_generation.py",
    "test_model_base_model_prefix": "encoder and decoder stand side by side: no part is a captioner without its head",
    "test_model_weights_reload_no_missing_tied_weights": "loads a file without weights, which is refused",
    "test_get_image_features_hidden_states": "`get_image_features` gives the tensor that feature caches hold",
    "test_get_image_features_output_0": "`get_image_features` gives the tensor that feature caches hold",
    "test_get_image_features_output_1": "`get_image_features` gives the tensor that feature caches hold",
    "test_get_image_features_output_2": "`get_image_features` gives the tensor that feature caches hold",
}
for name, reason in EXCLUDED.items():
    if hasattr(CaptionerModelTest, name):  # not each version has each
        setattr(CaptionerModelTest, name, unittest.skip(f"excluded: {reason}")(getattr(CaptionerModelTest, name)))


class AttentiveCaptionerModelTest(CaptionerModelTest):
    """The captioner that looks at regions."""

    changes: ClassVar[dict[str, Any]] = {"attention": "soft"}


class CaptionerConfigTest(unittest.TestCase):
    """The suite's tests of a configuration."""

    def test_config(self) -> None:
        configurations = import_suite("test_configuration_common")
        configurations.ConfigTester(self, config_class=NICConfig, has_text_modality=False).run_common_tests()
