"""Recipes: what their files say, and what is changed on the command line."""

import tomllib
from pathlib import Path

import pytest
import yaml

from nic_hf.training.recipes import Stage, load_recipe, recipe_names, resolve, save_recipe

ROOT = Path(__file__).parents[2]
HERE = {"data": "photos", "backbone": "vision"}


def one_stage(**settings: object) -> dict:
    return {"stages": {"only": {**HERE, **settings}}}


@pytest.mark.parametrize("name", ["paper", "frozen", "finetune", "compact", "self-critical"])
def test_the_recipes_of_the_package_resolve(name: str, tmp_path: Path) -> None:
    assert name in recipe_names()
    stages = resolve(load_recipe(name), {**HERE, "use_cpu": "true"})
    assert stages[0].objective == "cross-entropy" and stages[0].model.freeze_backbone
    save_recipe(stages, tmp_path)
    again = resolve(load_recipe(tmp_path / "recipe.yaml"))
    assert [stage.settings() for stage in again] == [stage.settings() for stage in stages]


def test_what_a_recipe_says_arrives_and_the_rest_is_the_default() -> None:
    paper = resolve(load_recipe("paper"), HERE)[0]
    assert (paper.args.num_train_epochs, paper.args.learning_rate, paper.model.dropout) == (16, 7e-4, 0.5)
    finetune = resolve(load_recipe("finetune"), HERE)[1]
    assert not finetune.model.freeze_backbone and finetune.model.freeze_batch_norm
    assert finetune.args.backbone_learning_rate is not None
    assert finetune.args.backbone_learning_rate < finetune.args.learning_rate
    assert resolve(load_recipe("self-critical"), HERE)[1].objective == "self-critical"


def test_a_stage_goes_before_the_recipe_and_the_command_line_before_both() -> None:
    recipe = {**HERE, "dropout": 0.1, "num_beams": 7, "stages": {"a": None, "b": {"dropout": 0.2}, "c": {}}}
    assert [stage.model.dropout for stage in resolve(recipe)] == [0.1, 0.2, 0.1]
    assert [stage.model.dropout for stage in resolve(recipe, {"dropout": "0.3"})] == [0.3, 0.3, 0.3]
    changed = resolve(recipe, {"dropout": "0.3", "b.dropout": 0.4})
    assert [stage.model.dropout for stage in changed] == [0.3, 0.4, 0.3]
    assert all(stage.model.num_beams == 7 for stage in changed)


@pytest.mark.parametrize("written", ["5e-4", "5.0e-4", 0.0005])
def test_numbers_may_be_written_as_people_write_them(written: object) -> None:
    assert resolve(one_stage(learning_rate=written))[0].args.learning_rate == 5e-4


def test_other_types_arrive_too() -> None:
    recipe = one_stage(lr_scheduler_kwargs={"num_cycles": 0.4}, use_cpu=True, report_to=["none"], word_vectors=None)
    stage = resolve(recipe)[0]
    assert stage.args.lr_scheduler_kwargs == {"num_cycles": 0.4}
    assert stage.args.use_cpu and stage.args.report_to == [] and stage.model.word_vectors is None


@pytest.mark.parametrize(
    ("recipe", "changes", "message"),
    [
        (one_stage(learning_rat=1), {}, "no setting 'learning_rat'; did you mean 'learning_rate'"),
        (one_stage(), {"only.droput": "0.1"}, "no setting 'droput'; did you mean 'dropout'"),
        (one_stage(), {"other.dropout": "0.1"}, "no stage 'other'; its stages are only"),
        (one_stage(learning_rate="fast"), {}, "stage only: argument --learning_rate.*'fast'"),
        (one_stage(objective="guessing"), {}, "objective must be cross-entropy or self-critical, got 'guessing'"),
        ({"stages": {"only": {"data": "photos"}}}, {}, "stage only: .*required: --backbone"),
        (one_stage(ema_decay=2), {}, "stage only: ema_decay must be at least 0 and below 1"),
        (one_stage(early_stopping_patience=0), {}, "early_stopping_patience must be at least 1"),
    ],
)
def test_what_cannot_be_is_refused(recipe: dict, changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        resolve(recipe, changes)


@pytest.mark.parametrize(
    ("text", "message"), [("a: [", "not YAML"), ("- a", "got list"), ("dropout: 0.1", "needs `stages`")]
)
def test_a_file_that_is_no_recipe_is_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "my.yaml"
    path.write_text(text, "utf-8")
    with pytest.raises(ValueError, match=f"my.yaml.*{message}"):
        load_recipe(path)


def test_a_recipe_that_does_not_exist_is_refused_with_those_that_do() -> None:
    with pytest.raises(FileNotFoundError, match=r"best: no such recipe; use adapt, compact, distill, finetune"):
        load_recipe("best")


def test_settings_leave_out_places_and_are_plain_yaml() -> None:
    stage = resolve(load_recipe("frozen"), {**HERE, "cache_dir": "somewhere", "output_dir": "elsewhere"})[0]
    assert isinstance(stage, Stage)
    settings = stage.settings()
    assert not {"cache_dir", "output_dir"} & settings.keys() and settings["seed"] == 42
    assert yaml.safe_load(yaml.safe_dump(settings)) == settings


def test_the_wheel_holds_every_package_and_the_recipes() -> None:
    """`packages` is a list, as the recipes lie elsewhere; a new package must not be left out."""
    setup = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["setuptools"]
    source = ROOT / "src"
    found = {".".join(path.parent.relative_to(source).parts) for path in source.rglob("__init__.py")}
    assert set(setup["packages"]) == found | {"nic_hf.recipes"}
    assert (ROOT / setup["package-dir"]["nic_hf.recipes"] / "paper.yaml").is_file()
