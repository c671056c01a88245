"""LoRA by PEFT, on the weights of the LSTM, the head and a backbone."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import tiny_labels, tiny_model, tiny_pixels
from torch.nn import functional as F
from workshop import Workshop

from nic_hf import NICForConditionalGeneration
from nic_hf.data import CaptionDataset

peft = pytest.importorskip("peft")
LSTM = ["decoder.lstm.weight_ih_l0", "decoder.lstm.weight_hh_l0"]
INPUTS = {"pixel_values": tiny_pixels(2), "labels": tiny_labels([3, 5])}


def with_lora(model: NICForConditionalGeneration, **changes: Any) -> Any:
    """The model with adapters that change what it says: PEFT's own start changes nothing."""
    settings = {"r": 2, "target_modules": ["lm_head"], "target_parameters": LSTM, **changes}
    adapted = peft.get_peft_model(model, peft.LoraConfig(**settings)).eval()
    torch.manual_seed(0)
    for name, weight in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.3)
    return adapted


@pytest.mark.parametrize("attention", [None, "soft"])
def test_an_adapter_acts_wherever_the_lstm_runs_and_merges_into_the_same(attention: str | None) -> None:
    plain = tiny_model(attention=attention)
    adapted = with_lora(tiny_model(attention=attention))
    logits = adapted(**INPUTS).logits
    assert (logits - plain(**INPUTS).logits).abs().max() > 0.1
    decode: list[dict[str, Any]] = [{"num_beams": 1}, {"num_beams": 3}]
    words = [adapted.generate(pixel_values=INPUTS["pixel_values"], max_new_tokens=6, **how) for how in decode]
    # One word at a time, from the state after the words before.
    state = adapted(pixel_values=INPUTS["pixel_values"], decoder_input_ids=words[0][:, :1], use_cache=True)
    second = adapted(decoder_input_ids=words[0][:, 1:2], cache=state.cache).logits[:, -1]
    whole = adapted(pixel_values=INPUTS["pixel_values"], decoder_input_ids=words[0][:, :2]).logits[:, -1]
    torch.testing.assert_close(second, whole, atol=1e-5, rtol=1e-5)
    merged = adapted.merge_and_unload()
    torch.testing.assert_close(merged(**INPUTS).logits, logits, atol=1e-5, rtol=1e-5)
    for how, expected in zip(decode, words, strict=True):
        assert torch.equal(merged.generate(pixel_values=INPUTS["pixel_values"], max_new_tokens=6, **how), expected)


def test_the_merged_lstm_has_the_weights_of_the_formula() -> None:
    model = tiny_model()
    before = model.decoder.lstm.weight_hh_l0.detach().clone()
    adapted = with_lora(model, target_modules=[], target_parameters=LSTM[1:])
    a, b = (next(w for n, w in adapted.named_parameters() if f"lora_{half}" in n).detach() for half in "AB")
    scale = adapted.peft_config["default"].lora_alpha / 2
    merged = adapted.merge_and_unload().decoder.lstm.weight_hh_l0
    expected = before + scale * (b @ a if b.shape[0] == before.shape[0] else (b @ a).T)
    torch.testing.assert_close(merged.detach(), expected)


def test_an_adapter_is_saved_and_loaded_alone(tmp_path: Path) -> None:
    adapted = with_lora(tiny_model())
    adapted.save_pretrained(tmp_path, save_embedding_layers=False)  # PEFT takes an lm_head for a word embedding
    size = (tmp_path / "adapter_model.safetensors").stat().st_size
    assert size < 10_000 and not (tmp_path / "model.safetensors").exists()
    loaded = peft.PeftModel.from_pretrained(tiny_model(), tmp_path).eval()
    torch.testing.assert_close(loaded(**INPUTS).logits, adapted(**INPUTS).logits, atol=1e-5, rtol=1e-5)


def test_training_an_adapter_learns_and_leaves_the_base_alone(workshop: Workshop, tmp_path: Path) -> None:
    """On real photos, with the LSTM, the head and 1 x 1 convolutions of the real backbone adapted."""
    model, processor = workshop.captioner(freeze_backbone=False)
    base = {name: weight.detach().clone() for name, weight in model.state_dict().items()}
    convolutions = r".*encoder\.backbone\.layer\.2[1357]\.convolution|.*lm_head"
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=4, target_modules=convolutions, target_parameters=LSTM))
    train = CaptionDataset(workshop.photos("train"), processor.tokenizer)
    trainer = workshop.trainer(tmp_path, adapted, train, learning_rate=2e-2, num_train_epochs=4, logging_steps=1)
    trainer.train()
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    assert sum(losses[-3:]) < 0.9 * sum(losses[:3])
    for name, weight in adapted.get_base_model().state_dict().items():
        if "lora" not in name and "num_batches" not in name and "running" not in name:
            own = name.replace("base_layer.", "").replace(".base_layer", "")
            if own in base and "image_projection" not in own:
                assert torch.equal(weight, base[own]), name
    captions = trainer.caption(workshop.photos("dev"))
    assert len(captions) == len(workshop.photos("dev"))
    trainer.save_model(str(tmp_path / "adapter"))
    assert (tmp_path / "adapter" / "adapter_config.json").is_file()


def test_dropout_of_recurrent_weights_goes_with_an_adapter() -> None:
    adapted = with_lora(tiny_model(recurrent_dropout=0.5)).train()
    losses = {adapted(**INPUTS).loss.item() for _ in range(3)}
    assert len(losses) == 3
    adapted(**INPUTS).loss.backward()
    assert all(w.grad is not None and w.grad.abs().sum() > 0 for n, w in adapted.named_parameters() if "lora_" in n)


def test_a_vision_transformer_is_adapted_by_its_attention() -> None:
    from transformers import ViTConfig

    vit = ViTConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, image_size=32, patch_size=8
    )
    model = tiny_model(backbone_config=vit, freeze_backbone=False)
    names = [name.rsplit(".", 1)[-1] for name, _ in model.encoder.named_modules() if "attention" in name]
    targets = sorted({name for name in names if name in ("query", "value", "q_proj", "v_proj")})
    assert targets
    adapted = with_lora(model, target_modules=targets, target_parameters=None).train()
    adapted(**INPUTS).loss.backward()
    reached = {name for name, weight in adapted.named_parameters() if weight.grad is not None}
    assert reached and all("lora_" in name and "encoder" in name for name in reached)
    assert F.mse_loss(adapted.eval()(**INPUTS).logits, tiny_model(backbone_config=vit)(**INPUTS).logits) > 0
