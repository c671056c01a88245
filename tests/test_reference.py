"""The reference pages say what the code says: all fields of the configuration, all options, all settings."""

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

from nic_hf import NICConfig

DOCS = Path(__file__).parents[1] / "docs"


@pytest.fixture(scope="module")
def maker() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_reference", DOCS / "make_reference.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["cli.md", "config.md", "settings.md"])
def test_the_page_is_as_the_code_says(maker: ModuleType, name: str) -> None:
    written = (DOCS / "reference" / name).read_text("utf-8")
    assert written == maker.PAGES[name](), f"docs/reference/{name} is old: run python docs/make_reference.py"


def test_every_field_of_the_configuration_is_there_with_its_default() -> None:
    rows = re.findall(r"^\| (`.*?) \| .*? \| (.*?) \|", (DOCS / "reference" / "config.md").read_text("utf-8"), re.M)
    defaults: dict[str, str] = {}
    for names, values in rows:
        fields = [name.strip("` ") for name in names.split(",")]
        given = [value.strip("` ") for value in values.split(", ")] if values.strip() else [""] * len(fields)
        defaults.update(zip(fields, given, strict=True))
    own = {name: getattr(NICConfig, name) for name in NICConfig.__annotations__}
    assert defaults == {name: "" if value is None else str(value) for name, value in own.items()}


def test_every_command_and_option_that_help_shows_is_there() -> None:
    from typer.main import get_command

    from nic_hf.cli import app

    page = (DOCS / "reference" / "cli.md").read_text("utf-8")
    commands = dict(get_command(app).commands)  # type: ignore[attr-defined]
    commands.update({f"export {name}": command for name, command in commands.pop("export").commands.items()})
    for name, command in commands.items():
        section = page.split(f"## `nic {name}`\n")[1].split("\n## ")[0]
        for parameter in command.params:
            if parameter.param_type_name == "option":
                assert all(option in section for option in parameter.opts), (name, parameter.opts)


def test_every_setting_of_the_recipes_is_there() -> None:
    import dataclasses

    from nic_hf.training.recipe_settings import DataSettings, ModelSettings

    page = (DOCS / "reference" / "settings.md").read_text("utf-8")
    names = [field.name for kind in (ModelSettings, DataSettings) for field in dataclasses.fields(kind)]
    assert not [name for name in names if f"| `{name}` |" not in page]
