"""`nic caption`."""

import gc
import json
import os
import signal
import sys
from collections import Counter
from contextlib import contextmanager, suppress
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..writing import check_writable
from .checks import check_calibrated, check_data, check_files, find_captioner
from .data_options import load_options, takes_data_options
from .terminal import A_CAPTIONER, FAILED, INTERRUPTED, OWN_CAPTIONER, fail, reported, silence_transformers

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..captioning import CaptionRun, CaptionSink, CaptionSummary, Processes

SHOWN = 20


class OnBroken(StrEnum):
    """What to do if a photo cannot be read."""

    SKIP = "skip"
    FAIL = "fail"


@takes_data_options
def caption(
    paths: Annotated[
        list[str] | None,
        typer.Argument(
            help="Photos, folders, patterns, URLs, tar files; - for paths on standard input.",
            metavar="PATH",
            show_default=False,
        ),
    ] = None,
    model: Annotated[str | None, typer.Option(help=A_CAPTIONER, show_default=OWN_CAPTIONER)] = None,
    output: Annotated[
        Path | None, typer.Option(help="File to write: .jsonl, .csv, .parquet, or .json (COCO results).")
    ] = None,
    sidecar: Annotated[bool, typer.Option("--sidecar", help="Write dog.txt next to dog.jpg.")] = False,
    lists: Annotated[
        list[Path] | None, typer.Option("--list", help="Text file of paths and URLs, one per line.")
    ] = None,
    data: Annotated[str | None, typer.Option(help="Captioned photos, such as a Flickr8k folder or a Hub id.")] = None,
    split: Annotated[str | None, typer.Option(help="Split of --data.", show_default="all of it")] = None,
    data_options: dict[str, Any] | None = None,
    num_captions: Annotated[int, typer.Option(help="Captions per photo, best first.", min=1)] = 1,
    num_beams: Annotated[
        int | None, typer.Option(help="Beam size; 1 is greedy.", min=1, show_default="the captioner's")
    ] = None,
    sample: Annotated[bool, typer.Option("--sample", help="Sample captions instead of searching.")] = False,
    temperature: Annotated[
        float | None, typer.Option(help="With --sample: below 1 favours likely words.", show_default="1")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="With --sample: seed for reproducible captions.")] = None,
    max_new_tokens: Annotated[
        int | None, typer.Option(help="Maximum length of a caption in words.", min=1, show_default="the captioner's")
    ] = None,
    min_confidence: Annotated[
        float | None,
        typer.Option(help="Leave out captions that are less likely to be accepted by people, 0 to 1.", min=0, max=1),
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Photos per batch.", min=1)] = 32,
    workers: Annotated[
        int | None, typer.Option(help="Threads that read photos.", min=1, show_default="cores, at most 8")
    ] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, ...", show_default="a GPU if available")] = None,
    on_error: Annotated[OnBroken, typer.Option(help="If a photo cannot be read.")] = OnBroken.SKIP,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace existing captions.")] = False,
    timeout: Annotated[float, typer.Option(help="Timeout of a download in seconds.", min=0.1)] = 30.0,
    allow_private: Annotated[
        bool, typer.Option("--allow-private-urls", help="Allow downloads from private addresses.")
    ] = False,
    contact_sheet: Annotated[
        Path | None, typer.Option(help="Picture (.png) of the first photos with their captions.")
    ] = None,
    contact_sheet_photos: Annotated[int, typer.Option(help="Photos in this picture.", min=1, max=100)] = 40,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print captions, or the summary of --output, as JSON.")
    ] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", help="Print the model, its device and the terms of its weights first.")
    ] = False,
) -> None:
    """Caption photos.

    Captions are printed, one per line (name, tab, caption), or written to a file with --output, or next to the photos
    with --sidecar. If the run is stopped, the same command continues it: photos that have a caption are skipped.
    Photos that cannot be read are listed at the end; other files in a folder are counted.

    --json, .jsonl, .csv and .parquet have the confidence of each caption, the chance that people accept it, if the
    captioner is calibrated (nic calibrate). Photos that --min-confidence leaves out are counted at the end.

    Exit code: 0, 1 if photos could not be read, 2 if nothing could be captioned, 130 after Ctrl-C, which keeps the
    captions so far.

    \b
    Examples:
      nic caption photo.jpg
      nic caption holiday/ --output captions.csv \\
          --contact-sheet sheet.png
      find . -name '*.jpg' | nic caption - --model runs/flickr8k \\
          --output captions.jsonl
      nic caption --data flickr8k --split test --model runs/flickr8k \\
          --output captions.json

    Several processes that write one file: torchrun --nproc_per_node 4 -m nic_hf caption ... --output captions.jsonl
    """
    with reported("caption", "stopped; nothing was captioned yet"):
        if output is not None and sidecar:
            raise ValueError("--output and --sidecar: give one of them")
        if contact_sheet is not None:
            from ..contact_sheet import check_picture_path

            check_picture_path(contact_sheet)
        model = find_captioner(model)
        if min_confidence is not None:
            check_calibrated(model)
        check_data(data)
        check_files(lists)
        for file in (output, contact_sheet):
            if file is not None:
                check_writable(file.parent)
        generation = _generation(num_captions, num_beams, sample, temperature, seed, max_new_tokens)
        with _no_garbage_collection():
            from ..captioning import CaptionRun, PhotoSources, Processes, SidecarFiles, is_onnx, load_captioner
            from ..captioning.about import about_captioner
            from ..captioning.caption_formats import caption_format

            options = load_options(model, data, data_options or {})
            photos = PhotoSources(paths or (), lists=lists or (), data=data, split=split, data_options=options)
            if sidecar and not photos.are_files:
                raise ValueError(
                    "--sidecar is for photos that are files, not URLs, tar files or datasets; give --output"
                )
            if output is not None:
                caption_format(output)  # refuses other names before a model is loaded
            _quieten(is_onnx(model))
            processes = Processes.launched()
            captioner = load_captioner(model, device)
            if verbose and processes.rank == 0:
                for name, fact in about_captioner(captioner, generation).items():
                    typer.echo(f"{name}: {fact}", err=True)
            if min_confidence is not None and isinstance(captioner.calibration, str):
                raise ValueError(f"{model}: {captioner.calibration}")
            has_field = as_json if output is None else output.suffix.lower() != ".json"
            with_confidence = has_field and not sidecar and not isinstance(captioner.calibration, str)
            made_by = {"captioner": captioner.digest(), "num_captions": num_captions, **generation}
            if not isinstance(captioner.calibration, str) and (with_confidence or min_confidence is not None):
                made_by |= {"confidence": asdict(captioner.calibration), "min_confidence": min_confidence}
            sink = (
                SidecarFiles(overwrite)
                if sidecar
                else _sink(output, made_by, captioner.name, overwrite, as_json, processes)
            )
            run = CaptionRun(
                captioner,
                photos,
                sink,
                num_captions=num_captions,
                batch_size=batch_size,
                workers=workers,
                on_error=on_error.value,
                timeout=timeout,
                allow_private=True if allow_private else None,
                progress=output is not None or sidecar or not sys.stdout.isatty(),
                sheet=contact_sheet_photos if contact_sheet is not None else 0,
                processes=processes,
                with_confidence=with_confidence,
                min_confidence=min_confidence,
                **generation,
            )
    summary, interrupted = _run(run, contact_sheet)
    if run.processes.rank == 0:
        _report(summary, output, sidecar, as_json)
    if interrupted:
        raise typer.Exit(INTERRUPTED)
    nothing = not summary.captioned and not summary.already and not summary.unsure
    raise typer.Exit((FAILED if nothing else 1) if summary.broken else 0)


def _run(run: "CaptionRun", contact_sheet: Path | None) -> "tuple[CaptionSummary, bool]":
    """Run, and return the summary and whether Ctrl-C ended the run."""
    from ..captioning import BrokenPhotoError

    interrupted: list[int] = []
    with reported("caption", "stopped; the same command continues"):
        try:
            with _graceful(run, interrupted):
                summary = run.run()
                if contact_sheet is not None and run.processes.rank == 0:
                    run.draw_sheet(contact_sheet)
        except BrokenPipeError:
            # At exit, Python would complain that it cannot write buffered output.
            with suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            fail("caption", "nothing reads the captions any more", 1)
        except BrokenPhotoError as error:
            fail("caption", error, 1)
    return summary, bool(interrupted)


def _generation(
    num_captions: int,
    num_beams: int | None,
    sample: bool,
    temperature: float | None,
    seed: int | None,
    max_new_tokens: int | None,
) -> dict[str, Any]:
    """Return arguments of `generate()`; the captioner's defaults apply to those not given."""
    if not sample and (temperature is not None or seed is not None):
        raise ValueError("--temperature and --seed have no meaning without --sample")
    if temperature is not None and temperature <= 0:
        raise ValueError(f"--temperature must be above 0, not {temperature}")
    if sample:
        settings: dict[str, Any] = {"do_sample": True, "num_beams": num_beams or 1, "temperature": temperature}
    else:
        if num_beams is not None and num_captions > num_beams:
            raise ValueError(
                f"--num-captions {num_captions} needs as many beams: --num-beams {num_captions}, or --sample"
            )
        settings = {"num_beams": num_beams or (max(3, num_captions) if num_captions > 1 else None)}
    settings |= {"seed": seed, "max_new_tokens": max_new_tokens}
    return {name: value for name, value in settings.items() if value is not None}


def _sink(
    output: Path | None,
    made_by: dict[str, Any],
    model: str,
    overwrite: bool,
    as_json: bool,
    processes: "Processes",
) -> "CaptionSink":
    """Return the sink for a file of captions, or for standard output."""
    from .._version import __version__
    from ..captioning import CaptionFile, Printed

    if output is None:
        if processes.number > 1:
            raise ValueError("several processes need a file for their captions: give --output")
        return Printed(sys.stdout, as_json)
    return CaptionFile(
        output,
        made_by,
        about={"model": model, "nic_hf": __version__},
        captions_a_photo=made_by["num_captions"],
        overwrite=overwrite,
        process=processes.rank,
        processes=processes.number,
    )


def _quieten(is_onnx: bool) -> None:
    """Reserve the terminal for captions and one progress bar; ONNX captioners do not import Transformers."""
    import logging

    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    os.environ["HF_DATASETS_DISABLE_PROGRESS_BARS"] = "1"  # read when Datasets is imported
    if not is_onnx:
        silence_transformers()
    if "datasets" in sys.modules:
        sys.modules["datasets"].disable_progress_bars()


@contextmanager
def _no_garbage_collection() -> "Iterator[None]":
    """Disable garbage collection during imports, and exempt what they create.

    They create a million objects that live on; collecting among them takes a sixth of the start with PyTorch.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if was_on:
            gc.enable()


@contextmanager
def _graceful(run: "CaptionRun", interrupted: list[int]) -> "Iterator[None]":
    """Let the first Ctrl-C end the run after the current batch, and a second one at once."""

    def stop(number: int, frame: Any) -> None:
        if interrupted:
            raise KeyboardInterrupt
        interrupted.append(number)
        run.stop()

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _report(summary: "CaptionSummary", output: Path | None, sidecar: bool, as_json: bool) -> None:
    from ..download import without_secrets
    from ..photo_files import left_out_line

    if sidecar:
        summary.left_out.pop(".txt", None)  # captions of an earlier run or of the user
    if as_json and (output is not None or sidecar):
        document = {
            "output": None if output is None else str(output),
            "captioned": summary.captioned,
            "already": summary.already,
            "repeated": summary.repeated,
            "broken": [vars(photo) for photo in summary.broken],
            "left_out": summary.left_out,
            "unsure": summary.unsure,
            "finished": summary.finished,
            "seconds": round(summary.seconds, 3),
        }
        typer.echo(json.dumps(document))
    for photo in summary.broken[:SHOWN]:
        name = without_secrets(photo.image_id) if "://" in photo.image_id else photo.image_id
        reason = photo.error.removeprefix(f"{name}: ").removeprefix("the photo: ")
        typer.echo(f"{name}: {reason}", err=True)
    if len(summary.broken) > SHOWN:
        where = f" (all of them in {output.name}.run.json)" if output is not None else ""
        typer.echo(f"and {len(summary.broken) - SHOWN} more{where}", err=True)
    if summary.left_out:
        typer.echo(left_out_line(Counter(summary.left_out)), err=True)
    if summary.unsure:
        typer.echo(f"{summary.unsure:,} photos left out: no caption reached --min-confidence", err=True)
    is_one = len(summary.broken) == 1 and not summary.captioned and summary.finished  # its reason is enough
    if output is not None or sidecar or (summary.broken and not is_one) or not summary.finished:
        rate = f", {summary.captioned / summary.seconds:.1f} per second" if summary.seconds > 1 else ""
        line = f"{summary.captioned:,} photos captioned{rate}"
        line += f"; {summary.already:,} had captions" if summary.already else ""
        line += f"; {len(summary.broken):,} could not be read" if summary.broken else ""
        line += "" if summary.finished else "; stopped: the same command continues"
        typer.echo(line if output is None else f"{output}: {line}", err=True)
