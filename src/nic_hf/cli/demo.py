"""`nic demo`."""

from typing import Annotated

import typer

from ..lookup import look_up
from ..writing import check_writable
from .checks import check_data
from .terminal import print_json, reported


def demo(
    output: Annotated[str, typer.Option(help="Folder for the captioner, its captions and a contact sheet.")] = "demo",
    data: Annotated[
        str | None, typer.Option(help="Your captioned photos, such as a Flickr8k folder. Requires --backbone.")
    ] = None,
    backbone: Annotated[
        str | None, typer.Option(help="Pretrained vision model: a Hub id or a path. Requires --data.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of data, weights and training.")] = 0,
    epochs: Annotated[float | None, typer.Option(help="Number of passes over the captions.", min=0.001)] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the result as JSON; the report goes to standard error.")
    ] = False,
) -> None:
    """Train on built-in scenes, and caption unseen ones.

    Trains a captioner from scratch, and captions scenes with combinations of words that do not occur in training. It
    takes two to three minutes on two cores and downloads nothing. The result is the share of correct captions and a
    contact sheet.

    Exit code: 0 on success, 2 on an error, 130 after Ctrl-C.

    \b
    Examples:
      nic demo
      nic demo --data flickr8k \\
          --backbone google/mobilenet_v2_1.0_224 --output runs/flickr8k
    """
    with reported("demo"):
        if (data is None) != (backbone is None):
            raise ValueError("--data and --backbone: give both, or neither for the built-in scenes")
        check_data(data)
        if backbone is not None:
            look_up(backbone, "backbone")
        check_writable(output)
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
