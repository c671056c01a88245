"""`nic card`."""

from pathlib import Path
from typing import Annotated

import typer

from ..writing import check_writable
from .checks import check_files, check_own_captioner
from .terminal import reported

CAPTIONER = typer.Argument(help="Folder of the captioner: a run or a checkpoint.", metavar="CAPTIONER")


def card(
    captioner: Annotated[Path, CAPTIONER],
    output: Annotated[Path | None, typer.Option(help="Output file; by default README.md in the folder.")] = None,
    evaluation: Annotated[Path | None, typer.Option(help="evaluation.json of `nic evaluate`, for the scores.")] = None,
    split: Annotated[str, typer.Option(help="Split of the evaluation.")] = "test",
    name: Annotated[str | None, typer.Option(help="Name of the captioner.")] = None,
    note: Annotated[str | None, typer.Option(help="Second paragraph of the card.")] = None,
    repo: Annotated[str | None, typer.Option(help="Hub id, for the usage example.")] = None,
    license: Annotated[str | None, typer.Option(help="Licence of the captioner, as the Hub spells it.")] = None,
    language: Annotated[str | None, typer.Option(help="Language of the captions, such as en.")] = None,
    data: Annotated[str | None, typer.Option(help="Name or Hub id of the training data.")] = None,
    data_license: Annotated[str | None, typer.Option(help="Licence of the data, in words.")] = None,
    backbone: Annotated[str | None, typer.Option(help="Name or Hub id of the backbone.")] = None,
    backbone_license: Annotated[str | None, typer.Option(help="Licence of the backbone, in words.")] = None,
    photo: Annotated[list[Path] | None, typer.Option(help="Photo to caption for the card; may be repeated.")] = None,
) -> None:
    """Write the model card of a captioner.

    Training writes a card. This command adds test scores, licences and captions of other photos.

    Exit code: 0 on success, 2 on an error.

    \b
    Example:
      nic card runs/flickr8k --license apache-2.0 \\
          --evaluation evaluation/evaluation.json
    """
    with reported("card"):
        check_own_captioner(captioner)
        check_files(evaluation, photo)
        check_writable(captioner if output is None else output.parent)
        from ..training.model_cards import CardFacts, write_model_card

        facts = CardFacts(
            name=name,
            note=note,
            repo_id=repo,
            license=license,
            language=language,
            data=data,
            data_license=data_license,
            backbone=backbone,
            backbone_license=backbone_license,
            split=split,
            examples=_captions(captioner, photo or []),
        )
        typer.echo(write_model_card(captioner, facts, output=output, evaluation=evaluation))


def _captions(captioner: Path, photos: list[Path]) -> dict[str, str]:
    if not photos:
        return {}
    from ..model.captioner import NICForConditionalGeneration
    from ..model.pipeline import ImageToTextPipeline
    from ..model.processor import NICProcessor

    model = NICForConditionalGeneration.from_pretrained(captioner)
    pipeline = ImageToTextPipeline(model=model, processor=NICProcessor.from_pretrained(captioner))
    return {photo.name: pipeline(photo)[0]["generated_text"] for photo in photos}
