"""`nic export`."""

from pathlib import Path
from typing import Annotated

import typer

from ..writing import check_writable
from .checks import check_data, find_captioner
from .terminal import OWN_CAPTIONER, print_json, reported

export = typer.Typer(name="export", help="Export a captioner to another format, such as ONNX.", no_args_is_help=True)


@export.callback()
def _forms() -> None:
    """Export a captioner to another format, such as ONNX."""


@export.command()
def onnx(
    folders: Annotated[
        list[str],
        typer.Argument(
            help=f"A captioner (folder, Hub id or name; default: {OWN_CAPTIONER}), and the output folder.",
            metavar="[CAPTIONER] OUT",
            show_default=False,
        ),
    ],
    int8: Annotated[
        bool, typer.Option("--int8", help="Store weights as 8-bit integers (a quarter of the size).")
    ] = False,
    calibration: Annotated[
        str | None,
        typer.Option(help="Captioned photos for static quantization with --int8, such as a Flickr8k folder."),
    ] = None,
    calibration_split: Annotated[str, typer.Option(help="Split to take calibration photos from.")] = "train",
    calibration_number: Annotated[int, typer.Option(help="Number of calibration photos.", min=1)] = 200,
    as_json: Annotated[bool, typer.Option("--json", help="Print facts about the export as JSON.")] = False,
) -> None:
    """Export a captioner to ONNX files that run without torch and Transformers, verified against PyTorch.

    The folder contains encoder.onnx, first_step.onnx and decoder_step.onnx (opset 18, any number of photos), the
    tokenizer and the configurations. Load it with NICOnnxCaptioner.from_pretrained(OUT).caption("photo.jpg").

    With --int8 and --calibration, activations have fixed 8-bit ranges. With --int8 alone, ranges are computed for each
    batch, and convolutions are computed in float32.

    Exit code: 0 on success, 2 on an error, 130 after Ctrl-C. On failure an earlier export is not changed.

    \b
    Examples:
      nic export onnx captioner-onnx
      nic export onnx runs/flickr8k captioner-int8 --int8 \\
          --calibration path/to/flickr8k
    """
    with reported("export onnx", "stopped; nothing was written"):
        if calibration is not None and not int8:
            raise ValueError("--calibration needs --int8")
        if len(folders) > 2:
            raise ValueError(f"give a captioner and the output folder, not {len(folders)} names")
        checkpoint, out = find_captioner(folders[0] if len(folders) == 2 else None), Path(folders[-1])
        check_data(calibration)
        check_writable(out)
        from ..export.onnx_folder import check_output_folder

        check_output_folder(out)
        from ..export import calibration_photos, export_onnx

        photos = None
        if calibration is not None:
            photos = calibration_photos(calibration, calibration_split, calibration_number)
        captioner = export_onnx(checkpoint, out, int8=int8, calibration_photos=photos, progress=True)
    size = sum(file.stat().st_size for file in out.iterdir())
    facts = captioner.manifest
    if as_json:
        print_json({"folder": str(out), "bytes": size, **{name: facts[name] for name in facts if name != "files"}})
        return
    line = f"{out}: {facts['precision']}, opset {facts['opset']}, {size / 1e6:.1f} MB"
    if "next_words_as_float32" in facts:
        line += f"; {facts['next_words_as_float32']:.1%} of next words as in float32"
    typer.echo(line)
