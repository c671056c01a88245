"""Half precision, compiled steps and gradient checkpointing of the backbone, through the trainer."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import tiny_labels, tiny_model, tiny_pixels
from torch.autograd.graph import saved_tensors_hooks
from transformers import ViTConfig
from workshop import Workshop

from nic_hf.data import CaptionDataset, PhotoDataset
from nic_hf.training import CaptioningTrainer, CaptioningTrainingArguments

VIT = ViTConfig(
    hidden_size=16, intermediate_size=24, num_hidden_layers=4, num_attention_heads=2, image_size=32, patch_size=8
)
INPUTS = {"pixel_values": tiny_pixels(2), "labels": tiny_labels([3, 5])}


def losses(workshop: Workshop, folder: Path, **arguments: Any) -> tuple[list[float], Any]:
    trainer = workshop.trainer(folder, logging_steps=1, num_train_epochs=1, **arguments)
    trainer.train()
    return [line["loss"] for line in trainer.state.log_history if "loss" in line], trainer


def test_bf16_trains_to_nearly_the_same_losses_with_weights_in_fp32(workshop: Workshop, tmp_path: Path) -> None:
    full, _ = losses(workshop, tmp_path / "full")
    half, trainer = losses(workshop, tmp_path / "half", bf16=True, use_cpu=True)
    assert half != full, "the steps were in full precision"
    assert half == pytest.approx(full, rel=0.02)
    assert all(weight.dtype == torch.float32 for weight in trainer.model.parameters())
    metrics = trainer.evaluate()
    assert metrics["eval_loss"] == pytest.approx(half[-1], rel=0.3)


def test_a_compiled_model_trains_to_the_same_losses(workshop: Workshop, tmp_path: Path) -> None:
    """By a backend that needs no C++ compiler: what is traced is the same for all of them."""
    plain, _ = losses(workshop, tmp_path / "plain")
    compiled, trainer = losses(workshop, tmp_path / "compiled", torch_compile=True, torch_compile_backend="aot_eager")
    assert compiled == pytest.approx(plain, rel=1e-4)
    assert len(trainer.caption(workshop.photos("dev"))) == len(workshop.photos("dev"))


def kept_by_the_backward_pass(model: Any) -> tuple[int, dict[str, torch.Tensor]]:
    """Numbers kept for the backward pass, and the gradients."""
    kept = 0

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        nonlocal kept
        kept += tensor.numel()
        return tensor

    model.zero_grad()
    with saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = model(**INPUTS).loss
    loss.backward()
    return kept, {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}


def test_gradient_checkpointing_of_the_backbone_keeps_less_and_changes_no_gradient() -> None:
    model = tiny_model(backbone_config=VIT, freeze_backbone=False).train()
    everything, expected = kept_by_the_backward_pass(model)
    model.gradient_checkpointing_enable()
    less, gradients = kept_by_the_backward_pass(model)
    assert less < 0.6 * everything
    assert gradients.keys() == expected.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected[name])


def test_the_trainer_turns_gradient_checkpointing_on(workshop: Workshop, tmp_path: Path) -> None:
    vit = ViTConfig(**{**VIT.to_dict(), "image_size": 128, "patch_size": 32})
    photos = PhotoDataset(workshop.rows["train"], workshop.processor)
    train = CaptionDataset(photos, workshop.processor.tokenizer)
    weights = []
    for checkpointing in (False, True):
        size = len(workshop.processor.tokenizer)
        model = tiny_model(backbone_config=vit, freeze_backbone=False, vocab_size=size, initializer_range=0.1)
        trainer = CaptioningTrainer(
            model=model,
            args=CaptioningTrainingArguments(
                output_dir=str(tmp_path / str(checkpointing)),
                max_steps=2,
                per_device_train_batch_size=8,
                gradient_checkpointing=checkpointing,
                eval_strategy="no",
                save_strategy="no",
                load_best_model_at_end=False,
                report_to="none",
                use_cpu=True,
            ),
            train_dataset=train,
            processing_class=workshop.processor,
        )
        trainer.train()
        assert model.is_gradient_checkpointing == checkpointing
        weights.append(model.state_dict())
    for name, weight in weights[0].items():
        torch.testing.assert_close(weights[1][name], weight, msg=name)


def test_a_backbone_without_gradient_checkpointing_is_refused(workshop: Workshop, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="gradient checkpointing is the backbone's, and MobileNetV1Model has none"):
        losses(workshop, tmp_path, gradient_checkpointing=True)
