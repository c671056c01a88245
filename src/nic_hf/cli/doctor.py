"""`nic doctor`."""

import textwrap
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..lookup import look_up
from .checks import check_data, find_captioner
from .data_options import load_options, takes_data_options
from .terminal import print_json, reported, silence_transformers

if TYPE_CHECKING:
    from ..doctor import Finding


@takes_data_options
def doctor(
    model: Annotated[str, typer.Argument(help="A captioner: a folder or a Hub id.", metavar="MODEL")],
    data: Annotated[str | None, typer.Option(help="Captioned photos like the training data, for more checks.")] = None,
    split: Annotated[str | None, typer.Option(help="Split of --data.", show_default="all of it")] = None,
    data_options: dict[str, Any] | None = None,
    backbone: Annotated[
        str | None, typer.Option(help="The pretrained vision model that it was built on, to compare with.")
    ] = None,
    max_photos: Annotated[int, typer.Option(help="Number of photos of --data to use.", min=8)] = 64,
    as_json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False,
) -> None:
    """Find problems of a captioner, and what to do about them.

    Checks versions, files, vocabulary, preprocessing, whether a frozen backbone has changed, and whether captions
    depend on the photo.

    Exit code: 0 if there are no problems, 1 if there are, 2 on an error.

    \b
    Examples:
      nic doctor runs/flickr8k
      nic doctor runs/flickr8k --data flickr8k --split dev \\
          --backbone google/mobilenet_v2_1.0_224
    """
    with reported("doctor"):
        model = find_captioner(model)
        check_data(data)
        if backbone is not None:
            look_up(backbone, "backbone")
        from ..doctor import Status, examine

        silence_transformers()
        options = load_options(model, data, data_options or {})
        findings = examine(
            model, data=data, split=split, data_options=options, backbone=backbone, max_photos=max_photos
        )
    problems = [finding for finding in findings if finding.status == Status.PROBLEM]
    if as_json:
        print_json({"model": model, "ok": not problems, "findings": [finding.to_json() for finding in findings]})
    else:
        for finding in findings:
            typer.echo(_lines(finding))
        typer.echo("")
        typer.echo(
            "No problems found." if not problems else f"{len(problems)} problem(s) found; start with the first."
        )
    raise typer.Exit(1 if problems else 0)


def _lines(finding: "Finding") -> str:
    mark = finding.status.value.upper() if finding.status == "problem" else finding.status.value
    text = textwrap.fill(finding.message, 110, initial_indent=" " * 29, subsequent_indent=" " * 29).lstrip()
    lines = f"{mark:8} {finding.check:19} {text}"
    if finding.advice:
        lines += "\n" + textwrap.fill(finding.advice, 110, initial_indent=" " * 29 + "-> ", subsequent_indent=" " * 32)
    return lines
