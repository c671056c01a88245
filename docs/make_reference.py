"""Writes the pages of docs/reference that follow from the code: the command line, the configuration, the settings.

    python docs/make_reference.py

`tests/test_reference.py` says when they have to be written again.
"""

import dataclasses
import inspect
import re
import textwrap
from collections.abc import Iterable
from pathlib import Path
from typing import Any

REFERENCE = Path(__file__).parent / "reference"
WRITTEN = "<!-- Written by docs/make_reference.py: change the code and run it, and not this page. -->\n"
# How the tests run the examples of the help texts (tests/docs_page.py), by how they begin.
MARKS = {
    "nic train": "<!-- slow-test: trains again what other pages train -->\n",
    "nic demo": "<!-- skip-test: is tested by itself -->\n",
    "nic app": "<!-- skip-test: waits for visitors -->\n",
    "nic doctor": "<!-- test-exit: 0 1 -->\n",
    "nic calibrate": "<!-- skip-test: is tested by itself -->\n",
    "nic card": "<!-- slow-test: needs what nic evaluate wrote -->\n",
    "nic export": "<!-- slow-test: docs/export.md exports -->\n",
    "nic push": "<!-- slow-test: docs/hub.md pushes -->\n",
    "nic evaluate runs/flickr8k --data flickr8k --suite": "<!-- slow-test: docs/evaluation.md runs it too -->\n",
}


def cli_page() -> str:
    """What `typer utils docs` writes, with the examples as blocks of their own."""
    from typer.cli import get_docs_for_click
    from typer.main import get_command

    from nic_hf.cli import app

    command = get_command(app)
    text = get_docs_for_click(obj=command, ctx=command.make_context("nic", [], resilient_parsing=True), name="nic")
    text = re.sub(r"```console\n\$ (.*?)\n```", r"```text\n\1\n```", text)
    text = text.replace("\b\n", "")  # tells help texts not to fill a paragraph
    text = re.sub(r"^(Examples?:)\n((?:  .*\n)+)", _examples, text, flags=re.MULTILINE)
    text = text.replace("# `nic`\n", f"# Command line\n\n{WRITTEN}", 1)
    return text.rstrip() + "\n"


def _examples(found: re.Match) -> str:
    """The commands of a help text, which end where a line has no backslash, as a block each."""
    blocks = [found[1]]
    runs = found.string[: found.start()].count("  nic train ")
    for command in re.findall(r"(?:.*\\\n)*.*\n", textwrap.dedent(found[2])):
        words = " ".join(command.replace("\\\n", " ").split())
        marks = next((marks for start, marks in MARKS.items() if words.startswith(start)), "")
        blocks.append(f"{marks}```bash\n{command}```")
        if words.startswith("nic train ") and "self-critical" not in words:  # which is short
            runs += 1  # a folder can have one run
            blocks.append(f"*Tested with `--num_train_epochs 1 --output_dir runs/{runs}` added.*")
    return "\n\n".join(blocks) + "\n"


def config_page() -> str:
    """The fields of `NICConfig`, from its docstring."""
    from nic_hf import NICConfig

    documentation = inspect.getdoc(NICConfig) or ""
    arguments = documentation.split("Args:\n")[1].split("\nRaises:")[0]
    entries = re.split(r"^    (?=\w[\w, ]* \()", arguments, flags=re.MULTILINE)[1:]
    rows = []
    for entry in entries:
        names, kind, default, meaning = re.fullmatch(
            r"([\w, ]+) \((.*?)(?:, \*optional\*)?(?:, defaults? to (.*?))?\):\s(.*)", entry, flags=re.DOTALL
        ).groups()  # type: ignore[union-attr]
        fields = ", ".join(f"`{name}`" for name in names.split(", "))
        rows.append((fields, kind, default or "", " ".join(meaning.split())))
    return (
        f"# Configuration\n\n{WRITTEN}\nThe fields of `NICConfig`, in `config.json` of every checkpoint, as"
        " arguments of `NICConfig(...)`, and of\n"
        "`NICForConditionalGeneration.from_backbone_pretrained(backbone, ...)`. What training changes of them is among"
        " the\n[settings](settings.md).\n\n" + _table(("field", "type", "default", "meaning"), rows)
    )


def settings_page() -> str:
    """The settings of a recipe, from the metadata of their dataclasses."""
    from transformers import TrainingArguments

    from nic_hf.training import CaptioningTrainingArguments
    from nic_hf.training.recipe_settings import DataSettings, ModelSettings
    from nic_hf.training.self_critical import SelfCriticalTrainingArguments

    plain = {field.name for field in dataclasses.fields(TrainingArguments)}
    defaults = {field.name: _default(field) for field in dataclasses.fields(CaptioningTrainingArguments)}
    parts = []
    for title, kind, inherited in (
        ("The captioner", ModelSettings, ()),
        ("The data", DataSettings, ()),
        ("Training", CaptioningTrainingArguments, ()),
        ("Self-critical training", SelfCriticalTrainingArguments, defaults),
    ):
        rows = [
            (f"`{field.name}`", _default(field), field.metadata.get("help", ""))
            for field in dataclasses.fields(kind)
            if not (field.name in inherited and defaults[field.name] == _default(field))
            and not (field.name in plain and field.name not in kind.__annotations__)
        ]
        parts.append(f"## {title}\n\n{_table(('setting', 'default', 'meaning'), rows)}")
    return (
        f"# Settings of a recipe\n\n{WRITTEN}\n"
        "For `nic train`, as `--name value` or, for one stage, `--STAGE.name value`; for recipes, as `name: value`."
        " All of\n`transformers.TrainingArguments` is there besides; those listed under *Training* have other defaults"
        " here. The recipes'\nown values come before these: `nic train --recipe NAME --show`.\n\n" + "\n".join(parts)
    )


def _default(field: dataclasses.Field) -> str:
    if field.default is not dataclasses.MISSING:
        return "" if field.default is None else f"`{getattr(field.default, 'value', field.default)}`"
    return "with a GPU" if field.default_factory is not dataclasses.MISSING else "has to be given"


def _table(head: Iterable[str], rows: Iterable[Iterable[Any]]) -> str:
    lines = [tuple(head), tuple("---" for _ in head)]
    cells = [tuple(str(cell).replace("|", "\\|") for cell in row) for row in rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in [*lines, *cells])


PAGES = {"cli.md": cli_page, "config.md": config_page, "settings.md": settings_page}


if __name__ == "__main__":
    REFERENCE.mkdir(exist_ok=True)
    for name, page in PAGES.items():
        (REFERENCE / name).write_text(page(), encoding="utf-8", newline="\n")
        print(textwrap.shorten(f"{REFERENCE / name}: {page.__doc__}", 200))
