"""`nic calibrate`."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from ..writing import check_writable
from .checks import check_data, check_own_captioner
from .data_options import load_options, takes_data_options
from .terminal import print_json, reported, silence_transformers


@takes_data_options
def calibrate(
    captioner: Annotated[
        Path, typer.Argument(help="Folder of the captioner: a run or a checkpoint.", metavar="CAPTIONER")
    ],
    data: Annotated[str, typer.Option(help="Captioned photos like the training data.", show_default=False)],
    split: Annotated[
        str, typer.Option(help="Split of --data that the captioner was not trained on; not the test split.")
    ] = "validation",
    data_options: dict[str, Any] | None = None,
    cache_dir: Annotated[Path | None, typer.Option(help="Folder to keep image features in between runs.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
) -> None:
    """Fit the confidence of a captioner.

    The confidence of a caption is the chance that people accept it. It is fitted on captioned photos, and on made-up
    screens, pages and drawings that no caption fits, and written into the captioner's config.json. nic caption, nic
    app and the pipeline then give it for each caption. A captioner that is trained further loses it.

    Exit code: 0 on success, 2 on an error.

    \b
    Example:
      nic calibrate runs/flickr8k --data flickr8k
    """
    with reported("calibrate"):
        check_own_captioner(captioner)
        check_data(data)
        check_writable(captioner)
        from ..evaluation import calibrate as fit_confidence

        silence_transformers()
        options = load_options(str(captioner), data, data_options or {})
        found = fit_confidence(captioner, data, split=split, data_options=options, cache_dir=cache_dir)
    if as_json:
        print_json({**found, "calibration": asdict(found["calibration"])})
        return
    figures = found["held_out"]
    typer.echo(f"{found['photos']:,} photos; people would accept {100 * found['accepted']:.0f} % of their captions")
    typer.echo(
        f"confidence, held out: AUROC {figures['auroc']:.3f}, Brier score {figures['brier']:.3f} "
        f"({figures['brier_base']:.3f} without it), calibration error {figures['ece']:.3f}"
    )
    typer.echo(f"made-up pictures: at most {100 * found['odd']:.0f} %")
    typer.echo(f"Written: {captioner / 'config.json'}")
