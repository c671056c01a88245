"""Properties that hold for any text: what is written comes back, and what cannot be read is refused by its place."""

import csv
import json
import re
import tempfile
import time
import unicodedata
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from tiny import tiny_tokenizer

from nic_hf.captioning.caption_file import CaptionFile
from nic_hf.captioning.caption_formats import FORMATS, CaptionRecord
from nic_hf.data.caption_folders import Part, SourceOptions
from nic_hf.data.errors import CaptionDataError, ErrorCollector, SkippedItem
from nic_hf.data.loading import rows_of
from nic_hf.data.photo_finder import Row
from nic_hf.data.text_files import read_lines
from nic_hf.evaluation import score_captions
from nic_hf.evaluation.predictions_and_references import EvaluationDataError, load_predictions, load_references
from nic_hf.evaluation.ptb import ptb_tokenize
from nic_hf.tokenization import SPECIAL_TOKENS, train_tokenizer

QUICK = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
ANY = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)
ODD = st.sampled_from(
    ["=1+1", "@SUM(A1)", "-2", "+3", "\t=1", "\r=1", "'=1", "''@", "\"", '""', ",", "a\r\nb", "a\rb", "\0", "\ufeff",
     "\u202eabc\u202c", "שלום עולם", "مرحبا", "e\u0301\u0323", "👩‍👩‍👧", "\u2028", "\x85", "\x1c", "a" * 5000]
)  # fmt: skip
TEXT = ANY | ODD
ONE_LINE = TEXT.map(lambda text: text.replace("\r", " ").replace("\n", " "))
RECORDS = st.lists(st.tuples(TEXT, TEXT), max_size=8, unique_by=lambda record: record[0])


@QUICK
@given(RECORDS, st.sampled_from([".jsonl", ".csv", ".parquet", ".json"]))
def test_captions_written_come_back(records: list[tuple[str, str]], suffix: str) -> None:
    wanted = [CaptionRecord(name, [caption]) for name, caption in records]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, f"captions{suffix}")
        FORMATS[suffix].write(wanted, file, 1)
        found = list(FORMATS[suffix].read(file))
        assert [record.captions for record in found] == [record.captions for record in wanted]
        assert [record.image_id for record in found] == [record.image_id for record in wanted]


@QUICK
@given(st.lists(st.tuples(TEXT, TEXT, TEXT), max_size=6))
def test_other_readers_of_csv_see_no_formula(rows: list[tuple[str, str, str]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "captions.csv")
        FORMATS[".csv"].write([CaptionRecord(row[0], list(row[1:])) for row in rows], file, 2)
        csv.field_size_limit(10**6)
        with file.open(encoding="utf-8", newline="") as content:
            header, *found = csv.reader(content)
        assert header == ["image_id", "caption_0", "caption_1"] and len(found) == len(rows)
        for cell, wanted in zip(
            [cell for row in found for cell in row], [cell for row in rows for cell in row], strict=True
        ):
            assert not cell or cell[0] not in "=+-@\t\r\n＝＋－＠"
            assert cell in (wanted, f"'{wanted}")


@pytest.mark.parametrize(
    ("suffix", "content"),
    [
        (".csv", "image_id,caption\n\na.jpg,a dog\n"),
        (".csv", "image_id,caption\na.jpg\n"),
        (".json", "7"),
        (".json", "[7]"),
        (".json", '[{"image_id": 1}]'),
        (".json", "[" * 20000),
        (".jsonl", "[" * 20000 + "\n"),
        (".jsonl", '{"image_id": 1, "caption": 2}\n'),
    ],
)
def test_a_file_that_cannot_be_gone_on_with_is_named(suffix: str, content: str, tmp_path: Path) -> None:
    file = tmp_path / f"out{suffix}"
    file.write_text(content)
    (tmp_path / f"out{suffix}.run.json").write_text('{"made_by": {}}')
    with pytest.raises(OSError, match=f"cannot continue {file}"):
        CaptionFile(file, {}).open()


def folder_of(path: str) -> Path:
    photos = Path(path, "Images")
    photos.mkdir()
    (photos / "a.jpg").write_bytes(b"photo")
    return Path(path)


def rows_in(file: Path, split: str | None, problems: ErrorCollector) -> list[Row]:
    return rows_of([Part(file)], split, SourceOptions(), problems, str(file))[0]


@QUICK
@given(st.lists(ONE_LINE, min_size=1, max_size=6), st.sampled_from(["\n", "\r\n"]), st.booleans())
def test_captions_of_a_csv_file_are_what_was_written(captions: list[str], end: str, mark: bool) -> None:
    with tempfile.TemporaryDirectory() as path:
        file = folder_of(path) / "captions.txt"
        lines = ['"' + caption.replace('"', '""') + '"' for caption in captions]
        text = end.join(["image,caption", *(f"a.jpg,{line}" for line in lines)]) + end
        file.write_bytes(b"\xef\xbb\xbf" * mark + text.encode())
        skipped: list[SkippedItem] = []
        rows = rows_in(file, None, ErrorCollector("skip", skipped))
        found = rows[0].captions if rows else []
        assert found == [caption.strip() for caption in captions if caption.strip()]
        assert all(item.line and str(file) in str(item) for item in skipped if item.line is not None)


@QUICK
@given(st.binary(max_size=200))
@example(b"a\x00b\n\xff\nc")
def test_lines_are_read_or_placed(content: bytes) -> None:
    content = "A café, so UTF-8, and long enough that zeros are no sign of UTF-16 \n".encode() * 5 + content
    with tempfile.TemporaryDirectory() as path:
        file = Path(path, "lines.txt")
        file.write_bytes(content)
        skipped: list[SkippedItem] = []
        problems = ErrorCollector("skip", skipped)
        found = dict(read_lines(file, problems))
        problems.settle()
        for number, raw in enumerate(content.split(b"\n"), start=1):
            try:
                text = raw.decode()
            except UnicodeDecodeError:
                assert number in [item.line for item in skipped]
            else:
                assert found.get(number, "") == (text.removesuffix("\r") if text.strip() else "")


@pytest.mark.parametrize("caption", ["a" * 10_000_000, "a dog " * 1_700_000], ids=["one word", "words"])
def test_a_line_of_ten_megabytes(caption: str, tmp_path: Path) -> None:
    """Read, or refused with its line; and in seconds, as nothing may be quadratic."""
    start = time.process_time()
    file = folder_of(str(tmp_path)) / "captions.txt"
    file.write_text(f'image,caption\na.jpg,"{caption}"\na.jpg,a cat\n')
    with pytest.raises(CaptionDataError, match=r"captions.txt: line 2: a field has more than [0-9,]+ characters"):
        rows_in(file, None, ErrorCollector("raise"))
    lines = tmp_path / "captions.jsonl"
    lines.write_text(
        json.dumps({"image_id": 1, "caption": caption}) + "\n" + json.dumps({"image_id": 2, "caption": "b"})
    )
    assert load_predictions(lines) == {"1": caption, "2": "b"}
    out = tmp_path / "out.csv"
    FORMATS[".csv"].write([CaptionRecord("a", [caption])], out, 1)
    assert next(FORMATS[".csv"].read(out)).captions == [caption]
    karpathy = tmp_path / "data.json"
    karpathy.write_text(json.dumps({"images": [{"filename": "a.jpg", "sentences": [{"raw": caption}, {"raw": "b"}]}]}))
    with pytest.raises(CaptionDataError, match=r"sentences\[0\]: the caption has [0-9,]+ characters; 131,072 are"):
        rows_in(karpathy, None, ErrorCollector("raise"))
    assert time.process_time() - start < 60


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4)
    | st.dictionaries(
        st.sampled_from(["images", "annotations", "sentences", "raw", "filename", "file_name", "id", "image_id",
                         "caption", "split", "cocoid", "filepath", "x"]),
        inner,
        max_size=4,
    ),
    max_leaves=20,
)  # fmt: skip


@QUICK
@given(JSON, st.sampled_from([None, "train"]))
@example({"images": [{"filename": "a.jpg", "cocoid": "\ud83d", "sentences": [{"raw": "x"}]}]}, None)
@example({"images": [{"filename": "../secret.jpg", "sentences": [{"raw": "x"}]}]}, None)
@example({"images": [{"filename": "C:\\a.jpg", "sentences": [{"raw": "x"}]}]}, None)
def test_any_json_is_read_or_refused(document: object, split: str | None) -> None:
    with tempfile.TemporaryDirectory() as path:
        file = folder_of(path) / "data.json"
        (Path(path) / "secret.jpg").write_bytes(b"photo")
        file.write_text(json.dumps(document))
        for on_error in ("skip", "raise"):
            try:
                rows = rows_in(file, split, ErrorCollector(on_error))
            except CaptionDataError as error:
                assert path in str(error)
                continue
            for row in rows:
                row.image_id.encode()
                assert Path(row.path).parent == Path(path, "Images") and row.captions
        for load in (load_predictions, load_references):
            try:
                load(file)
            except EvaluationDataError as error:
                assert path in str(error)


@QUICK
@given(TEXT)
@example("<eos> <pad> <bos>")
@example("e\u0301 \u00e9")
def test_the_tokenizer_takes_any_text(text: str) -> None:
    tokenizer = tiny_tokenizer()
    ids = tokenizer(text).input_ids
    assert ids[-1] == 2 and not {0, 1, 2} & set(ids[:-1]), "text became a control token"
    assert (
        ids
        == tokenizer(unicodedata.normalize("NFC", text)).input_ids
        == tokenizer(unicodedata.normalize("NFD", text)).input_ids
    )
    again = tokenizer(tokenizer.decode(ids, skip_special_tokens=True)).input_ids
    assert again == [i for i in ids if i != 3], "decoding and encoding change the words"


@QUICK
@given(st.lists(TEXT, min_size=1, max_size=6))
def test_every_word_of_the_captions_is_in_the_vocabulary(captions: list[str]) -> None:
    try:
        tokenizer = train_tokenizer(captions, min_frequency=1)
    except ValueError as error:
        assert "no word occurs" in str(error)
        return
    assert list(tokenizer.get_vocab().items())
    assert [tokenizer.convert_ids_to_tokens(place) for place in range(4)] == list(SPECIAL_TOKENS)
    assert all(3 not in tokenizer(caption).input_ids for caption in captions)


@QUICK
@given(st.lists(TEXT, min_size=2, max_size=5))
def test_scores_stay_in_their_bounds(captions: list[str]) -> None:
    references = {str(place): [caption, "a dog runs"] for place, caption in enumerate(captions)}
    predictions = {str(place): caption for place, caption in enumerate(captions)}
    scores = score_captions(predictions, references)
    for name, value in scores.items():
        assert 0 <= value <= (10 if "cider" in name.lower() else 1) + 1e-6, (name, value)
    assert all(re.search(r"\s", word) is None for caption in captions for word in ptb_tokenize(caption))
