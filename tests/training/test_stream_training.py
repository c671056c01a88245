"""Training on a stream: a run that is resumed ends with the weights of one that never stopped; processes share."""

import json
import multiprocessing
import os
import subprocess
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from packaging.version import Version
from shards import photo_rows, write_shards
from two_processes import TORCHRUN
from workshop import Workshop

import nic_hf
from nic_hf.data import StreamingCaptionDataset, stream_captions
from nic_hf.training import CaptioningTrainer, ResumeError

Weights = Callable[[torch.nn.Module], dict[str, torch.Tensor]]


@pytest.fixture(scope="module")
def shards(workshop: Workshop, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """16 real photos in five shards."""
    return write_shards(tmp_path_factory.mktemp("shards"), photo_rows(workshop.rows["train"]), (4, 2, 3, 4, 3))


def trainer(workshop: Workshop, shards: list[str], folder: Path, **arguments: Any) -> CaptioningTrainer:
    stream = StreamingCaptionDataset(
        stream_captions(shards), workshop.processor, workshop.processor.tokenizer, shuffle_photos=3, seed=2
    )
    settings = {
        "max_steps": 14,
        "per_device_train_batch_size": 3,
        "gradient_accumulation_steps": 2,
        "logging_steps": 2,
        "save_strategy": "steps",
        "save_steps": 5,
        "save_total_limit": None,
        **arguments,
    }
    return workshop.trainer(folder, workshop.captioner(dropout=0.5)[0], stream, **settings)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_resumed_run_ends_with_the_weights_of_one_that_never_stopped(
    workers: int, workshop: Workshop, shards: list[str], weights: Weights, tmp_path: Path
) -> None:
    """It stops in the second pass over the data, in the middle of a block; workers have read ahead by then."""
    # Spawned workers take seconds to start: one of the two runs has them, where there is another way.
    ways = [multiprocessing.get_all_start_methods()[0], "spawn"] if workers else [None, None]
    arguments = [{"dataloader_num_workers": workers, "dataloader_multiprocessing_context": way} for way in ways]
    whole = trainer(workshop, shards, tmp_path / "whole", **arguments[0])
    whole.train()
    torch.rand(7)
    resumed = trainer(workshop, shards, tmp_path / "resumed", **arguments[1])
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-10"))
    assert resumed.state.global_step == 14
    one, other = weights(whole.model), weights(resumed.model)
    assert [name for name in one if not torch.equal(one[name], other[name])] == []
    lines = [
        [(line["step"], line["epoch"], line["loss"]) for line in each.state.log_history if "loss" in line]
        for each in (whole, resumed)
    ]
    assert lines[0] == lines[1]
    assert lines[0][-1][1] == pytest.approx(14 * 6 / 80, abs=0.5), "epoch counts passes over the data"
    assert json.loads((tmp_path / "whole" / "checkpoint-10" / "stream_0.json").read_text())["given"] == 20

    if not workers:
        anew = trainer(workshop, shards, tmp_path / "anew", ignore_data_skip=True)
        anew.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-10"))
        assert not torch.equal(anew.model.lm_head.weight, whole.model.lm_head.weight)


def test_what_was_skipped_is_counted_in_the_log(workshop: Workshop, shards: list[str], tmp_path: Path) -> None:
    broken = tmp_path / "broken.tar"
    broken.write_bytes(Path(shards[0]).read_bytes()[:-30_000])
    stream = stream_captions([str(broken), *shards[1:]], on_error="skip")
    tokenizer = workshop.processor.tokenizer
    train = StreamingCaptionDataset(stream, workshop.processor, tokenizer, on_error="skip")
    told = workshop.trainer(tmp_path, train=train, max_steps=6, logging_steps=6)
    told.train()
    assert [line["skipped"] for line in told.state.log_history if "loss" in line] == [2], "once a pass"


def test_arguments_that_do_not_fit_a_stream(workshop: Workshop, shards: list[str], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="max_steps"):
        trainer(workshop, shards, tmp_path, max_steps=-1)
    stream = StreamingCaptionDataset(
        stream_captions(shards), workshop.processor, workshop.processor.tokenizer, passes=3
    )
    with pytest.raises(ValueError, match="got passes=3"):
        workshop.trainer(tmp_path, train=stream, max_steps=3)


def test_a_checkpoint_without_a_position_is_refused(workshop: Workshop, shards: list[str], tmp_path: Path) -> None:
    first = trainer(workshop, shards, tmp_path, max_steps=5)
    first.train()
    (tmp_path / "checkpoint-5" / "stream_0.json").rename(tmp_path / "kept.json")
    record = tmp_path / "checkpoint-5" / "provenance.json"
    provenance = json.loads(record.read_text("utf-8"))
    del provenance["files"]["stream_0.json"]
    record.write_text(json.dumps(provenance), "utf-8")
    with pytest.raises(ResumeError, match=r"has no stream_0\.json"):
        trainer(workshop, shards, tmp_path).train(resume_from_checkpoint=True)


WORKER = """
import json, sys
from pathlib import Path
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor
from nic_hf.data import StreamingCaptionDataset, stream_captions
from nic_hf.training import CaptioningTrainer, CaptioningTrainingArguments

start, shards, folder = Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
processor = AutoProcessor.from_pretrained(start)
args = CaptioningTrainingArguments(
    output_dir=str(folder), max_steps=10, per_device_train_batch_size=2, save_strategy="steps", save_steps=4,
    eval_strategy="no", load_best_model_at_end=False, disable_tqdm=True, report_to="none", use_cpu=True,
    save_total_limit=None, logging_steps=10,
)
seen = []

class Watching(CaptioningTrainer):
    def training_step(self, model, inputs, *more):
        seen.extend(",".join(str(i) for i in row if i >= 0) for row in inputs["labels"].tolist())
        return super().training_step(model, inputs, *more)

trainer = Watching(
    model=AutoModelForImageTextToText.from_pretrained(start), args=args, processing_class=processor,
    train_dataset=StreamingCaptionDataset(stream_captions(shards), processor, processor.tokenizer, shuffle_photos=4),
)
trainer.train()
first = list(seen)
seen.clear()
again = Watching(
    model=AutoModelForImageTextToText.from_pretrained(start), args=args, processing_class=processor,
    train_dataset=StreamingCaptionDataset(stream_captions(shards), processor, processor.tokenizer, shuffle_photos=4),
)
again.train(resume_from_checkpoint=str(folder / "checkpoint-4"))
same = all(torch.equal(a, b) for a, b in zip(trainer.model.parameters(), again.model.parameters()))
report = {"first": first, "resumed": seen, "same": same}
(folder / f"seen-{args.process_index}.json").write_text(json.dumps(report))
"""


@pytest.mark.skipif(
    Version(transformers.__version__) < Version("5.23"),
    reason="Trainer 5.17 loads the optimizer of several CPU processes to 'cpu:0', which torch refuses",
)
def test_two_processes_each_get_their_share_and_resume(workshop: Workshop, shards: list[str], tmp_path: Path) -> None:
    start = tmp_path / "start"
    workshop.captioner()[0].save_pretrained(start)
    workshop.processor.save_pretrained(start)
    (tmp_path / "train.py").write_text(WORKER, "utf-8")
    source = str(Path(nic_hf.__file__).parents[1])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": source}
    command = [*TORCHRUN, str(tmp_path / "train.py"), str(start), str(Path(shards[0]).parent), str(tmp_path / "run")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]
    reports = [json.loads((tmp_path / "run" / f"seen-{n}.json").read_text("utf-8")) for n in (0, 1)]
    for report in reports:
        assert len(report["first"]) == 20 and report["resumed"] == report["first"][8:]
        assert report["same"], "the weights at the end"
    # 40 of 80 captions: in half a pass no process has begun the next.
    tokenizer = workshop.processor.tokenizer
    known = Counter(",".join(map(str, tokenizer(caption).input_ids)) for caption in workshop.captions)
    given = Counter(reports[0]["first"] + reports[1]["first"])
    assert given <= known and sum(given.values()) == 40
