"""Recipes on few photos: enough steps, said in one line, and captions that are not all alike."""

import json
import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from subset import make_subset, real_backbone

from nic_hf.evaluation.scores import score_captions
from nic_hf.training import CaptioningTrainingArguments
from nic_hf.training.recipe_settings import ModelSettings
from nic_hf.training.recipes import load_recipe, recipe_names, resolve
from nic_hf.training.small_data import fitting_model, scale_to_data


def arguments(tmp_path: Path, **settings: object) -> CaptioningTrainingArguments:
    defaults = {"num_train_epochs": 8, "per_device_train_batch_size": 24, "min_steps": 600, "ema_decay": 0.998}
    return CaptioningTrainingArguments(output_dir=str(tmp_path), use_cpu=True, **{**defaults, **settings})  # type: ignore[arg-type]


@pytest.mark.parametrize("photos", [1, 5, 60, 200, 1000, 1776])
def test_few_photos_get_the_steps_that_the_recipe_asks_for(photos: int, tmp_path: Path) -> None:
    args = arguments(tmp_path)
    said = scale_to_data(args, photos)
    steps = sum(math.ceil(photos / args.per_device_train_batch_size) for _ in range(int(args.num_train_epochs)))
    assert 600 <= steps < 1200 and f"{steps:,} steps" in said and f"{photos:,} samples" in said
    assert 8 <= args.per_device_train_batch_size <= 24 and args.num_train_epochs >= 8
    assert args.ema_decay == pytest.approx(1 - 5 / steps, abs=1e-4), "the average covers the last fifth"
    evaluations = args.num_train_epochs if args.eval_strategy == "epoch" else steps // args.eval_steps
    assert 8 <= evaluations <= 10 and args.eval_strategy == args.save_strategy


def test_many_photos_and_what_the_user_has_set_are_left_alone(tmp_path: Path) -> None:
    for photos, settings in ((6000, {}), (60, {"min_steps": 0}), (60, {"max_steps": 10})):
        args, before = arguments(tmp_path, **settings), arguments(tmp_path, **settings)
        assert scale_to_data(args, photos) == "" and args.to_dict() | {"min_steps": 0} == before.to_dict() | {
            "min_steps": 0
        }
    args, before = (arguments(tmp_path, num_train_epochs=2) for _ in range(2))
    assert "6 steps teach little" in scale_to_data(args, 60, frozenset({"num_train_epochs"}))
    assert args.to_dict() | {"min_steps": 600} == before.to_dict()
    args = arguments(tmp_path)
    scale_to_data(args, 60, frozenset({"per_device_train_batch_size", "ema_decay", "eval_strategy"}))
    assert args.per_device_train_batch_size == 24 and args.ema_decay == 0.998 and args.eval_strategy == "epoch"


def test_a_large_lstm_is_for_many_photos() -> None:
    settings = ModelSettings(backbone="b", hidden_size=1024)
    assert fitting_model(settings, 999) == replace(settings, hidden_size=512)
    assert fitting_model(settings, 1000) is settings
    assert fitting_model(settings, 60, frozenset({"hidden_size"})) is settings


@pytest.mark.parametrize("name", recipe_names())
def test_each_recipe_that_begins_with_cross_entropy_counts_steps(name: str) -> None:
    changes = {"data": "d", "backbone": "b", "learning_rate": "1e-3"}
    stages = resolve(load_recipe(name), changes)
    assert stages[0].args.min_steps >= 300
    assert all(stage.fixed == frozenset(changes) for stage in stages)


def test_sixty_photos_teach_something_with_the_command_as_it_is_printed(test_data: Path, tmp_path: Path) -> None:
    """The tutorial's command; in eight epochs of large batches these photos gave "dog dog dog dog dog the"."""
    make_subset(test_data / "flickr8k", tmp_path / "photos", train=60, dev=10, test=40)
    words = ["--recipe", "frozen", "--data", "photos", "--backbone", str(real_backbone(test_data))]
    words += ["--output_dir", "run", "--predict_split", "test"]
    done = subprocess.run(
        [sys.executable, "-m", "nic_hf", "train", *words],
        cwd=tmp_path,
        env={**os.environ, "NIC_HF_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "60 samples: 75 epochs in batches of 8, 600 steps" in done.stderr and "hidden_size 512" in done.stderr
    captions = json.loads((tmp_path / "run" / "predictions_test.json").read_text("utf-8"))
    references: dict[str, list[str]] = {}
    for line in (tmp_path / "photos" / "captions.txt").read_text("utf-8").splitlines()[1:]:
        name, caption = line.split(",", 1)
        references.setdefault(name, []).append(caption.strip('"'))
    scores = score_captions(captions, {name: references[name] for name in captions}, ["bleu", "cider"])
    assert scores["cider"] > 0.1 and scores["bleu_1"] > 0.4, "0.01 and 0.1 before"
    assert len(set(captions.values())) > 20
    recipe = load_recipe(tmp_path / "run" / "recipe.yaml")
    assert recipe["stages"]["frozen"]["num_train_epochs"] == 75 and not recipe["stages"]["frozen"]["min_steps"], (
        "the recipe that repeats this training"
    )
