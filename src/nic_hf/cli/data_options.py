"""Options of the commands that read captioned photos, the same everywhere."""

from pathlib import Path
from typing import Annotated, Any

import typer

ImagesOption = Annotated[
    str | None,
    typer.Option("--images", help="Folder of the photos of --data.", show_default="found near the captions"),
]
ImageColumnOption = Annotated[
    str | None,
    typer.Option(
        "--image_column", "--image-column", help="Column of the photos' names in --data.", show_default="recognised"
    ),
]
CaptionColumnOption = Annotated[
    str | None,
    typer.Option(
        "--caption_column",
        "--caption-column",
        help="Column of the captions in --data; several with commas between.",
        show_default="recognised",
    ),
]
DevShareOption = Annotated[
    float | None,
    typer.Option(
        "--dev_share",
        "--dev-share",
        help="Share of the dev split, where --data has no splits.",
        show_default="the captioner's, else 0.1",
    ),
]
TestShareOption = Annotated[
    float | None,
    typer.Option(
        "--test_share",
        "--test-share",
        help="Share of the test split, where --data has no splits.",
        show_default="the captioner's, else 0.1",
    ),
]
SplitSeedOption = Annotated[
    int | None,
    typer.Option(
        "--split_seed",
        "--split-seed",
        help="Seed of the hash that splits --data where it has no splits.",
        show_default="the captioner's, else 0",
    ),
]


def data_options(
    captioner: str,
    data: str | None,
    images: str | None,
    image_column: str | None,
    caption_column: str | None,
    dev_share: float | None,
    test_share: float | None,
    split_seed: int | None,
) -> dict[str, Any]:
    """Arguments of `load_captions`: those given, and the shares that a captioner was trained with.

    Raises:
        ValueError: an option is given without --data, or the captioner's recipe cannot be read.
    """
    given: dict[str, Any] = {
        "images": images,
        "image_column": image_column,
        "caption_column": caption_column,
        "dev_share": dev_share,
        "test_share": test_share,
        "split_seed": split_seed,
    }
    given = {name: value for name, value in given.items() if value is not None}
    if data is None:
        if given:
            raise ValueError(f"--{next(iter(given))} has no meaning without --data")
        return {}
    return {**_shares_of(captioner), **given}


def _shares_of(captioner: str) -> dict[str, Any]:
    """How the photos were shared out that a captioner was trained on, from the recipe in its folder."""
    from ..training.checkpoint_integrity import RECIPE_FILE
    from ..training.run_records import read_recipe

    recipe = read_recipe(Path(captioner) / RECIPE_FILE)
    stages = list((recipe or {}).get("stages", {}).values())
    names = ("dev_share", "test_share", "split_seed")
    return {name: stages[-1][name] for name in names if stages and name in stages[-1]}
