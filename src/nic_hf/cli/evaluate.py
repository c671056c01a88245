"""`nic evaluate`."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from ..writing import check_writable
from .checks import check_data, check_files, find_captioner
from .data_options import load_options, takes_data_options
from .terminal import OWN_CAPTIONER, print_json, reported


class Suite(StrEnum):
    """What to compute for a captioner."""

    SCORES = "scores"
    SHOW_AND_TELL = "show-and-tell"


@takes_data_options
def evaluate(
    source: Annotated[
        str | None,
        typer.Argument(
            help="A captioner (folder, Hub id or name) or a file of captions (JSON lines, COCO results).",
            metavar="[SOURCE]",
            show_default=OWN_CAPTIONER,
        ),
    ] = None,
    data: Annotated[
        str | None, typer.Option(help="Captioned photos to evaluate a captioner on, such as a Flickr8k folder.")
    ] = None,
    references: Annotated[
        Path | None, typer.Option(help="Reference captions for a file of captions (COCO JSON or JSON lines).")
    ] = None,
    suite: Annotated[
        Suite, typer.Option(help="Scores for each beam size, or all tables of the paper.")
    ] = Suite.SCORES,
    output: Annotated[Path, typer.Option(help="Output folder for the report of a captioner.")] = Path("evaluation"),
    split: Annotated[
        str | None,
        typer.Option(
            help="Split to evaluate on, or all for all photos.", show_default="test, or dev if there is no test split"
        ),
    ] = None,
    data_options: dict[str, Any] | None = None,
    train_split: Annotated[
        str | None, typer.Option(help="Training split, for the share of novel captions; '' for none.")
    ] = "train",
    beams: Annotated[str | None, typer.Option(help="Beam sizes, such as 1,3,20.", show_default="3, or 1,3,20")] = None,
    metrics: Annotated[
        str | None,
        typer.Option(
            help="Any of bleu,rouge_l,cider,meteor,spice.", show_default="bleu,rouge_l,cider and, with Java, meteor"
        ),
    ] = None,
    transfer: Annotated[
        list[str] | None, typer.Option(help="NAME=DATA: also caption another data set. Can be given several times.")
    ] = None,
    run: Annotated[
        Path | None,
        typer.Option(
            help="Training run (for a recipe, the folder of a stage) whose checkpoints to score and plot over time."
        ),
    ] = None,
    compare: Annotated[
        Path | None, typer.Option(help="Another file of captions of the same photos, for a paired test.")
    ] = None,
    per_image: Annotated[
        Path | None, typer.Option(help="JSON-lines file to write the scores of each photo to.")
    ] = None,
    allow_partial: Annotated[
        bool, typer.Option("--allow-partial", help="Score only the photos that have a caption.")
    ] = False,
    max_photos: Annotated[int | None, typer.Option(help="Evaluate on the first photos only.", min=1)] = None,
    cache_dir: Annotated[Path | None, typer.Option(help="Folder to keep image features in between runs.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the scores as JSON.")] = False,
) -> None:
    """Score captions, or evaluate a captioner and write a report.

    BLEU, ROUGE-L and CIDEr-D are equal to pycocoevalcap 1.2's, without Java, and have 95 % bootstrap intervals. METEOR
    is added if Java is available. Scores are printed in percent; files and --json have fractions.

    Exit code: 0 on success, 2 on an error, 130 after Ctrl-C (run the same command to continue).

    \b
    Examples:
      nic evaluate predictions.jsonl --references captions_val2014.json
      nic evaluate ours.jsonl --references refs.json --compare theirs.jsonl
      nic evaluate --data flickr8k
      nic evaluate runs/flickr8k --data flickr8k \\
          --suite show-and-tell --run runs/flickr8k/1-frozen
    """
    with reported("evaluate", "stopped; run the same command to continue"):
        if source is not None and Path(source).is_file():
            if references is None:
                raise ValueError(f"{source} is a file of captions: give --references")
            check_files(references, compare)
            if per_image is not None:
                check_writable(per_image.parent)
            from ..evaluation.file_scores import score_file

            result = score_file(
                source,
                references,
                metrics=_names(metrics),
                compare=compare,
                per_image=per_image,
                allow_partial=allow_partial,
            )
            print_json(result) if as_json else typer.echo(_lines(result))
            return
        if compare is not None or per_image is not None or references is not None:
            what = "no file" if source is None else f"{source}: no such file"
            what = f"{source}: not a file" if source is not None and Path(source).exists() else what
            raise ValueError(f"{what}; --references, --compare and --per-image need a file of captions")
        full = suite is Suite.SHOW_AND_TELL
        numbers = _beams(beams, full)
        others = dict(_pair(text) for text in transfer or ())
        captioner = find_captioner(source)
        if data is None:
            known = "" if source is None else f"{source} is not a file, so it must be a captioner: "
            raise ValueError(f"{known}give --data, photos with captions")
        for photos in (data, *others.values()):
            check_data(photos)
        if run is not None and not run.is_dir():
            raise FileNotFoundError(f"{run}: no such folder of a training run")
        check_writable(output)
        from ..evaluation.suite import PARTS, evaluate_captioner

        results = evaluate_captioner(
            captioner,
            data,
            output,
            split=split,
            data_options=load_options(captioner, data, data_options or {}),
            train_split=train_split or None,
            include=PARTS if full else ("generation",),
            beams=numbers,
            metrics=_names(metrics),
            transfer=others,
            run=run,
            max_photos=max_photos,
            cache_dir=cache_dir,
        )
        beam = next((part for name, part in results.items() if name == "beam 3"), next(iter(results.values())))
        scores = {name: beam[name] for name in ("num_beams", "scores", "intervals")}
        print_json(scores) if as_json else typer.echo(_lines(scores))
        typer.echo(f"Report: {output / 'report.html'} (and report.md, evaluation.json)", err=as_json)


def _names(text: str | None) -> list[str] | None:
    return None if text is None else [name.strip() for name in text.split(",")]


def _beams(text: str | None, full: bool) -> tuple[int, ...]:
    if text is None:
        return (1, 3, 20) if full else (3,)
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise ValueError(f"--beams is {text!r}; it must be comma-separated numbers, such as 1,3,20") from None


def _pair(text: str) -> tuple[str, str]:
    name, equals, source = text.partition("=")
    if not (name and equals and source):
        raise ValueError(f"--transfer is {text!r}; it must be NAME=DATA, such as flickr30k=path/to/flickr30k")
    return name, source


def _lines(result: dict[str, Any]) -> str:
    """Scores in percent, one per line; JSON has fractions."""
    lines = []
    for name, value in result["scores"].items():
        line = f"{name:10}{100 * value:7.2f} %"
        if name in result.get("intervals", {}):
            low, high = result["intervals"][name]
            line += f"   {100 * low:.2f} to {100 * high:.2f}"
        if name in result.get("compared", {}):
            other = result["compared"][name]
            line += f"   other {100 * other['second']:.2f}, {100 * other['difference']:+.2f}, p {other['p_value']:.3f}"
        lines.append(line)
    return "\n".join(lines)
