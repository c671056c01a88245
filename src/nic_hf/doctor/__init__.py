"""Find problems of a captioner, and what to do about them."""

from collections.abc import Mapping, Sequence
from typing import Any

from ..lookup import look_up
from .findings import Finding, Status

__all__ = ["Finding", "Status", "examine"]


def examine(
    name: str,
    *,
    data: str | None = None,
    split: str | None = None,
    data_options: Mapping[str, Any] | None = None,
    backbone: str | None = None,
    max_photos: int = 64,
) -> list[Finding]:
    """Check a captioner for problems.

    Args:
        name: a checkpoint: a folder or a Hub id.
        data: captioned photos like the training data (see [`nic_hf.data.load_captions`]), for more checks.
        split: split of the data; by default all of it.
        data_options: arguments of `load_captions`.
        backbone: the pretrained vision model that the captioner was built on, to compare with.
        max_photos: number of photos to use, spread over the data.

    Returns:
        Findings, in the order in which to read them.

    Raises:
        OSError, ValueError: if there is no such captioner or data.
    """
    from .behaviour import Sample, check_behaviour, drawn_photos
    from .checkpoint import check_backbone_drift, check_preprocessing, load_checkpoint
    from .installation import check_installation

    look_up(name, "captioner")
    if backbone is not None:
        look_up(backbone, "backbone")
    findings = check_installation()
    model, processor, found = load_checkpoint(name)
    findings += found
    sample = Sample(drawn_photos(), None)
    if data is not None:
        sample = Sample(*_sample(data, split, max_photos, data_options or {}))
    if model is not None and processor is not None:
        findings.append(check_preprocessing(model, processor, backbone))
    if model is not None:
        findings.append(check_backbone_drift(model, backbone))
    if model is not None and processor is not None and not _has(findings, "weights"):
        try:
            findings += check_behaviour(model, processor, sample)
        except (RuntimeError, ValueError, IndexError) as error:
            advice = "fix the findings above first; photos and model do not match"
            findings.append(Finding("captions", Status.PROBLEM, f"photos cannot be captioned: {error}", advice))
    else:
        findings.append(
            Finding("captions", Status.SKIPPED, "photos cannot be captioned before the findings above are fixed")
        )
    return findings


def _has(findings: Sequence[Finding], check: str) -> bool:
    return any(finding.check == check and finding.status == Status.PROBLEM for finding in findings)


def _sample(data: str, split: str | None, number: int, options: Mapping[str, Any]) -> tuple[list, list[str], Any]:
    """Load photos spread over the data, a caption of each, and the captions of all photos."""
    from datasets import Image

    from ..data.feature_cache import load_photo_row
    from ..data.loading import load_captions

    rows = load_captions(data, split, **options).cast_column("image", Image(decode=False))
    step = max(len(rows) // number, 1)
    photos, captions = [], []
    for row in rows.select(range(0, len(rows), step)[:number]):
        try:
            photos.append(load_photo_row(row["image"]))
        except OSError:
            continue
        captions.append(row["captions"][0])
    if not photos:
        raise OSError(f"{data}: none of the {min(number, len(rows))} selected photos can be read")
    return photos, captions, rows["captions"]
