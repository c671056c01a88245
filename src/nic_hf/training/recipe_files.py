"""Read recipes and the names of their settings, without torch and Transformers: mistakes are then said at once."""

import ast
import dataclasses
import difflib
import os
import re
from collections.abc import Collection, Iterable, Mapping
from importlib import resources
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml

from .recipe_settings import DataSettings, ModelSettings

Settings = dict[str, Any]

LISTS = [f.name for kind in (ModelSettings, DataSettings) for f in dataclasses.fields(kind) if f.type == list[str]]
START = "start"  # as a teacher: the captioner that training starts from
NOTES = ("recipe", "description", "versions", "split")  # not settings
# Classes of settings, and the files next to this one that have them.
_SETTINGS = {
    "ModelSettings": "recipe_settings.py",
    "DataSettings": "recipe_settings.py",
    "CaptioningTrainingArguments": "arguments.py",
    "SelfCriticalTrainingArguments": "self_critical.py",
}
_NUMBERS = {"int": (int, "a whole number"), "float": (float, "a number")}
_TRUE_OR_FALSE = ("true", "yes", "t", "y", "1", "false", "no", "f", "n", "0")  # as in HfArgumentParser
_CHOICE = re.compile(r"'([^']*)'")


def recipe_names() -> list[str]:
    """Names of the recipes in the package."""
    return sorted(path.name.removesuffix(".yaml") for path in _folder().iterdir() if path.name.endswith(".yaml"))


def load_recipe(name: str | os.PathLike) -> Settings:
    """Read a recipe: one of [`recipe_names`], or a YAML file.

    Raises:
        OSError: if there is no such recipe.
        ValueError: if the file is not a recipe.
    """
    if str(name) in recipe_names():
        text = (_folder() / f"{name}.yaml").read_text(encoding="utf-8")
    elif Path(name).is_file():
        text = Path(name).read_text(encoding="utf-8-sig")
    else:
        near = difflib.get_close_matches(str(name), recipe_names(), n=1)
        meant = f"did you mean {near[0]}? " if near else ""
        raise FileNotFoundError(
            f"{name}: no such recipe; {meant}use {', '.join(recipe_names())} or the path of a YAML file"
        )
    try:
        recipe = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"{name}: not YAML ({error})") from error
    if not isinstance(recipe, dict):
        raise ValueError(f"{name}: a recipe must be a mapping of settings, got {type(recipe).__name__}")
    stages = recipe.get("stages")
    if not isinstance(stages, dict) or not stages or not all(isinstance(s, dict | None) for s in stages.values()):
        raise ValueError(f"{name}: a recipe needs `stages`, a mapping from stage names to settings")
    return recipe


def merged_settings(
    recipe: Mapping[str, Any], changes: Mapping[str, Any] | None, known: Collection[str] | None
) -> dict[str, Settings]:
    """Return the settings of each stage, as they are written.

    Args:
        recipe: the recipe, from [`load_recipe`].
        changes: settings that override the recipe: `name` for all stages, `stage.name` for one of them.
        known: names of all settings; None to allow any.

    Raises:
        ValueError: if a stage or a setting does not exist.
    """
    stages = {name: dict(own or {}) for name, own in recipe["stages"].items()}
    common = {name: value for name, value in recipe.items() if name not in ("stages", *NOTES)}
    for_all: Settings = {}
    for_one: dict[str, Settings] = {name: {} for name in stages}
    for name, value in (changes or {}).items():
        stage, dot, setting = name.partition(".")
        if dot and stage not in stages:
            raise ValueError(f"--{name}: the recipe has no stage {stage!r}; its stages are {', '.join(stages)}")
        if dot:
            for_one[stage][setting] = value
        else:
            for_all[name] = value
    for settings in (common, for_all, *stages.values(), *for_one.values()):
        for name in settings:
            if known is not None and name not in known:
                near = difflib.get_close_matches(str(name), known, n=1)
                raise ValueError(f"there is no setting {name!r}" + (f"; did you mean {near[0]!r}?" if near else ""))
    return {name: {**common, **own, **for_all, **for_one[name]} for name, own in stages.items()}


def setting_types() -> dict[str, str] | None:
    """Names of all settings with their types as the source of their classes has them; None if that is not there."""
    transformers = find_spec("transformers")
    if transformers is None or transformers.origin is None:
        return None
    here = Path(__file__).parent
    types = {"objective": "str"}
    for kind, path in {
        "TrainingArguments": Path(transformers.origin).with_name("training_args.py"),
        **{name: here / file for name, file in _SETTINGS.items()},
    }.items():
        found = _annotations(path, kind)
        if not found:
            return None
        types |= found
    return types


def check_values(settings: Mapping[str, Any], types: Mapping[str, str]) -> None:
    """Refuse values that are not of the type of their setting: numbers, true or false, and choices.

    Args:
        settings: values as in a recipe, or strings as from a command line.
        types: from [`setting_types`]; other types are not checked.

    Raises:
        ValueError: naming the setting and its value.
    """
    for name, value in settings.items():
        kind = types.get(name, "").removesuffix(" | None")
        if value is None or value == []:
            continue  # the default
        if kind in _NUMBERS:
            number, wanted = _NUMBERS[kind]
            try:
                number(str(value))
            except ValueError:
                raise ValueError(f"{name} must be {wanted}, got {value!r}") from None
        elif kind == "bool" and str(value).lower() not in _TRUE_OR_FALSE:
            raise ValueError(f"{name} must be true or false, got {value!r}")
        elif kind.startswith("Literal[") and str(value) not in (choices := _CHOICE.findall(kind)):
            raise ValueError(f"{name} must be {' or '.join(choices)}, got {value!r}")


def missing_settings(settings: Mapping[str, Any]) -> list[str]:
    """Settings that have no default and are not given."""
    fields = [field for kind in (ModelSettings, DataSettings) for field in dataclasses.fields(kind)]
    needed = [f.name for f in fields if f.default is f.default_factory is dataclasses.MISSING]
    return [name for name in needed if settings.get(name) is None]


def check_new_run(output_dir: str | os.PathLike, stages: Iterable[str], resume: bool) -> list[Path]:
    """Refuse to start a run in a folder that has one, and return the folders of the stages.

    Raises:
        ValueError: if the folder contains a run and `resume` is not set.
    """
    folder = Path(output_dir)
    folders = [folder / f"{number}-{stage}" for number, stage in enumerate(stages, start=1)]
    # Of several processes only the first checks this: when the others arrive, it may already be writing.
    is_first = os.environ.get("RANK", "0") == "0"
    if not resume and is_first and any(path.is_dir() and any(path.iterdir()) for path in folders):
        raise ValueError(f"{folder} already contains a run; resume it with --resume, or choose another --output_dir")
    return folders


def _annotations(path: Path, kind: str) -> dict[str, str]:
    """Annotated names in the body of a class, with their annotations."""
    try:
        tree = ast.parse(path.read_bytes())
    except (OSError, SyntaxError):
        return {}
    bodies = (node.body for node in tree.body if isinstance(node, ast.ClassDef) and node.name == kind)
    return {
        line.target.id: ast.unparse(line.annotation)
        for body in bodies
        for line in body
        if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name)
    }


def _folder() -> Any:
    """Folder of the recipes: in the package if it is installed, in `examples/configs` in the repository."""
    package = resources.files("nic_hf")
    installed = package / "recipes"
    return installed if installed.is_dir() else Path(str(package)).parents[1] / "examples" / "configs"
