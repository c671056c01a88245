"""`nic train`."""

import logging
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from ..writing import check_writable
from .checks import check_data, check_model, find_captioner
from .terminal import print_json, reported

SETTINGS = {"allow_extra_args": True, "ignore_unknown_options": True}
_MEANING = {
    "data": "captioned photos (a folder, a file or a Hub id)",
    "backbone": "a pretrained vision model, such as google/mobilenet_v2_1.0_224",
}


def train(
    context: typer.Context,
    recipe: Annotated[
        str | None,
        typer.Option(
            help="paper, frozen, finetune, compact, distill, self-critical, adapt, or a YAML file (recipe.yaml of a"
            " run).",
            show_default="frozen; with --from_checkpoint adapt",
        ),
    ] = None,
    data: Annotated[str | None, typer.Option(help="Captioned photos: a folder, a file or a Hub id.")] = None,
    backbone: Annotated[str | None, typer.Option(help="Pretrained vision model: a Hub id or a path.")] = None,
    output_dir: Annotated[str, typer.Option("--output_dir", "--output-dir", help="Folder for the run.")] = "runs/nic",
    from_checkpoint: Annotated[
        str | None,
        typer.Option(
            "--from_checkpoint",
            "--from-checkpoint",
            help="Captioner to start from, such as flickr8k, which comes with nic_hf; it replaces the first stage of"
            " a recipe with several.",
        ),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Resume an interrupted run.")] = False,
    show: Annotated[bool, typer.Option("--show", help="Print all settings of the recipe and exit.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the validation scores as JSON (fractions).")] = False,
) -> None:
    """Train a captioner with a recipe.

    Any setting of a recipe can be changed: --learning_rate 5e-4 for all stages, --finetune.learning_rate 5e-4 for one
    of them. --show lists all settings. They are saved as recipe.yaml in each checkpoint, and --recipe
    runs/flickr8k/recipe.yaml repeats the training.

    Exit code: 0 on success, 2 on an error, 130 after Ctrl-C; resume with the same command and --resume.

    \b
    Examples:
      nic train --data flickr8k \\
          --backbone google/mobilenet_v2_1.0_224 --output_dir runs/flickr8k
      nic train --recipe finetune --data flickr8k \\
          --backbone google/mobilenet_v2_1.0_224 \\
          --finetune.num_train_epochs 4
      nic train --recipe self-critical --data flickr8k \\
          --from_checkpoint runs/flickr8k --output_dir runs/better

    Two processes or GPUs: torchrun --nproc_per_node 2 -m nic_hf train ...
    """
    with reported("train", "stopped; add --resume to the command to continue from the last checkpoint"):
        from ..training.recipe_files import load_recipe

        changes = _changes(context.args)
        changes.update({name: value for name, value in (("data", data), ("backbone", backbone)) if value is not None})
        settings = load_recipe(recipe or ("frozen" if from_checkpoint is None else "adapt"))
        if from_checkpoint is not None:
            from_checkpoint = find_captioner(from_checkpoint)
            changes.setdefault("backbone", from_checkpoint)  # it has a backbone
            settings = {**settings, "stages": _after_first(settings["stages"])}
        _check(settings, changes, None if show else output_dir, resume, from_checkpoint)
        from ..training.recipes import resolve

        stages = resolve(settings, changes)
        if show:
            import yaml

            shown = {stage.name: stage.settings() for stage in stages}
            typer.echo(yaml.safe_dump(shown, sort_keys=False, allow_unicode=True), nl=False)
            return
        from ..training.recipe_runner import run_recipe

        logging.basicConfig(level=logging.INFO if stages[0].args.should_log else logging.WARNING, format="%(message)s")
        metrics = run_recipe(stages, output_dir, from_checkpoint, resume)
    if not stages[0].args.should_log:
        return
    from ..evaluation.score_names import percent

    if as_json:
        print_json({"output_dir": output_dir, "metrics": metrics})
    else:
        before = metrics.get("eval_cider_before_training")
        typer.echo(
            f"{output_dir}: BLEU-4 {percent(metrics['eval_bleu_4'])} %, CIDEr-D {percent(metrics['eval_cider'])} % "
            + ("(validation)" if before is None else f"(validation; CIDEr-D {percent(before)} % before training)")
        )


def _check(
    recipe: dict[str, Any], changes: dict[str, Any], output_dir: str | None, resume: bool, from_checkpoint: str | None
) -> None:
    """Check names and types of settings and, if a run is to begin, what they name."""
    from ..training.recipe_files import (
        START,
        check_new_run,
        check_values,
        merged_settings,
        missing_settings,
        setting_types,
    )

    types = setting_types()
    stages = merged_settings(recipe, changes, types)
    for settings in stages.values():
        check_values(settings, types or {})
    missing = dict.fromkeys(name for settings in stages.values() for name in missing_settings(settings))
    if missing:
        raise ValueError("give " + " and ".join(f"--{name}, {_MEANING.get(name, 'a setting')}" for name in missing))
    if output_dir is None:
        return
    if from_checkpoint is None and START in _teachers(next(iter(stages.values()))):
        raise ValueError(f"the teacher {START!r} is the captioner that training starts from: give --from_checkpoint")
    for settings in stages.values():
        check_data(str(settings["data"]))
        for name in ("backbone", "word_vectors"):
            if settings.get(name):
                check_model(str(settings[name]), name)
        for name in _teachers(settings):
            if name != START:
                find_captioner(name)
    check_writable(output_dir)
    check_new_run(output_dir, stages, resume)


def _teachers(settings: dict[str, Any]) -> list[str]:
    teachers = settings.get("teacher") or []
    return teachers if isinstance(teachers, list) else [teachers]


def _changes(words: Sequence[str]) -> dict[str, Any]:
    """Parse `--name value`, `--name=value` and switches `--name`. Dashes in names mean underscores."""
    from ..training.recipe_files import LISTS

    changes: dict[str, Any] = {}
    name = None
    for word in words:
        if word.startswith("--"):
            name, equals, value = word[2:].partition("=")
            stage, dot, setting = name.rpartition(".")
            name = f"{stage}{dot}{setting.replace('-', '_')}"  # names of stages keep their dashes
            changes[name] = value if equals else "true"
            name = None if equals else name
        elif name is None:
            raise ValueError(f"unexpected argument {word!r}: settings have the form --name value")
        elif name.rpartition(".")[-1] in LISTS:
            changes[name] = [*changes[name], word] if isinstance(changes[name], list) else [word]
        else:
            changes[name], name = word, None
    return changes


def _after_first(stages: dict) -> dict:
    """Return the stages that a checkpoint does not replace."""
    return dict(list(stages.items())[1:]) or stages
