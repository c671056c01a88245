"""`evaluate_captioner`: the tables and the report for a checkpoint and captioned photos."""

import json
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ...data import load_captions
from ...data.errors import NoSplitError, OnError
from ...digests import captioner_digest, settings_digest
from ...model.captioner import NICForConditionalGeneration
from ...model.processor import NICProcessor
from ...progress_bar import progress_bar
from ...writing import check_writable, write_text
from ..paper.published import NEIGHBOUR_WORDS
from ..score_names import check_metrics
from ..scores import default_metrics
from . import tables
from .report import write_report
from .result_file import ResultFile

logger = logging.getLogger(__name__)

PARTS = ("generation", "n_best", "ranking", "neighbours")
BEAMS = (1, 3, 20)


def evaluate_captioner(
    checkpoint: str | os.PathLike[str],
    data: str | os.PathLike[str],
    output: str | os.PathLike[str] = "evaluation",
    *,
    split: str | None = None,
    data_options: Mapping[str, Any] | None = None,
    train_split: str | None = "train",
    include: Sequence[str] = PARTS,
    beams: Sequence[int] = BEAMS,
    metrics: Sequence[str] | None = None,
    transfer: Mapping[str, str | os.PathLike[str]] | None = None,
    run: str | os.PathLike[str] | None = None,
    run_split: str = "validation",
    words: Sequence[str] = NEIGHBOUR_WORDS,
    max_photos: int | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    on_error: OnError = "raise",
    seed: int = 0,
) -> dict[str, Any]:
    """Compute the tables of *Show and Tell* for a checkpoint, and write a report.

    Parts that an earlier call finished for the same checkpoint, photos and settings are read from `output`.

    Args:
        checkpoint: folder or Hub id of the captioner.
        data: captioned photos, in any form of [`nic_hf.data.load_captions`].
        output: folder for `report.html`, `report.md` with its images, `evaluation.json` and
            `predictions-beam<k>.jsonl`.
        split: split to evaluate on. Defaults to test, or to validation if there is no test split.
        data_options: arguments of [`nic_hf.data.load_captions`] for `data`, such as `images` or `dev_share`.
        train_split: training split, for the share of novel captions; None if there is none.
        include: any of `PARTS`: "generation" (scores with each of `beams`, and diversity), "n_best" (the 15 best
            captions), "ranking" (in both directions) and "neighbours" (of words).
        beams: beam sizes. The report shows captions of beam 3, or of the first size if 3 is not included.
        metrics: as for `score_captions`. Defaults to BLEU, ROUGE-L, CIDEr-D and, if Java is available, METEOR.
        transfer: other data sets by name, whose photos of the same split are captioned too.
        run: output folder of a training run, to plot the scores of its checkpoints against training time.
        run_split: split to score those checkpoints on.
        words: words to look up in the embedding.
        max_photos: evaluate on the first photos only.
        cache_dir: folder to keep image features in between runs.
        on_error: `"raise"` or `"skip"`, for photos that cannot be read.
        seed: random seed of the bootstrap.

    Returns:
        Results by part, as saved in `evaluation.json`.

    Raises:
        OSError: if the checkpoint does not exist, `output` cannot be written, or a photo cannot be read.
        ValueError: if a part or metric is unknown, a beam size is below 1, the data cannot be read
            (`CaptionDataError`), or the split has no photos.
    """
    unknown = [name for name in include if name not in PARTS]
    if unknown:
        raise ValueError(f"unknown part {unknown[0]!r}; parts are {', '.join(PARTS)}")
    if not beams or min(beams) < 1:
        raise ValueError(f"beam sizes must be 1 or more, not {list(beams)}")
    metrics = default_metrics() if metrics is None else list(metrics)
    check_metrics(metrics)
    folder = Path(output)
    check_writable(folder)  # fail before the work, not after it
    folder.mkdir(parents=True, exist_ok=True)
    finished = ResultFile(folder / "evaluation.json")

    model = NICForConditionalGeneration.from_pretrained(checkpoint).eval()
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    processor = NICProcessor.from_pretrained(checkpoint)

    options = {"on_error": on_error, **(data_options or {})}
    if split is None:
        split = _evaluation_split(data, options)
    training = None
    if train_split is not None:
        try:
            table = load_captions(data, train_split, **options)
            training = [caption for own in table["captions"] for caption in own]
        except NoSplitError as error:
            logger.warning("%s: the share of novel captions is not computed", error)

    def subject(source: Any, wanted: str, options: Mapping[str, Any]) -> tables.Subject:
        table = load_captions(source, wanted, **options)
        if max_photos is not None:
            table = table.select(range(min(max_photos, len(table))))
        if len(table) == 0:
            raise ValueError(f"{source}: split {wanted!r} has no photos")
        photos = tables.photos_with_features(model, processor, table, cache_dir=cache_dir, on_error=on_error)
        return tables.Subject(model, processor, photos, training, metrics, seed)

    main = subject(data, split, options)
    others = {name: subject(source, split, {"on_error": on_error}) for name, source in (transfer or {}).items()}
    beam = 3 if 3 in beams else beams[0]

    # Each part with its inputs other than captioner and photos.
    work: list[tuple[str, Any, Callable[[], Any]]] = []
    if "generation" in include:
        work += [(f"beam {size}", [], partial(tables.generation, main, size)) for size in beams]
    if "n_best" in include:
        work.append(("n_best", [tables.N_BEST, tables.N_BEST_BEAMS], partial(tables.n_best, main)))
    if "neighbours" in include:
        work.append(("neighbours", list(words), partial(tables.neighbours, main, words)))
    for name, other in others.items():
        details = [beam, other.photos.photos._fingerprint]
        work.append((f"transfer {name}", details, partial(tables.transfer, other, name, beam)))
    if run is not None:
        watched = subject(data, run_split, options)
        steps = sorted(path.name for path in Path(run).glob("checkpoint-*"))
        details = [beam, str(run), *steps, watched.photos.photos._fingerprint]
        curve = partial(
            tables.learning_curve, Path(run), watched, beam, cache_dir=cache_dir, on_error=options["on_error"]
        )
        work.append(("learning_curve", details, curve))
    if "ranking" in include:  # last, as it takes longest
        work.append(("ranking", [], partial(tables.ranking, main)))

    inputs = [captioner_digest(model, processor), main.photos.photos._fingerprint, settings_digest(training)]
    results: dict[str, Any] = {}
    with progress_bar(work, unit="part", desc="Evaluating") as bar:
        for name, details, compute in bar:
            bar.set_postfix_str(name)
            key = settings_digest(inputs, split, max_photos, seed, list(metrics), name, details)
            results[name] = finished.get(name, key, compute)
            if name.startswith("beam "):
                lines = ({"image_id": i, "caption": c} for i, c in results[name]["captions"].items())
                text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
                write_text(folder / f"predictions-{name.replace(' ', '')}.jsonl", text)
    about = {
        "checkpoint": str(checkpoint),
        "data": str(data),
        "split": split,
        "photos": len(main.photos),
        "backbone": model.config.backbone_config.model_type,
        "hidden_size": model.config.hidden_size,
        "vocab_size": model.config.vocab_size,
        "parameters": sum(weights.numel() for weights in model.parameters()),
        "beam": beam,
        "length_penalty": model.generation_config.length_penalty,
        "bootstrap_seed": seed,
    }
    write_report(folder, about, results, main.photos)
    return results


def _evaluation_split(data: Any, options: Mapping[str, Any]) -> str:
    """The test split, or with a warning the validation split if there is no test split."""
    try:
        load_captions(data, "test", **options)
        return "test"
    except NoSplitError as error:
        logger.warning("%s: evaluating on validation", error)
        return "validation"
