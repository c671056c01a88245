"""A run that is killed, at any moment, and started again ends with the weights of one that was left alone."""

import multiprocessing
import random
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from workshop import Workshop

from nic_hf.training import last_checkpoint

SAVE_STEPS = 8


def train(steps: int, start: Path, subset: Path, features: Path, output_dir: Path) -> None:
    """A run of so many steps with cached features, from the newest whole checkpoint on; a process of its own."""
    from transformers import AutoModelForImageTextToText, AutoProcessor

    from nic_hf.data import CaptionDataset, PhotoDataset, cache_features, load_captions
    from nic_hf.training import CaptioningTrainer, CaptioningTrainingArguments

    torch.set_num_threads(1)
    model, processor = AutoModelForImageTextToText.from_pretrained(start), AutoProcessor.from_pretrained(start)
    rows = load_captions(subset, "train", cache_dir=features)
    photos = PhotoDataset(rows, processor, cache_features(model, processor, rows, features))
    arguments = CaptioningTrainingArguments(
        output_dir=str(output_dir),
        max_steps=steps,
        per_device_train_batch_size=8,
        eval_strategy="no",
        save_strategy="steps",
        save_steps=SAVE_STEPS,
        save_total_limit=1,
        load_best_model_at_end=False,
        disable_tqdm=True,
        report_to="none",
        use_cpu=True,
        ema_decay=0.5,
    )
    trainer = CaptioningTrainer(
        model=model,
        args=arguments,
        train_dataset=CaptionDataset(photos, processor.tokenizer),
        processing_class=processor,
    )
    trainer.train(resume_from_checkpoint="last")
    trainer.save_model()


def begin(*arguments: Any) -> Any:
    """Start a run. Importing everything takes seconds, so a server forks the runs where there can be one."""
    methods = multiprocessing.get_all_start_methods()
    context = multiprocessing.get_context("forkserver" if "forkserver" in methods else "spawn")
    if "forkserver" in methods:
        context.set_forkserver_preload(["nic_hf.training"])
    process = context.Process(target=train, args=arguments)
    process.start()
    return process


def wait_for(event: Any, process: Any) -> bool:
    """Wait until something is so; False where the run ended before."""
    deadline = time.monotonic() + 120
    while not event():
        if not process.is_alive():
            return False
        assert time.monotonic() < deadline
        time.sleep(0.0005)
    return True


def writing(folder: Path) -> bool:
    """Whether a checkpoint is being written."""
    return any(not (path / "trainer_state.json").exists() for path in folder.glob("checkpoint-*"))


@pytest.mark.parametrize(("kills", "steps"), [(8, 150), pytest.param(30, 500, marks=pytest.mark.slow)])
def test_a_run_killed_at_any_moment_ends_with_the_weights_of_one_left_alone(
    kills: int, steps: int, workshop: Workshop, subset: Path, tmp_path: Path
) -> None:
    start, features = tmp_path / "start", tmp_path / "features"
    model, processor = workshop.captioner(dropout=0.5)
    model.save_pretrained(start)
    processor.save_pretrained(start)
    alone = begin(steps, start, subset, features, tmp_path / "alone")
    alone.join(300)
    assert alone.exitcode == 0

    generator = random.Random(kills)
    run, caught_writing, last_steps = tmp_path / "run", 0, []
    for number in range(kills):
        process = begin(steps, start, subset, features, run)
        before = set(run.glob("checkpoint-*"))
        new = lambda before=before: set(run.glob("checkpoint-*")) - before  # noqa: E731
        alive = wait_for(new, process)
        # Every second time while a checkpoint is being written, else after that, at some moment.
        if number % 2:
            alive = alive and wait_for(lambda: writing(run), process)
            time.sleep(generator.uniform(0, 0.02))
        else:
            alive = alive and wait_for(lambda: not writing(run), process)
            time.sleep(generator.uniform(0, 0.1))
        assert alive, "the run ended before it could be killed as often as the test wants"
        process.kill()
        process.join()
        caught_writing += writing(run)
        checkpoint = last_checkpoint(run)
        last_steps.append(int(checkpoint.rsplit("-", 1)[1]) if checkpoint else 0)
    assert caught_writing > 0, "no kill hit a checkpoint that was being written"
    assert caught_writing < kills, "every kill hit a checkpoint that was being written"
    assert last_steps == sorted(last_steps) and last_steps[-1] > 0, "a kill lost a checkpoint"

    last = begin(steps, start, subset, features, run)
    last.join(300)
    assert last.exitcode == 0
    one, other = (load_file(folder / "model.safetensors") for folder in (tmp_path / "alone", run))
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []
