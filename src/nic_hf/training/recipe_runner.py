"""Run the stages of a recipe."""

import dataclasses
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import transformers
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments, set_seed

from ..evaluation.score_names import percent
from ..model.captioner import NICForConditionalGeneration
from ..model.processor import NICProcessor
from ..writing import write_bytes, write_text
from .checkpoint_integrity import RECIPE_FILE
from .distillation import (
    DistillationTrainer,
    Teacher,
    add_teacher_captions,
    load_teachers,
    photos_without_captions,
    soft_targets,
)
from .hub_upload import push_captioner
from .model_cards import CardFacts, write_model_card
from .progress_callback import show_progress
from .recipe_files import START, check_new_run
from .recipes import Stage, as_recipe, save_recipe
from .sample_captions import SampleCaptionsCallback
from .self_critical import SelfCriticalTrainer
from .small_data import fitting_model, scale_to_data
from .stage_inputs import caption_datasets, load_splits, new_captioner, trained_captioner
from .trainer import CaptioningTrainer

logger = logging.getLogger(__name__)

FINISHED = "finished.json"


def run_recipe(
    stages: Sequence[Stage], output_dir: str | Path, from_checkpoint: str | None = None, resume: bool = False
) -> dict[str, float]:
    """Run the stages of a recipe; each starts from the best weights of the one before.

    Stages write to the folders `1-frozen`, `2-finetune`, ... of `output_dir`; the last captioner is saved in
    `output_dir` itself. `recipe.yaml`, with all settings, and `README.md`, the model card, are there and in every
    checkpoint. With `push_to_hub` the final captioner is pushed to `hub_model_id`, by default a repository with the
    folder's name.

    Args:
        stages: the stages, from [`resolve`].
        output_dir: the folder of the run.
        from_checkpoint: a captioner to start the first stage from, instead of a new one.
        resume: resume an interrupted run. Finished stages are not repeated, and an unfinished one continues from its
            last checkpoint.

    Returns:
        The evaluation of the final captioner.

    Raises:
        OSError: if the folder cannot be written, or the Hub refuses.
        ValueError: if a finished stage had other settings, or the folder contains a run and `resume` is not set.
    """
    folder = Path(output_dir)
    stages[0].args.output_dir = str(folder)
    stages[0].args.check_paths()
    names = [stage.name for stage in stages]
    folders = check_new_run(folder, names, resume or not stages[0].args.should_save)
    finished = [_finished(path, stage) for path, stage in zip(folders, stages, strict=True)]
    for stage in stages:
        stage.args.hub_model_id = stage.args.hub_model_id or folder.resolve().name
    start, metrics = from_checkpoint, {}
    for stage, own, done in zip(stages, folders, finished, strict=True):
        if done is None:
            logger.info(f"Stage {stage.name}: {stage.objective}, in {own}")
            metrics = _run_stage(stage, stages, own, start, resume)
        else:
            logger.info(f"Stage {stage.name} is finished: {own}")
            metrics = done
        start = str(own)
    args = stages[-1].args
    if args.should_save:
        _publish(folders[-1], folder)
        if args.push_to_hub:
            options: dict[str, Any] = {
                "private": args.hub_private_repo,
                "token": args.hub_token,
                "revision": args.hub_revision,
            }
            commit = push_captioner(folder, str(args.hub_model_id), **options)
            logger.info(f"Pushed: {commit.commit_url}")
    return metrics


def _run_stage(stage: Stage, stages: Sequence[Stage], folder: Path, start: str | None, resume: bool) -> dict[str, Any]:
    args = stage.args
    args.output_dir = str(folder)
    args.check_paths()
    if args.should_log:
        transformers.utils.logging.set_verbosity(args.get_process_log_level())
    set_seed(args.seed)
    tables = load_splits(stage.data, args)
    stage.split_rule = tables["train"].info.description or None
    requested = stage.settings()
    if start is None:
        stage.model = fitting_model(stage.model, len(tables["train"]), stage.fixed)
        model, processor = new_captioner(stage.model, tables["train"], stage.data.min_frequency)
    else:
        # Later stages keep the vocabulary of the first one.
        foreign = tables["train"] if stage is stages[0] else None
        model, processor = trained_captioner(stage.model, start, foreign, stage.data.min_frequency)
    model.to(device=args.device)  # type: ignore[call-arg]
    data = stage.data
    if stage.objective == "self-critical":  # samples are scored against all captions of their photo
        data = dataclasses.replace(data, captions_per_sample=max(map(len, tables["train"]["captions"])))
    teachers = _teachers(stage, tables, start)
    photos, train, evaluation = caption_datasets(model, processor, tables, data, args, set_statistics=start is None)
    if teachers:
        train.soft_targets = soft_targets(teachers, train, processor.tokenizer, args.device)
    scaled = scale_to_data(args, len(train), stage.fixed)
    if scaled:
        logger.warning(scaled)
    trainer = _trainer_of(stage)(
        model=model,
        args=args,
        train_dataset=train,
        eval_dataset=evaluation,
        processing_class=processor,
        callbacks=[
            SampleCaptionsCallback(photos["eval"].first(stage.data.num_sample_photos)),
            _SaveRecipe(stages),
        ],
    )
    if args.should_save:
        save_recipe(stages, folder.parent)  # not before: a run that cannot begin leaves nothing behind
    show_progress(trainer)
    trainer.recipe = as_recipe(stages)
    trainer.card_facts = CardFacts(name=folder.resolve().parent.name)
    result = trainer.train(resume_from_checkpoint="last" if resume else None)
    trainer.save_model()
    trainer.save_state()
    metrics = {**result.metrics, **trainer.evaluate()}
    _compare_with_start(trainer.state.log_history, metrics, start)
    if "predict" in photos and stage is stages[-1]:
        captions = trainer.caption(photos["predict"])
        if trainer.is_world_process_zero():
            path = folder / f"predictions_{stage.data.predict_split}.json"
            write_text(path, json.dumps(captions, indent=1, ensure_ascii=False))
    trainer.create_model_card()
    if trainer.is_world_process_zero():
        save_recipe(stages, folder)
        write_text(folder / FINISHED, json.dumps({"settings": requested, "metrics": metrics}, indent=1))
    trainer.accelerator.end_training()
    return metrics


def _compare_with_start(history: list[dict[str, float]], metrics: dict[str, Any], start: str | None) -> None:
    """Add the score before the first step (`eval_on_start`) to the metrics, and warn if it was higher."""
    before = [line["eval_cider"] for line in history if line["step"] == 0 and "eval_cider" in line]
    if not before:
        return
    metrics["eval_cider_before_training"] = before[0]
    if start is not None and before[0] > metrics["eval_cider"]:
        logger.warning(
            f"CIDEr-D on the validation photos was {percent(before[0])} % before training and is "
            f"{percent(metrics['eval_cider'])} % now: {start} may be the better captioner for photos like these"
        )


def _trainer_of(stage: Stage) -> type[CaptioningTrainer]:
    if stage.objective == "self-critical":
        return SelfCriticalTrainer
    return DistillationTrainer if stage.data.teacher else CaptioningTrainer


def _teachers(stage: Stage, tables: dict[str, datasets.Dataset], start: str | None) -> list[Teacher]:
    """Load the teachers of a stage, and add their captions, and photos without captions, to the training photos."""
    data = stage.data
    if stage.objective == "self-critical" or not data.teacher:
        return []
    if start is None and START in data.teacher:
        raise ValueError(f"stage {stage.name}: the teacher {START} is the captioner of from_checkpoint: give one")
    names = [start if start is not None and name == START else name for name in data.teacher]
    if data.unlabeled is not None:
        more = photos_without_captions(data.unlabeled, tables["train"])
        tables["train"] = datasets.concatenate_datasets([tables["train"].select_columns(more.column_names), more])
    with stage.args.main_process_first(desc="teachers"):
        options = {"cache_dir": data.cache_dir, "on_error": data.on_error}
        teachers = load_teachers(names, tables["train"], stage.args.device, **options)
    number = max(data.teacher_captions, int(data.unlabeled is not None))
    if number:
        tables["train"] = add_teacher_captions(tables["train"], teachers, number)
    return teachers


class _SaveRecipe(TrainerCallback):
    """Save the recipe in each checkpoint."""

    def __init__(self, stages: Sequence[Stage]) -> None:
        self.stages = stages

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            save_recipe(self.stages, Path(args.output_dir or ".") / f"checkpoint-{state.global_step}")


def _finished(folder: Path, stage: Stage) -> dict[str, float] | None:
    """Return the evaluation of a finished stage, or None.

    Raises:
        ValueError: if its settings were different; the message names them.
    """
    path = folder / FINISHED
    if not path.is_file():
        return None
    done = json.loads(path.read_text(encoding="utf-8"))
    before, now = done["settings"], json.loads(json.dumps(stage.settings()))
    names = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    other = [f"{name}: {before.get(name)!r}, now {now.get(name)!r}" for name in names]
    if other:
        raise ValueError(f"{folder} was trained with other settings ({'; '.join(other)}); choose another output_dir")
    return done["metrics"]


def _publish(last: Path, folder: Path) -> None:
    """Save the captioner of the last stage in the folder of the run."""
    NICForConditionalGeneration.from_pretrained(last).save_pretrained(folder)
    NICProcessor.from_pretrained(last).save_pretrained(folder)
    for path in (last / "trainer_state.json", *last.glob("predictions_*.json"), last / RECIPE_FILE):
        if path.is_file():
            write_bytes(folder / path.name, path.read_bytes())
    write_model_card(folder, samples=last / "samples")
