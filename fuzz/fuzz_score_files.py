"""Fuzz files that `nic evaluate` scores, plain and gzipped, and files that `nic caption` resumes from."""

import tempfile
from pathlib import Path

from harness import fuzz, instrumented

with instrumented():
    from nic_hf.captioning.caption_file import CaptionFile
    from nic_hf.evaluation.predictions_and_references import EvaluationDataError, load_predictions, load_references

_FOLDER = tempfile.TemporaryDirectory()
_ROOT = Path(_FOLDER.name)


def check(data: bytes) -> None:
    """The first byte selects reader and suffix, the rest is the file."""
    if not data:
        return
    if data[0] % 4 == 3:
        _resume(data[0] // 4, data[1:])
        return
    file = _ROOT / f"captions{('.json', '.jsonl', '.json.gz')[data[0] % 4]}"
    file.write_bytes(data[1:])
    try:
        for image_id, caption in load_predictions(file).items():
            assert isinstance(image_id, str) and isinstance(caption, str)
    except EvaluationDataError as error:
        assert str(file) in str(error), f"names no file: {error}"
    try:
        for image_id, captions in load_references(file).items():
            assert isinstance(image_id, str) and captions and all(isinstance(each, str) for each in captions)
    except EvaluationDataError as error:
        assert str(file) in str(error), f"names no file: {error}"


def _resume(kind: int, content: bytes) -> None:
    suffix = (".jsonl", ".csv", ".json")[kind % 3]
    run_file = _ROOT / f"out{suffix}.run.json"
    for file in _ROOT.glob("*out*"):
        file.unlink()
    (_ROOT / f"out{suffix}").write_bytes(content)
    run_file.write_text('{"made_by": {}}')
    try:
        CaptionFile(_ROOT / f"out{suffix}", {}).open()
    except OSError as error:
        assert f"out{suffix}" in str(error), f"names no file: {error}"


if __name__ == "__main__":
    fuzz(check)
