"""`nic demo`."""

from typing import Annotated

import typer

from .terminal import print_json, reported


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
    as_json: Annotated[
        bool, typer.Option("--json", help="Print what came of it as JSON; the report goes to standard error.")
    ] = False,
) -> None:
    """Train on built-in scenes, and caption unseen ones.

    A captioner is trained from scratch, and captions scenes whose combinations of words it has never seen. It takes
    two to three minutes on two cores and needs no download. It ends with the share of captions that are right and a
    contact sheet to look at.

    Exit code: 0, 2 where nothing could be done, 130 after Ctrl-C.

    \b
    Examples:
      nic demo
      nic demo --data flickr8k \\
          --backbone google/mobilenet_v2_1.0_224 --output runs/flickr8k
    """
    with reported("demo"):
        from ..demo import run_demo

        result = run_demo(
            output, data, backbone, seed=seed, epochs=epochs, say=lambda line: typer.echo(line, err=as_json)
        )
    if as_json:
        print_json(
            {
                "checkpoint": str(result.checkpoint),
                "sheet": str(result.sheet),
                "metrics": result.metrics,
                "seconds": round(result.seconds, 1),
            }
        )
