"""`nic export`."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from .terminal import print_json, reported

export = typer.Typer(name="export", help="Write a captioner in another form, such as ONNX.", no_args_is_help=True)


@export.callback()
def _forms() -> None:
    """Write a captioner in another form, such as ONNX."""


@export.command()
def onnx(
    checkpoint: Annotated[str, typer.Argument(help="A captioner: a folder or a Hub id.", metavar="CHECKPOINT")],
    out: Annotated[Path, typer.Argument(help="Folder to write.", metavar="OUT")],
    int8: Annotated[bool, typer.Option("--int8", help="Weights as 8-bit integers: a quarter of the size.")] = False,
    calibration: Annotated[
        str | None,
        typer.Option(help="Captioned photos to find the ranges of 8-bit computation with, such as a Flickr8k folder."),
    ] = None,
    calibration_split: Annotated[str, typer.Option(help="Split of theirs to take photos from.")] = "train",
    calibration_number: Annotated[int, typer.Option(help="How many photos.", min=1)] = 200,
    as_json: Annotated[bool, typer.Option("--json", help="Print what was written as JSON.")] = False,
) -> None:
    """Write ONNX files that caption without torch and Transformers, checked against PyTorch.

    The folder gets encoder.onnx, first_step.onnx and decoder_step.onnx (opset 18, any number of photos), and all that
    is needed to caption: NICOnnxCaptioner.from_pretrained(OUT).caption("photo.jpg").

    --int8 with --calibration computes in 8 bits with fixed ranges; without it ranges are found in each batch, and
    convolutions are computed in float32.

    Exit code: 0, 2 where nothing could be exported, 130 after Ctrl-C; an earlier export is then as it was.

    \b
    Examples:
      nic export onnx runs/flickr8k captioner-onnx
      nic export onnx runs/flickr8k captioner-int8 --int8 \\
          --calibration path/to/flickr8k
    """
    with reported("export onnx", "stopped; nothing was written"):
        from ..export import calibration_photos, export_onnx

        if calibration is not None and not int8:
            raise ValueError("--calibration is for 8-bit graphs: give --int8 too")
        photos = None
        if calibration is not None:
            photos = calibration_photos(calibration, calibration_split, calibration_number)
        captioner = export_onnx(checkpoint, out, int8=int8, calibration_photos=photos, progress=sys.stderr.isatty())
    size = sum(file.stat().st_size for file in out.iterdir())
    facts = captioner.manifest
    if as_json:
        print_json({"folder": str(out), "bytes": size, **{name: facts[name] for name in facts if name != "files"}})
        return
    line = f"{out}: {facts['precision']}, opset {facts['opset']}, {size / 1e6:.1f} MB"
    if "next_words_as_float32" in facts:
        line += f"; {facts['next_words_as_float32']:.1%} of next words as in float32"
    typer.echo(line)
