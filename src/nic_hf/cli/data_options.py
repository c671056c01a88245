"""Options for reading `--data`, shared by several commands."""

import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

OPTIONS: dict[str, Any] = {
    "images": Annotated[
        str | None,
        typer.Option("--images", help="Folder of the photos of --data.", show_default="found near the captions"),
    ],
    "image_column": Annotated[
        str | None,
        typer.Option(
            "--image_column",
            "--image-column",
            help="Column of photo names in --data.",
            show_default="recognised",
        ),
    ],
    "caption_column": Annotated[
        str | None,
        typer.Option(
            "--caption_column",
            "--caption-column",
            help="Column of captions in --data, or several separated by commas.",
            show_default="recognised",
        ),
    ],
    "dev_share": Annotated[
        float | None,
        typer.Option(
            "--dev_share",
            "--dev-share",
            help="Share of the dev split, if --data has no splits.",
            show_default="the captioner's, else 0.1",
        ),
    ],
    "test_share": Annotated[
        float | None,
        typer.Option(
            "--test_share",
            "--test-share",
            help="Share of the test split, if --data has no splits.",
            show_default="the captioner's, else 0.1",
        ),
    ],
    "split_seed": Annotated[
        int | None,
        typer.Option(
            "--split_seed",
            "--split-seed",
            help="Seed of the hash that splits --data, if it has no splits.",
            show_default="the captioner's, else 0",
        ),
    ],
}


def takes_data_options(command: Callable[..., None]) -> Callable[..., None]:
    """Replace the parameter `data_options` of a command by these options; it gets a dictionary of those given."""
    parameters: list[inspect.Parameter] = []
    for parameter in inspect.signature(command).parameters.values():
        if parameter.name == "data_options":
            parameters += [parameter.replace(name=name, annotation=kind) for name, kind in OPTIONS.items()]
        else:
            parameters.append(parameter)

    @functools.wraps(command)
    def with_options(**arguments: Any) -> None:
        options = {name: arguments.pop(name) for name in OPTIONS}
        given = {name: value for name, value in options.items() if value is not None}
        command(**arguments, data_options=given)

    # Read by typer.
    with_options.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    with_options.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return with_options


def load_options(captioner: str, data: str | None, given: dict[str, Any]) -> dict[str, Any]:
    """Return arguments of `load_captions`: the given options, and the split shares a captioner was trained with.

    Raises:
        ValueError: an option is given without --data, or the captioner's recipe cannot be read.
    """
    if data is None:
        if given:
            raise ValueError(f"--{next(iter(given))} requires --data")
        return {}
    return {**_shares_of(captioner), **given}


def _shares_of(captioner: str) -> dict[str, Any]:
    """Return the split shares in the recipe of a captioner."""
    from ..training.checkpoint_integrity import RECIPE_FILE
    from ..training.run_records import read_recipe

    recipe = read_recipe(Path(captioner) / RECIPE_FILE)
    stages = list((recipe or {}).get("stages", {}).values())
    names = ("dev_share", "test_share", "split_seed")
    return {name: stages[-1][name] for name in names if stages and name in stages[-1]}
