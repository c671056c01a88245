"""`nic demo`."""

from typing import Annotated

import typer


def demo(
    output: Annotated[
        str, typer.Option(help="Folder for the captioner, its captions and the contact sheet.")
    ] = "demo",
    data: Annotated[
        str | None, typer.Option(help="Captioned photos of yours, such as a Flickr8k folder. Needs --backbone.")
    ] = None,
    backbone: Annotated[
        str | None, typer.Option(help="Pretrained vision model for them: a Hub id or a path. Needs --data.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of data, weights and training.")] = 0,
    epochs: Annotated[float | None, typer.Option(help="Passes over the captions.", min=0.001)] = None,
) -> None:
    """Train a captioner from scratch on built-in scenes, then caption scenes it has never seen.

    It takes two to three minutes on two cores and needs no download. It ends with the share of captions that are right
    and a contact sheet to look at.

    Examples:

        nic demo

        nic demo --data flickr8k --backbone google/mobilenet_v2_1.0_224 --output runs/flickr8k
    """
    from ..demo import run_demo

    try:
        run_demo(output, data, backbone, seed=seed, epochs=epochs, say=typer.echo)
    except (OSError, ValueError) as error:
        typer.echo(f"nic demo: {error}", err=True)
        raise typer.Exit(2) from error
