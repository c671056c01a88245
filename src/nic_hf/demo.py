"""Train a captioner on built-in scenes, or on your photos, and caption unseen ones."""

import json
import logging
import os
import shlex
import shutil
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import torch
import transformers
from transformers import set_seed

from .captioners import example_photos
from .configuration_nic import NICConfig
from .contact_sheet import contact_sheet, save_picture
from .data import CaptionDataset, PhotoDataset
from .data.feature_cache import load_photo_row
from .data.scene_grammar import caption_is_correct, explain_caption
from .data.scenes import IMAGE_SIZE, Scene, make_scenes, scene_backbone_config
from .images import load_photo
from .model.captioner import NICForConditionalGeneration
from .model.pipeline import ImageToTextPipeline
from .model.processor import NICProcessor, build_image_processor, squeeze_to
from .tokenization import train_tokenizer
from .training import CaptioningTrainer, CaptioningTrainingArguments
from .training.progress_callback import show_progress
from .training.recipe_settings import DataSettings, ModelSettings
from .training.stage_inputs import caption_datasets, load_splits, new_captioner
from .writing import write_text

NUM_SCENES = {"train": 15000, "validation": 200, "test": 300}
SHEET_PHOTOS = 20
SCENES_RECIPE = {
    "num_train_epochs": 1,
    "per_device_train_batch_size": 32,
    "learning_rate": 2.5e-3,
    "max_grad_norm": 1.0,
    "eval_strategy": "no",
    "save_strategy": "no",
    "load_best_model_at_end": False,
}


@dataclass
class DemoResult:
    """Result of the demo.

    Attributes:
        captions: captions of the test photos, by id.
        metrics: scores on the test split; `correct`, the share of correct captions, for scenes only.
        checkpoint: folder of the trained captioner.
        sheet: path of the contact sheet.
        seconds: total wall time.
    """

    captions: dict[str, str]
    metrics: dict[str, float]
    checkpoint: Path
    sheet: Path
    seconds: float


@dataclass
class _Task:
    """A captioner to train, and its datasets."""

    model: NICForConditionalGeneration
    processor: NICProcessor
    train: CaptionDataset
    evaluation: CaptionDataset
    test: PhotoDataset
    judge: Callable[[dict[str, Any], str], bool] | None = None


def run_demo(
    output: str | os.PathLike = "demo",
    data: str | None = None,
    backbone: str | None = None,
    *,
    seed: int = 0,
    epochs: float | None = None,
    say: Callable[[str], None] = print,
) -> DemoResult:
    """Train on the built-in scenes, or on your photos, and caption the test split.

    Args:
        output: folder for the checkpoint (`checkpoint/`), the contact sheet (`captions.png`) and `captions.json`; with
            the built-in scenes also for captions of a few photos (`photos.png`).
        data: captioned photos (see [`nic_hf.data.load_captions`]); by default the built-in scenes.
        backbone: a pretrained vision model for these photos, a Hub id or path.
        seed: seed of data, weights and training.
        epochs: number of passes over the captions.
        say: called with each line of the report.

    Raises:
        ValueError: if only one of `data` and `backbone` is given.
        OSError: if `output` cannot be written, or a photo cannot be read.
    """
    if (data is None) != (backbone is None):
        raise ValueError("data and backbone must be given together")
    start = time.perf_counter()
    output = Path(output)
    recipe: dict[str, Any] = SCENES_RECIPE if data is None else {}
    if epochs is not None:
        recipe = {**recipe, "num_train_epochs": epochs}
    args = CaptioningTrainingArguments(
        output_dir=str(output / "run"), seed=seed, logging_steps=100, report_to="none", **recipe
    )
    args.check_paths()
    _quieten()
    set_seed(seed)
    photos_sheet = None
    if data is None or backbone is None:
        photos_sheet = _caption_example_photos(output / "photos.png", say)
        say("Drawing scenes of coloured shapes; some combinations occur only in the test split.")
        task = _scenes(seed)
    else:
        say(f"Reading photos and captions from {data}.")
        task = _photos(data, backbone, args)

    train, test = task.train.photos, task.test
    say(f"Training on {len(train):,} pictures; {len(task.processor.tokenizer) - 4:,} words.")
    trainer = CaptioningTrainer(
        model=task.model,
        args=args,
        train_dataset=task.train,
        eval_dataset=task.evaluation,
        processing_class=task.processor,
    )
    show_progress(trainer)
    trainer.train()
    checkpoint = output / "checkpoint"
    trainer.save_model(str(checkpoint))

    say(f"Captioning {len(test):,} unseen pictures.")
    captions = trainer.caption(test)
    metrics = {"distinct": len(set(captions.values())) / len(captions)}
    verdicts = None
    if task.judge is not None:
        verdicts = [task.judge(test.photos[row], captions[test.photos[row]["image_id"]]) for row in test.rows]
        metrics["correct"] = sum(verdicts) / len(verdicts)
    write_text(output / "captions.json", json.dumps(captions, indent=1, ensure_ascii=False))
    sheet = _draw_sheet(test, captions, verdicts, output / "captions.png")
    result = DemoResult(captions, metrics, checkpoint, sheet, time.perf_counter() - start)
    _report(result, task, photos_sheet, say)
    return result


def _caption_example_photos(path: Path, say: Callable[[str], None]) -> Path:
    """Caption a few photos with the captioner that comes with the package."""
    say("Captioning seven photos with the captioner that comes with nic_hf.")
    files = example_photos()
    captioner = ImageToTextPipeline.from_pretrained()
    captions = [found[0]["generated_text"] for found in captioner([str(file) for file in files])]
    for file, caption in zip(files, captions, strict=True):
        say(f"  {file.name}: {caption}")
    say("It learned from Flickr8k's people and dogs outdoors, and describes other things as if they were those.")
    say("")
    sheet = contact_sheet([load_photo(file) for file in files], captions, title="Captions of photos", columns=7)
    return save_picture(sheet, path)


def _scenes(seed: int) -> _Task:
    splits = {split: make_scenes(split, number, seed) for split, number in NUM_SCENES.items()}  # type: ignore[arg-type]
    tokenizer = train_tokenizer((c for captions in splits["train"]["captions"] for c in captions), min_frequency=1)
    image_processor = build_image_processor(
        {
            "image_processor_type": "ViTImageProcessor",
            "size": {"height": IMAGE_SIZE, "width": IMAGE_SIZE},
            "image_mean": [0.9] * 3,  # most of a scene is its light background
            "image_std": [0.2] * 3,
        }
    )
    processor = NICProcessor(image_processor, tokenizer)
    photos = {split: PhotoDataset(scenes, processor, keep_pixels=True) for split, scenes in splits.items()}
    # A new backbone gets its gradient only through the LSTM. With im2txt's small weights and forget biases the image
    # fades within a few words, and training stays on a plateau where it knows colours but no shapes.
    config = NICConfig(
        backbone_config=scene_backbone_config(),
        vocab_size=len(tokenizer),
        embedding_size=256,
        hidden_size=256,
        initializer_range=0.2,
        forget_bias=5.0,
        dropout=0.0,
        freeze_backbone=False,
    )
    model = NICForConditionalGeneration(config)
    _standardise_features(model, photos["train"])

    def judge(row: dict[str, Any], caption: str) -> bool:
        return caption_is_correct(caption, Scene.from_json(row["scene"]))

    train = CaptionDataset(photos["train"], tokenizer, captions_per_sample=2)
    return _Task(model, processor, train, CaptionDataset(photos["validation"], tokenizer), photos["test"], judge)


def _standardise_features(model: NICForConditionalGeneration, photos: PhotoDataset) -> None:
    """Centre the features of the untrained backbone, and scale them to a standard deviation of 0.3."""
    model.train()  # its BatchNorm has no running statistics yet
    pixel_values = torch.stack([photos[index]["pixel_values"] for index in range(512)])
    with torch.no_grad():
        features = model.get_image_features(pixel_values)
    model.set_feature_statistics(features.mean(dim=0), features.std(dim=0) / 0.3)


def _photos(data: str, backbone: str, args: CaptioningTrainingArguments) -> _Task:
    settings = DataSettings(data=data, predict_split="test")
    tables = load_splits(settings, args)
    model, processor = new_captioner(ModelSettings(backbone=backbone), tables["train"], min_frequency=5)
    image_processor = processor.image_processor
    target = getattr(image_processor, "crop_size", None) or image_processor.size
    squeeze_to(image_processor, target["height"], target["width"])
    photos, train, evaluation = caption_datasets(model, processor, tables, settings, args)
    return _Task(model, processor, train, evaluation, photos["predict"])


def _draw_sheet(photos: PhotoDataset, captions: dict[str, str], verdicts: list[bool] | None, path: Path) -> Path:
    few = photos.first(SHEET_PHOTOS)
    rows = [few.photos[row] for row in few.rows]
    references = few.references()
    sheet = contact_sheet(
        [load_photo_row(row["image"]) for row in rows],
        [captions[row["image_id"]] for row in rows],
        notes=[f"reference: {references[row['image_id']][0]}" for row in rows],
        good=None if verdicts is None else verdicts[:SHEET_PHOTOS],
        title="Captions of unseen pictures",
        columns=5,
    )
    return save_picture(sheet, path)


def _report(result: DemoResult, task: _Task, photos_sheet: Path | None, say: Callable[[str], None]) -> None:
    test = task.test
    say("")
    for row in test.rows[:8]:
        example = test.photos[row]
        caption = result.captions[example["image_id"]]
        wrong = explain_caption(caption, Scene.from_json(example["scene"])) if task.judge else None
        say(f"  {example['image_id']}: {caption}" + (f"   WRONG: {wrong}" if wrong else ""))
    say("")
    if "correct" in result.metrics:
        say(
            f"{result.metrics['correct']:.1%} of {len(test)} captions are correct; the combinations of words in these"
            " scenes do not occur in training."
        )
        say("A caption is correct if everything in it is true and no object is missing.")
    say(f"Done in {result.seconds:.0f} s. The contact sheet is {result.sheet}, the captioner {result.checkpoint}:")
    say("")
    say("  from nic_hf import ImageToTextPipeline")
    say(f"  captioner = ImageToTextPipeline.from_pretrained({str(result.checkpoint)!r})")
    say("  print(captioner('photo.png'))")
    if photos_sheet is not None:
        nic = nic_command()
        say("")
        say(f"The photos with their captions: {photos_sheet}. Caption yours, or train on them:")
        say("")
        say(f"  {nic} caption photo.jpg")
        say(f"  {nic} demo --data path/to/flickr8k --backbone google/mobilenet_v2_1.0_224")


def nic_command() -> str:
    """The command `nic` of this Python as a shell takes it: with its path where `nic` would start none or another."""
    own = shutil.which("nic", path=Path(sys.executable).parent)
    if own is None:
        return f"{shlex.quote(sys.executable)} -m nic_hf"
    found = shutil.which("nic")
    if found is not None and Path(found).samefile(own):
        return "nic"
    here = Path.cwd()
    return shlex.quote(str(Path(own).relative_to(here) if Path(own).is_relative_to(here) else own))


def _quieten() -> None:
    """Silence everything except the report and the progress bar."""
    transformers.utils.logging.set_verbosity_error()
    datasets.utils.logging.set_verbosity_error()
    datasets.disable_progress_bars()
    logging.getLogger("nic_hf").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=".*pin_memory.*")
