"""Work that is killed: what a process does, what it leaves, and how it is hit at random moments.

As a program it is the long form of `test_kills.py`:

    python tests/reliability/killing.py --kills 100 --kind captions.csv
"""

import argparse
import json
import multiprocessing
import os
import random
import shutil
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[1]))

CAPTIONS = ("captions.jsonl", "captions.csv", "captions.parquet", "captions.json")
KINDS = (*CAPTIONS, "sidecar", "cache", "training", "export", "evaluation")
LEFTOVERS = (".tmp", ".part", ".writable", ".saving.")
PHOTOS = 40


def make_inputs(folder: Path) -> Path:
    """A captioner, photos, and captions of them."""
    from tiny import CAPTIONS as WORDS
    from tiny import save_tiny_checkpoint, tiny_photos

    save_tiny_checkpoint(folder / "checkpoint")
    (folder / "photos" / "train").mkdir(parents=True)
    rows = []
    for number, photo in enumerate(tiny_photos(PHOTOS, seed=3)):
        photo.save(folder / "photos" / "train" / f"{number:03d}.png")
        rows += [{"file_name": f"{number:03d}.png", "text": WORDS[(number + i) % len(WORDS)]} for i in range(2)]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "photos" / "train" / "metadata.jsonl").write_text(lines, "utf-8")
    return folder


def work(kind: str, inputs: Path, output: Path, ready: Any = None) -> None:
    """One run, from what earlier ones left; the target of a process."""
    import torch

    torch.set_num_threads(1)
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    if ready is not None:
        ready.set()
    if kind in CAPTIONS or kind == "sidecar":
        _caption(kind, inputs, output)
    elif kind == "export":
        from nic_hf.export import export_onnx

        export_onnx(inputs / "checkpoint", output / "onnx")
    elif kind == "evaluation":
        from nic_hf.evaluation.suite import evaluate_captioner

        evaluate_captioner(
            inputs / "checkpoint",
            inputs / "photos",
            output / "evaluation",
            split="train",
            train_split=None,
            include=("generation", "neighbours"),
            beams=(1, 2),
            metrics=["bleu", "cider"],
            cache_dir=output / "features",
        )
    else:
        _learn(kind, inputs, output)


def _caption(kind: str, inputs: Path, output: Path) -> None:
    from nic_hf.cli import app

    photos, target = inputs / "photos", ["--output", str(output / kind)]
    if kind == "sidecar":
        photos, target = output / "photos", ["--sidecar"]
        for photo in sorted((inputs / "photos" / "train").glob("*.png")):
            if not (photos / photo.name).exists():
                photos.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(photo, output / "copy")
                (output / "copy").replace(photos / photo.name)
    arguments = ["caption", str(photos), "--model", str(inputs / "checkpoint"), "--device", "cpu"]
    app([*arguments, *target, "--batch-size", "2", "--workers", "2"], standalone_mode=False)


def _learn(kind: str, inputs: Path, output: Path) -> None:
    from nic_hf import NICForConditionalGeneration, NICProcessor
    from nic_hf.data import CaptionDataset, PhotoDataset, cache_features, load_captions
    from nic_hf.training import CaptioningTrainer, CaptioningTrainingArguments

    model = NICForConditionalGeneration.from_pretrained(inputs / "checkpoint")
    processor = NICProcessor.from_pretrained(inputs / "checkpoint")
    model.set_backbone_frozen(True)
    rows = load_captions(inputs / "photos", "train", cache_dir=output / "arrow")
    features = cache_features(model, processor, rows, output / "features", photos_a_chunk=4)
    if kind == "cache":
        return
    arguments = CaptioningTrainingArguments(
        output_dir=str(output / "run"),
        max_steps=40,
        per_device_train_batch_size=8,
        eval_strategy="no",
        save_strategy="steps",
        save_steps=8,
        save_total_limit=1,
        load_best_model_at_end=False,
        disable_tqdm=True,
        report_to="none",
        use_cpu=True,
    )
    trainer = CaptioningTrainer(
        model=model,
        args=arguments,
        train_dataset=CaptionDataset(PhotoDataset(rows, processor, features), processor.tokenizer),
        processing_class=processor,
    )
    trainer.train(resume_from_checkpoint="last")
    trainer.save_model()


def result(kind: str, output: Path) -> dict[str, bytes]:
    """What a run is for: content of files by name."""
    if kind in CAPTIONS:
        return {kind: (output / kind).read_bytes()}
    patterns = {
        "sidecar": "photos/*.txt",
        "cache": "features/*/*.safetensors",
        "training": "run/model.safetensors",
        "export": "onnx/*",
        "evaluation": "evaluation/predictions-*.jsonl",
    }
    found = {file.relative_to(output).as_posix(): file.read_bytes() for file in sorted(output.glob(patterns[kind]))}
    if kind == "evaluation":
        parts = json.loads((output / "evaluation" / "evaluation.json").read_text("utf-8"))["parts"]
        for part in parts.values():
            part["result"].pop("seconds", None)
        found["parts"] = json.dumps(parts).encode()
    assert found, f"{kind}: no result"
    return found


def leftovers(output: Path) -> list[str]:
    """Temporary files and folders."""
    return [str(path) for path in output.rglob("*") if any(mark in path.name for mark in LEFTOVERS)]


@dataclass
class Tally:
    """How it went: kills that hit, of them after a change of files, and results compared."""

    kills: int = 0
    at_a_change: int = 0
    compared: int = 0


def hammer(kind: str, inputs: Path, scratch: Path, kills: int, seed: int = 0, a_result: int = 5) -> Tally:
    """Kill runs at random moments, each going on from what the last left; compare a result every few kills.

    Half of the moments are spread over the time that a run takes. The others are up to 5 ms after files of the
    output changed for the n-th time, where a kill hurts most.

    Raises:
        AssertionError: a run failed, its result is another than that of a run left alone, or files stayed behind.
    """
    generator = random.Random(f"{kind} {seed}")
    alone, output = scratch / "alone", scratch / "killed"
    alone.mkdir(parents=True)
    output.mkdir()
    process, ready = _start(kind, inputs, alone)
    ready.wait(120)
    start, changes, seen = time.monotonic(), 0, _listing(alone)
    while process.is_alive():
        now = _listing(alone)
        changes, seen = changes + (now != seen), now
        time.sleep(0.001)
    seconds = time.monotonic() - start
    assert process.exitcode == 0, f"{kind}: exit code {process.exitcode}"
    wanted = result(kind, alone)
    assert leftovers(alone) == []

    tally, since = Tally(), 0
    while tally.kills < kills or since:
        process, ready = _start(kind, inputs, output)
        hit = False
        if since < a_result and tally.kills < kills:
            ready.wait(120)
            by_change = generator.random() < 0.5
            if by_change:
                _wait_for_changes(output, process, generator.randint(1, max(changes, 1)), 4 * seconds)
                time.sleep(generator.uniform(0, 0.005))
            else:
                process.join(generator.uniform(0, seconds))
            if process.is_alive():
                process.kill()
                hit = True
        process.join(3600)  # on a machine under load
        if hit and process.exitcode != 0:
            tally.kills, tally.at_a_change, since = tally.kills + 1, tally.at_a_change + by_change, since + 1
            continue
        assert process.exitcode == 0, f"{kind}: exit code {process.exitcode} after {tally.kills} kills"
        found = result(kind, output)
        different = [name for name in {**wanted, **found} if wanted.get(name) != found.get(name)]
        assert different == [], f"{kind}: other than the run left alone, after {tally.kills} kills: {different}"
        assert leftovers(output) == [], f"{kind}: {leftovers(output)}"
        tally.compared, since = tally.compared + 1, 0
        shutil.rmtree(output)
        output.mkdir()
    return tally


def _start(kind: str, inputs: Path, output: Path) -> tuple[Any, Any]:
    """Begin a run. Importing everything takes seconds, so a server forks the runs where there can be one."""
    methods = multiprocessing.get_all_start_methods()
    context = multiprocessing.get_context("forkserver" if "forkserver" in methods else "spawn")
    if "forkserver" in methods:
        modules = ["nic_hf.training", "nic_hf.captioning", "nic_hf.cli", "nic_hf.evaluation.suite"]
        context.set_forkserver_preload(modules)
    ready = context.Event()
    process = context.Process(target=work, args=(kind, inputs, output, ready))
    process.start()
    return process, ready


def _listing(folder: Path) -> tuple:
    found = []
    for place, _, names in os.walk(folder):  # unlike rglob, at ease with folders that go meanwhile
        for path in (Path(place, name) for name in names):
            with suppress(OSError):  # it was renamed meanwhile
                found.append((path.as_posix(), path.stat().st_size))
    return tuple(found)


def _wait_for_changes(folder: Path, process: Any, number: int, seconds: float) -> None:
    deadline, seen = time.monotonic() + seconds, _listing(folder)
    while number > 0 and process.is_alive() and time.monotonic() < deadline:
        now = _listing(folder)
        number, seen = number - (now != seen), now
        time.sleep(0.0005)


def main() -> None:
    """Print a line a kind."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kind", choices=KINDS, action="append")
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        inputs = make_inputs(Path(folder) / "inputs")
        for kind in args.kind or KINDS:
            start = time.monotonic()
            tally = hammer(kind, inputs, Path(folder) / kind, args.kills, args.seed)
            print(f"{kind}: {tally}, {time.monotonic() - start:.0f} s", flush=True)


if __name__ == "__main__":
    main()
