"""Recipes: named settings for one or more stages of training, in small YAML files; each value can be changed.

A recipe is a mapping of settings (fields of [`ModelSettings`], [`DataSettings`] and the training arguments). Under
`stages` it has one mapping for each stage, in order, whose settings go before those of all stages. A stage's
`objective` is `cross-entropy`, the default, or `self-critical`.
"""

import dataclasses
import difflib
import json
import os
import platform
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import resources
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
from .recipe_settings import DataSettings, ModelSettings
from .self_critical import SelfCriticalTrainingArguments

ARGUMENTS: dict[str, type[CaptioningTrainingArguments]] = {
    "cross-entropy": CaptioningTrainingArguments,
    "self-critical": SelfCriticalTrainingArguments,
}
# What says where to work and what to show, and nothing of the result.
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
# Where it is pushed to, and a token that must never be written down.
_HUB = (
    "push_to_hub",
    "hub_model_id",
    "hub_strategy",
    "hub_token",
    "hub_private_repo",
    "hub_always_push",
    "hub_revision",
)
_NOTES = ("recipe", "description", "versions", "split")  # of a file; no settings

Settings = dict[str, Any]


@dataclass
class Stage:
    """One run of a Trainer.

    Attributes:
        name: of the stage, part of its folder's name.
        objective: `cross-entropy` or `self-critical`.
        model, data, args: its settings.
        split_rule: how data without splits was split; see [`nic_hf.data.load_captions`].
    """

    name: str
    objective: str
    model: ModelSettings
    data: DataSettings
    args: CaptioningTrainingArguments
    split_rule: str | None = None

    def settings(self) -> Settings:
        """Every setting of model and data, and those of the Trainer that are this package's or not its default."""
        plain = {field.name: _default(field) for field in dataclasses.fields(TrainingArguments)}
        found: Settings = {"objective": self.objective, **vars(self.model), **vars(self.data)}
        own = {field.name for field in dataclasses.fields(CaptioningTrainingArguments)} - plain.keys()
        for name in _settings_of(type(self.args)):
            value = getattr(self.args, name)
            value = getattr(value, "value", value)  # of an enumeration
            ours = name in (*own, "seed", *CaptioningTrainingArguments.__annotations__) or name not in plain
            if (ours or value != plain[name]) and _is_plain(value):
                found[name] = value
        return {name: value for name, value in found.items() if name not in (*_PLACES, *_SHOWN, *_HUB)}


class _Parser(HfArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ValueError(message)


def recipe_names() -> list[str]:
    """Names of the recipes that come with the package."""
    return sorted(path.name.removesuffix(".yaml") for path in _folder().iterdir() if path.name.endswith(".yaml"))


def load_recipe(name: str | os.PathLike) -> Settings:
    """Read a recipe: one of [`recipe_names`], or a YAML file.

    Raises:
        OSError: where there is no such recipe.
        ValueError: where the file is no recipe; it is named.
    """
    if str(name) in recipe_names():
        text = (_folder() / f"{name}.yaml").read_text(encoding="utf-8")
    elif Path(name).is_file():
        text = Path(name).read_text(encoding="utf-8-sig")
    else:
        raise FileNotFoundError(
            f"{name}: no such recipe; there are {', '.join(recipe_names())}, or give the path of a YAML file"
        )
    try:
        recipe = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"{name}: not YAML ({error})") from error
    if not isinstance(recipe, dict):
        raise ValueError(f"{name}: a recipe is a mapping of settings, not {type(recipe).__name__}")
    stages = recipe.get("stages")
    if not isinstance(stages, dict) or not stages or not all(isinstance(s, dict | None) for s in stages.values()):
        raise ValueError(f"{name}: a recipe needs `stages`, a mapping from each stage's name to its settings")
    return recipe


def resolve(recipe: Mapping[str, Any], changes: Mapping[str, Any] | None = None) -> list[Stage]:
    """The stages of a recipe with all settings.

    Args:
        recipe: from [`load_recipe`].
        changes: settings that go before the recipe's: `name` for all stages, `stage.name` for one of them. Values may
            be text, as from a command line.

    Raises:
        ValueError: naming a setting that does not exist, with the nearest that does, or a value of the wrong type.
    """
    stages = {name: dict(own or {}) for name, own in recipe["stages"].items()}
    common = {name: value for name, value in recipe.items() if name not in ("stages", *_NOTES)}
    for_all: Settings = {}
    for_one: dict[str, Settings] = {name: {} for name in stages}
    for name, value in (changes or {}).items():
        stage, dot, setting = name.partition(".")
        if dot and stage not in stages:
            raise ValueError(f"--{name}: the recipe has no stage {stage!r}; it has {', '.join(stages)}")
        if dot:
            for_one[stage][setting] = value
        else:
            for_all[name] = value
    known = {"objective"}.union(*(_settings_of(kind) for kind in (ModelSettings, DataSettings, *ARGUMENTS.values())))
    for settings in (common, for_all, *stages.values(), *for_one.values()):
        _check_names(settings, known)
    return [_stage(name, {**common, **own, **for_all, **for_one[name]}) for name, own in stages.items()]


def as_recipe(stages: Iterable[Stage]) -> Settings:
    """The stages with all settings and versions, as `recipe.yaml` holds them, and how the data was split."""
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
    """Write `recipe.yaml`, from which the same training can be run again."""
    text = yaml.safe_dump(as_recipe(stages), sort_keys=False, allow_unicode=True, width=119)
    write_text(Path(folder) / RECIPE_FILE, text)


def _stage(name: str, settings: Settings) -> Stage:
    objective = settings.pop("objective", "cross-entropy")
    if objective not in ARGUMENTS:
        raise ValueError(f"stage {name}: objective must be {' or '.join(ARGUMENTS)}, not {objective!r}")
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


def _check_names(settings: Settings, known: set[str]) -> None:
    for name in settings:
        if name not in known:
            near = difflib.get_close_matches(str(name), known, n=1)
            raise ValueError(f"there is no setting {name!r}" + (f"; is {near[0]!r} meant?" if near else ""))


def _settings_of(kind: Any) -> list[str]:
    return [field.name for field in dataclasses.fields(kind) if field.init]


def _default(field: dataclasses.Field) -> Any:
    return field.default_factory() if callable(field.default_factory) else field.default


def _is_plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, bool | int | float | str | dict)


def _folder() -> Any:
    """Where the recipes are: beside the package where it is installed, in `examples/configs` in its repository."""
    package = resources.files("nic_hf")
    installed = package / "recipes"
    return installed if installed.is_dir() else Path(str(package)).parents[1] / "examples" / "configs"
