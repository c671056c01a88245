"""Recipes: YAML files with the settings of one or more training stages.

A recipe is a mapping of settings (fields of [`ModelSettings`], [`DataSettings`] and the training arguments). `stages`
contains a mapping for each stage, in order, which overrides the settings for all stages. The `objective` of a stage is
`cross-entropy`, the default, or `self-critical`.
"""

import dataclasses
import json
import os
import platform
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch
import transformers
import yaml
from transformers import HfArgumentParser, TrainingArguments

from .._version import __version__
from ..writing import write_text
from .arguments import CaptioningTrainingArguments
from .checkpoint_integrity import RECIPE_FILE
from .recipe_files import Settings, load_recipe, merged_settings, recipe_names
from .recipe_settings import DataSettings, ModelSettings
from .self_critical import SelfCriticalTrainingArguments

ARGUMENTS: dict[str, type[CaptioningTrainingArguments]] = {
    "cross-entropy": CaptioningTrainingArguments,
    "self-critical": SelfCriticalTrainingArguments,
}
# Where to write and what to show; none of this changes the result.
_PLACES = ("output_dir", "resume_from_checkpoint", "logging_dir", "cache_dir", "dataloader_pin_memory", "debug")
_SHOWN = (
    "disable_tqdm",
    "report_to",
    "run_name",
    "project",
    "trackio_space_id",
    "log_level",
    "logging_first_step",
    "logging_nan_inf_filter",
)
# Where to push, and a token that must never be written to a file.
_HUB = (
    "push_to_hub",
    "hub_model_id",
    "hub_strategy",
    "hub_token",
    "hub_private_repo",
    "hub_always_push",
    "hub_revision",
)

__all__ = ["ARGUMENTS", "Stage", "as_recipe", "load_recipe", "recipe_names", "resolve", "save_recipe"]


@dataclass
class Stage:
    """One run of a Trainer.

    Attributes:
        name: name of the stage, part of the name of its folder.
        objective: `cross-entropy` or `self-critical`.
        model, data, args: settings.
        split_rule: how data without splits was split; see [`nic_hf.data.load_captions`].
        fixed: names of settings that the user gave, which are not adapted to the data.
    """

    name: str
    objective: str
    model: ModelSettings
    data: DataSettings
    args: CaptioningTrainingArguments
    split_rule: str | None = None
    fixed: frozenset[str] = frozenset()

    def settings(self) -> Settings:
        """All settings of model and data, and training arguments of this package or with other than default values."""
        plain = {field.name: _default(field) for field in dataclasses.fields(TrainingArguments)}
        found: Settings = {"objective": self.objective, **vars(self.model), **vars(self.data)}
        own = {field.name for field in dataclasses.fields(CaptioningTrainingArguments)} - plain.keys()
        for name in _settings_of(type(self.args)):
            value = getattr(self.args, name)
            value = getattr(value, "value", value)  # of an enum
            ours = name in (*own, "seed", *CaptioningTrainingArguments.__annotations__) or name not in plain
            if (ours or value != plain[name]) and _is_plain(value):
                found[name] = value
        return {name: value for name, value in found.items() if name not in (*_PLACES, *_SHOWN, *_HUB)}


class _Parser(HfArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ValueError(message)


def resolve(recipe: Mapping[str, Any], changes: Mapping[str, Any] | None = None) -> list[Stage]:
    """Resolve all settings of the stages of a recipe.

    Args:
        recipe: the recipe, from [`load_recipe`].
        changes: settings that override the recipe: `name` for all stages, `stage.name` for one of them. Values may be
            strings, as from a command line.

    Raises:
        ValueError: if a setting does not exist, or a value has the wrong type.
    """
    known = {"objective"}.union(*(_settings_of(kind) for kind in (ModelSettings, DataSettings, *ARGUMENTS.values())))
    stages = [_stage(name, own) for name, own in merged_settings(recipe, changes, known).items()]
    given = [name.rpartition(".") for name in changes or {}]
    for stage in stages:
        stage.fixed = frozenset(name for owner, _, name in given if owner in ("", stage.name))
    return stages


def as_recipe(stages: Iterable[Stage]) -> Settings:
    """Return the content of `recipe.yaml`: stages with all settings, library versions and how the data was split."""
    stages = list(stages)
    rule = next((stage.split_rule for stage in stages if stage.split_rule), None)
    return {
        **({"split": rule} if rule else {}),
        "versions": {
            "nic_hf": __version__,
            "transformers": transformers.__version__,
            "torch": str(torch.__version__),
            "python": platform.python_version(),
        },
        "stages": {stage.name: stage.settings() for stage in stages},
    }


def save_recipe(stages: Iterable[Stage], folder: str | os.PathLike) -> None:
    """Write `recipe.yaml`, which repeats the training."""
    text = yaml.safe_dump(as_recipe(stages), sort_keys=False, allow_unicode=True, width=119)
    write_text(Path(folder) / RECIPE_FILE, text)


def _stage(name: str, settings: Settings) -> Stage:
    objective = settings.pop("objective", "cross-entropy")
    if objective not in ARGUMENTS:
        raise ValueError(f"stage {name}: objective must be {' or '.join(ARGUMENTS)}, got {objective!r}")
    kinds: list[Any] = [ModelSettings, DataSettings, ARGUMENTS[objective]]
    wanted = set().union(*(_settings_of(kind) for kind in kinds))
    words = [text for key, value in settings.items() if key in wanted for text in _as_options(key, value)]
    try:
        model, data, args = _Parser(kinds, allow_abbrev=False).parse_args_into_dataclasses(words)
    except ValueError as error:
        raise ValueError(f"stage {name}: {error}") from error
    return Stage(name, objective, model, data, args)


def _as_options(name: str, value: Any) -> list[str]:
    if value is None or value == []:
        return []
    if isinstance(value, list | tuple):
        return [f"--{name}", *map(str, value)]
    return [f"--{name}={json.dumps(value) if isinstance(value, dict) else value}"]


def _settings_of(kind: Any) -> list[str]:
    return [field.name for field in dataclasses.fields(kind) if field.init]


def _default(field: dataclasses.Field) -> Any:
    return field.default_factory() if callable(field.default_factory) else field.default


def _is_plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, bool | int | float | str | dict)
