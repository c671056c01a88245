"""What `forward` takes and returns, as any model of Transformers does."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import TOKENIZER_SIZE, save_tiny_checkpoint, tiny_features, tiny_labels, tiny_model, tiny_pixels
from transformers import MobileNetV2Config, Trainer, TrainingArguments, ViTConfig

from nic_hf import NICConfig, NICForConditionalGeneration
from nic_hf.decoding import NICEnsemble

VIT = ViTConfig(
    image_size=32, patch_size=16, hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=8
)
SIZES = {"embedding_size": 9, "hidden_size": 9}


def ensemble() -> Any:
    return NICEnsemble([tiny_model(), tiny_model(seed=3)])


@pytest.mark.parametrize("make", [tiny_model, lambda: tiny_model(attention="soft"), ensemble])
def test_a_tuple_is_returned_where_one_is_asked_for(make: Any) -> None:
    model, inputs = make(), {"pixel_values": tiny_pixels(2), "labels": tiny_labels([4, 3])}
    whole = model(**inputs)
    parts = model(**inputs, return_dict=False)
    assert isinstance(parts, tuple)
    assert torch.equal(parts[0], whole.loss)
    assert torch.equal(parts[1], whole.logits)
    model.config.return_dict = False
    assert isinstance(model(**inputs), tuple)
    assert torch.equal(model(**inputs, return_dict=True).logits, whole.logits)
    captions = model.generate(pixel_values=tiny_pixels(2))
    assert torch.equal(captions, make().generate(pixel_values=tiny_pixels(2)))
    assert isinstance(model.get_encoder()(tiny_pixels(2), return_dict=False), tuple)


@pytest.mark.parametrize("attention", [None, "soft"])
@pytest.mark.parametrize("frozen", [True, False])
def test_hidden_states_of_the_backbone_and_the_lstm_are_returned(attention: str | None, frozen: bool) -> None:
    model = tiny_model(backbone_config=VIT, attention=attention, freeze_backbone=frozen)
    inputs = {"pixel_values": tiny_pixels(2), "decoder_input_ids": torch.ones(2, 3, dtype=torch.long)}
    plain = model(**inputs)
    assert plain.encoder_hidden_states is None
    assert plain.decoder_hidden_states is None
    asked = model(**inputs, output_hidden_states=True)
    expected = model.encoder.backbone(tiny_pixels(2), output_hidden_states=True).hidden_states
    assert len(asked.encoder_hidden_states) == 3
    torch.testing.assert_close(asked.encoder_hidden_states, expected)
    assert [states.shape for states in asked.decoder_hidden_states] == [(2, 3, 9)]
    assert torch.equal(asked.encoder_last_hidden_state.flatten(), asked.image_features.flatten())
    model.config.output_hidden_states = True
    assert len(model(**inputs).encoder_hidden_states) == 3


def test_generate_returns_the_hidden_states_of_both() -> None:
    found = tiny_model(backbone_config=VIT).generate(
        pixel_values=tiny_pixels(2), output_hidden_states=True, return_dict_in_generate=True
    )
    assert [states.shape for states in found.encoder_hidden_states] == [(2, 5, 8)] * 3
    assert len(found.decoder_hidden_states) == found.sequences.shape[1] - 1


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("lables", "labels"),
        ("label", "labels"),
        ("pixel_value", "pixel_values"),
        ("decoder_inputs_ids", "decoder_input_ids"),
        ("input_ids", "decoder_input_ids"),
        ("encoder_output", "encoder_outputs"),
        ("past_key_value", "past_key_values"),
        ("output_attention", "output_attentions"),
    ],
)
@pytest.mark.parametrize("make", [tiny_model, ensemble])
def test_a_misspelt_name_is_refused_with_the_right_one(make: Any, given: str, meant: str) -> None:
    inputs = {"pixel_values": tiny_pixels(2), "decoder_input_ids": torch.ones(2, 3, dtype=torch.long)}
    with pytest.raises(TypeError, match=f"'{given}'. Did you mean '{meant}'"):
        make()(**inputs, **{given: torch.ones(2, 3)})


def test_what_the_library_passes_to_every_model_is_taken() -> None:
    model, inputs = tiny_model(), {"pixel_values": tiny_pixels(2), "labels": tiny_labels([4, 3])}
    theirs = {"return_loss": True, "attention_mask": None, "input_ids": None, "position_ids": None, "is_causal": True}
    assert torch.equal(model(**inputs, **theirs).loss, model(**inputs).loss)


def test_labels_that_trainer_takes_away_are_asked_for_in_the_error(tmp_path: Path) -> None:
    samples = [{"pixel_values": tiny_pixels(1)[0], "labels": tiny_labels([5])[0]}] * 4
    arguments = TrainingArguments(str(tmp_path), label_smoothing_factor=0.1, report_to="none", use_cpu=True)
    with pytest.raises(ValueError, match=r"`label_smoothing_factor`.*NICConfig\(label_smoothing=...\)"):
        Trainer(tiny_model(), arguments, train_dataset=samples).train()


def test_trainers_label_smoothing_works_with_the_words_that_are_read(tmp_path: Path) -> None:
    """As in any encoder-decoder, by a collator that adds `decoder_input_ids`; it then is our own smoothing."""
    model, labels = tiny_model(), tiny_labels([5, 3])
    samples = [
        {"pixel_values": pixels, "labels": row, "decoder_input_ids": model.prepare_decoder_input_ids_from_labels(row)}
        for pixels, row in zip(tiny_pixels(2), labels, strict=True)
    ]
    arguments = TrainingArguments(
        str(tmp_path),
        label_smoothing_factor=0.1,
        report_to="none",
        use_cpu=True,
        max_steps=1,
        per_device_train_batch_size=2,
        learning_rate=0.0,
    )
    found = Trainer(tiny_model(), arguments, train_dataset=samples).train().training_loss
    own = tiny_model(label_smoothing=0.1).train()
    assert found == pytest.approx(own(pixel_values=tiny_pixels(2), labels=labels).loss.item(), rel=1e-5)


def test_gradient_checkpointing_names_the_backbone_that_has_none() -> None:
    model = tiny_model(backbone_config=MobileNetV2Config(image_size=32, depth_multiplier=0.25))
    with pytest.raises(ValueError, match="MobileNetV2Model has none"):
        model.gradient_checkpointing_enable()
    model.gradient_checkpointing_disable()  # nothing to do


def test_gradient_checkpointing_changes_no_gradient() -> None:
    def gradient(checkpointing: bool) -> torch.Tensor:
        model = tiny_model(backbone_config=VIT, freeze_backbone=False).train()
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
            assert model.is_gradient_checkpointing
        model(pixel_values=tiny_pixels(2), labels=tiny_labels([4, 3])).loss.backward()
        return next(model.encoder.backbone.parameters()).grad

    torch.testing.assert_close(gradient(True), gradient(False))


def test_tied_words_are_one_weight_saved_and_loaded(tmp_path: Path) -> None:
    model = save_tiny_checkpoint(tmp_path, tie_word_embeddings=True, **SIZES)
    assert model.lm_head.weight is model.decoder.embed_tokens.weight
    loaded = NICForConditionalGeneration.from_pretrained(tmp_path)
    assert loaded.lm_head.weight is loaded.decoder.embed_tokens.weight
    assert loaded.num_parameters() == tiny_model(**SIZES).num_parameters() - 9 * TOKENIZER_SIZE
    inputs = {"encoder_outputs": tiny_features(2), "labels": tiny_labels([4, 3])}
    torch.testing.assert_close(loaded(**inputs).logits, model(**inputs).logits)
    captions = model.generate(encoder_outputs=tiny_features(2))
    assert torch.equal(loaded.generate(encoder_outputs=tiny_features(2)), captions)
    # They stay one in training, and when words are added.
    loaded(**inputs).loss.backward()
    assert loaded.lm_head.weight.grad is loaded.decoder.embed_tokens.weight.grad
    loaded.resize_token_embeddings(TOKENIZER_SIZE + 3)
    assert loaded.lm_head.weight is loaded.decoder.embed_tokens.weight
    assert loaded(**inputs).logits.shape[-1] == TOKENIZER_SIZE + 3


def test_untied_words_stay_two_weights(tmp_path: Path) -> None:
    save_tiny_checkpoint(tmp_path, **SIZES)
    loaded = NICForConditionalGeneration.from_pretrained(tmp_path)
    assert loaded.lm_head.weight is not loaded.decoder.embed_tokens.weight
    assert not torch.equal(loaded.lm_head.weight, loaded.decoder.embed_tokens.weight)


def test_words_of_another_size_than_the_lstm_cannot_be_tied() -> None:
    with pytest.raises(ValueError, match="`embedding_size` is 384, `hidden_size` 512"):
        NICConfig(tie_word_embeddings=True, embedding_size=384)
