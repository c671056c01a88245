"""A captioner trained briefly on a few photos, and its evaluation."""

import csv
from pathlib import Path

import pytest
from evaluated import MARKUP, Evaluated
from subset import make_subset
from workshop import Workshop

from nic_hf.evaluation.suite import evaluate_captioner


@pytest.fixture(scope="session")
def evaluated(flickr8k: Path, test_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Evaluated:
    folder = tmp_path_factory.mktemp("suite")
    data = make_subset(flickr8k, folder / "flickr", train=48, dev=6, test=12)
    with (data / "captions.txt").open(encoding="utf-8", newline="") as file:
        header, *rows = csv.reader(file)
    # The first of five captions of each photo, which the report shows.
    rows = [[name, f"{caption} {MARKUP}" if place % 5 == 0 else caption] for place, (name, caption) in enumerate(rows)]
    with (data / "captions.txt").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    workshop = Workshop(test_data, data, folder / "workshop")
    model, _ = workshop.captioner(hidden_size=128, embedding_size=128)
    arguments = {"num_train_epochs": 8, "logging_steps": 10, "save_steps": 40, "save_strategy": "steps"}
    trainer = workshop.trainer(folder / "run", model, **arguments, save_total_limit=None)
    trainer.train()
    trainer.save_model()
    settings = {
        "beams": (1, 3),
        "metrics": ("bleu", "rouge_l", "cider"),
        "transfer": {"its own <b>dev</b> photos": data},
        "run": folder / "run",
        "words": ("dog", "man", "zebroid"),
        "cache_dir": folder / "features",
    }
    results = evaluate_captioner(folder / "run", data, folder / "out", **settings)
    return Evaluated(folder / "run", data, folder / "out", settings, results)
