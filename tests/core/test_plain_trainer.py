"""The plain Trainer and Seq2SeqTrainer of Transformers, unhelped."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny import tiny_features, tiny_labels, tiny_model, tiny_pixels, tiny_processor
from transformers import Seq2SeqTrainer, Seq2SeqTrainingArguments, Trainer, TrainingArguments

pytest.importorskip("accelerate", reason="Trainer needs accelerate")

# Captions of 2 to 9 words: unequal batches, so that a mean of means is not the mean.
LABELS = tiny_labels([2 + (7 * row) % 8 for row in range(16)])
FEATURES = [
    {"encoder_outputs": feature, "labels": caption} for feature, caption in zip(tiny_features(16), LABELS, strict=True)
]
SETTINGS: dict[str, Any] = {
    "optim": "sgd",
    "learning_rate": 0.3,
    "lr_scheduler_type": "constant",
    "max_grad_norm": 0.0,
    "max_steps": 4,
    "remove_unused_columns": False,
    "save_strategy": "no",
    "report_to": "none",
    "disable_tqdm": True,
    "use_cpu": True,
    "seed": 3,
}


def trained_weights(folder: Path, batch_size: int, steps: int) -> dict[str, torch.Tensor]:
    model = tiny_model()
    arguments = TrainingArguments(
        str(folder), per_device_train_batch_size=batch_size, gradient_accumulation_steps=steps, **SETTINGS
    )
    Trainer(model, arguments, train_dataset=FEATURES).train()
    return model.state_dict()


def test_gradient_accumulation_changes_nothing(tmp_path: Path) -> None:
    at_once = trained_weights(tmp_path, batch_size=8, steps=1)
    in_parts = trained_weights(tmp_path, batch_size=2, steps=4)
    start = tiny_model().state_dict()
    assert (at_once["lm_head.weight"] - start["lm_head.weight"]).abs().max() > 0.01
    for name, tensor in at_once.items():
        torch.testing.assert_close(in_parts[name], tensor, rtol=0, atol=1e-6)


TWO_PROCESSES = """
import sys
import torch
sys.path[:0] = sys.argv[2:]
torch.set_num_threads(1)
from transformers import Trainer, TrainingArguments
from test_plain_trainer import PHOTOS, SETTINGS
from tiny import tiny_model
arguments = TrainingArguments(sys.argv[1], per_device_train_batch_size=4, **SETTINGS)
assert arguments.world_size == 2
trainer = Trainer(tiny_model(), arguments, train_dataset=PHOTOS)
trainer.train()
trainer.save_model()
torch.distributed.destroy_process_group()
"""

PHOTOS = [{"pixel_values": photo, "labels": caption} for photo, caption in zip(tiny_pixels(16), LABELS, strict=True)]


def test_two_processes_train_as_one_does(tmp_path: Path) -> None:
    arguments = TrainingArguments(str(tmp_path / "one"), per_device_train_batch_size=8, **SETTINGS)
    model = tiny_model()
    Trainer(model, arguments, train_dataset=PHOTOS).train()

    script = tmp_path / "train.py"
    script.write_text(TWO_PROCESSES)
    here = Path(__file__).parent
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(script)]
    run = subprocess.run(
        [sys.executable, *command, str(tmp_path / "two"), str(here), str(here.parent)],
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert run.returncode == 0, run.stderr[-4000:]

    found = load_file(tmp_path / "two" / "model.safetensors")
    start = tiny_model().state_dict()
    assert (found["lm_head.weight"] - start["lm_head.weight"]).abs().max() > 0.01
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=1e-6)


@pytest.mark.parametrize("dataset", [PHOTOS, FEATURES], ids=["photos", "features"])
def test_seq2seq_trainer_captions_in_evaluation(dataset: list[dict[str, torch.Tensor]], tmp_path: Path) -> None:
    seen: list[np.ndarray] = []

    def keep_predictions(prediction: Any) -> dict[str, float]:
        seen.append(prediction.predictions)
        return {"seen": float(len(prediction.predictions))}

    model, processor = tiny_model(), tiny_processor()
    arguments = Seq2SeqTrainingArguments(
        str(tmp_path),
        predict_with_generate=True,
        generation_num_beams=2,
        generation_max_length=8,
        per_device_train_batch_size=8,
        per_device_eval_batch_size=8,
        **SETTINGS,
    )
    trainer = Seq2SeqTrainer(
        model,
        arguments,
        train_dataset=dataset,
        eval_dataset=dataset[:6],
        processing_class=processor,
        compute_metrics=keep_predictions,
    )
    trainer.train()
    metrics = trainer.evaluate()
    assert metrics["eval_seen"] == 6.0

    model.eval()
    name = next(iter(dataset[0]))
    inputs = torch.stack([sample[name] for sample in dataset[:6]])
    expected = model.generate(**{name: inputs}, num_beams=2, max_length=8)
    assert expected.shape[1] <= 8, "the checkpoint's own length went before the arguments'"
    (found,) = seen
    assert processor.batch_decode(np.where(found == -100, 0, found), skip_special_tokens=True) == (
        processor.batch_decode(expected, skip_special_tokens=True)
    )
    with torch.no_grad():
        loss = model(**{name: inputs}, labels=LABELS[:6]).loss
    assert metrics["eval_loss"] == pytest.approx(loss.item(), abs=1e-5)
