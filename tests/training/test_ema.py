"""Averaged weights and scheduled sampling in a CaptioningTrainer."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import tiny_features, tiny_labels, tiny_model
from transformers import TrainerCallback
from workshop import Workshop

from nic_hf import NICForConditionalGeneration
from nic_hf.training import CaptioningTrainingArguments, TrainingDivergedError
from nic_hf.training.scheduled_sampling import mixed_inputs


class Recorder(TrainerCallback):
    """Keeps a copy of one weight after each step."""

    def __init__(self) -> None:
        self.seen: list[torch.Tensor] = []

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        self.seen.append(model.lm_head.weight.detach().clone())


def test_the_model_ends_with_the_moving_average(workshop: Workshop, tmp_path: Path) -> None:
    recorder = Recorder()
    model, _ = workshop.captioner()
    expected = model.lm_head.weight.detach().clone()
    trainer = workshop.trainer(tmp_path, model, callbacks=[recorder], ema_decay=0.9)
    trainer.train()
    assert len(recorder.seen) == 10
    for number, weight in enumerate(recorder.seen, start=1):
        decay = min(0.9, (1 + number) / (10 + number))
        expected = decay * expected + (1 - decay) * weight
    assert torch.allclose(model.lm_head.weight, expected, atol=1e-6)
    assert not torch.allclose(model.lm_head.weight, recorder.seen[-1], atol=1e-4)


def test_averaging_does_not_change_what_is_trained(workshop: Workshop, tmp_path: Path) -> None:
    runs = []
    for decay in (0.0, 0.9):
        recorder = Recorder()
        arguments = {"ema_decay": decay, "eval_strategy": "steps", "eval_steps": 3}
        workshop.trainer(tmp_path / str(decay), callbacks=[recorder], **arguments).train()
        runs.append(recorder.seen)
    for plain, averaged in zip(*runs, strict=True):
        assert torch.equal(plain, averaged)


def test_a_resumed_run_has_the_same_average(workshop: Workshop, tmp_path: Path) -> None:
    arguments = {"save_strategy": "steps", "save_steps": 4, "save_total_limit": None, "ema_decay": 0.9}
    whole = workshop.trainer(tmp_path / "whole", **arguments)
    whole.train()
    resumed = workshop.trainer(tmp_path / "resumed", **arguments)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-4"))
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, resumed.model.state_dict()[name]), name
    last = NICForConditionalGeneration.from_pretrained(tmp_path / "whole" / "checkpoint-8")
    trained = workshop.trainer(tmp_path / "x", last, **arguments)
    assert not torch.equal(trained.model.lm_head.weight, whole.model.lm_head.weight)

    without = workshop.trainer(tmp_path / "plain", save_strategy="steps", save_steps=5)
    without.train()
    late = workshop.trainer(tmp_path / "late", **arguments)
    with pytest.raises(OSError, match="trained without ema_decay"):
        late.train(resume_from_checkpoint=str(tmp_path / "plain" / "checkpoint-10"))


def test_a_loss_that_is_no_number_stops_training(workshop: Workshop, tmp_path: Path) -> None:
    class Breaker(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
            if state.global_step == 6:
                with torch.no_grad():
                    model.lm_head.bias.fill_(torch.nan)

    trainer = workshop.trainer(tmp_path, callbacks=[Breaker()], save_strategy="steps", save_steps=5)
    with pytest.raises(TrainingDivergedError, match=r"the loss is nan at step 7; the last checkpoint, .*checkpoint-5"):
        trainer.train()
    kept = NICForConditionalGeneration.from_pretrained(tmp_path / "checkpoint-5")
    assert all(torch.isfinite(weight).all() for weight in kept.parameters())


@pytest.mark.parametrize("field", ["ema_decay", "scheduled_sampling"])
def test_shares_out_of_range_are_refused(field: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"{field} must be at least 0 and below 1, got 1.5"):
        CaptioningTrainingArguments(output_dir=str(tmp_path), **{field: 1.5})


def test_words_read_are_the_captions_or_what_the_model_said_there() -> None:
    model = tiny_model(dropout=0.5).train()
    labels, features = tiny_labels([9, 5, 7]), tiny_features(3)
    inputs = {"encoder_outputs": features, "labels": labels}
    true = model.prepare_decoder_input_ids_from_labels(labels)
    assert torch.equal(mixed_inputs(model, inputs, 0.0), true)
    assert model.training

    torch.manual_seed(0)
    changed = torch.stack([mixed_inputs(model, inputs, 0.5) != true for _ in range(300)]).float().mean(0)
    inside = labels != -100
    inside[:, 0] = False
    assert changed[~inside].eq(0).all(), "neither <bos> nor padding"
    assert changed[inside].max() < 0.6 and changed[inside].mean() > 0.25

    # With every word replaced they are distributed as the model says after the true words before.
    model.eval()
    with torch.no_grad():
        logits = model(**inputs).logits[0, 2]
    for special in (model.config.pad_token_id, model.config.bos_token_id, model.config.unk_token_id):
        logits[special] = -torch.inf
    said = torch.tensor([int(mixed_inputs(model, inputs, 0.999999)[0, 3]) for _ in range(3000)])
    expected = logits.softmax(-1)
    eos, kept = model.config.eos_token_id, int(true[0, 3])
    expected[kept], expected[eos] = expected[kept] + expected[eos], 0  # where it would have ended, the word stays
    found = torch.bincount(said, minlength=len(expected)) / len(said)
    assert (found - expected).abs().max() < 0.04


def test_scheduled_sampling_trains(workshop: Workshop, tmp_path: Path) -> None:
    trainer = workshop.trainer(tmp_path, scheduled_sampling=0.5, num_train_epochs=6, logging_steps=5)
    trainer.train()
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    assert losses[-1] < 0.9 * losses[0]
