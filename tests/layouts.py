"""Small captioned data sets in the layouts that people have, drawn: each function writes one below a folder."""

import csv
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from PIL import Image
from shards import write_tar

NAMES = [f"p{number:02d}.jpg" for number in range(12)]
CAPTIONS = ["A brown dog leaps over a log .", "Two kids, one in red, play ."]


@dataclass(frozen=True)
class Layout:
    """How one kind of set is kept.

    Attributes:
        draw: writes it below a folder.
        source: what of it `--data` names.
        options: further options of `load_captions`.
        captions: of each photo.
        own_splits: numbers of photos in the splits that it brings; None where it brings none.
    """

    draw: Callable[[Path], None]
    source: str = "."
    options: tuple[tuple[str, str], ...] = ()
    captions: Sequence[str] = tuple(CAPTIONS)
    own_splits: dict[str, int] | None = None


LAYOUTS: dict[str, Layout] = {}


def layout(**facts: Any) -> Callable[[Callable[[Path], None]], Callable[[Path], None]]:
    def keep(draw: Callable[[Path], None]) -> Callable[[Path], None]:
        LAYOUTS[draw.__name__] = Layout(draw, **facts)
        return draw

    return keep


def photos(folder: Path, names: Sequence[str] = NAMES) -> None:
    """Photos of one colour each."""
    for number, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 30), (20 * number, 90, 255 - 20 * number)).save(path, "JPEG")


def write(path: Path, text: str, encoding: str = "utf-8") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode(encoding))


def pairs(names: Sequence[str] = NAMES) -> list[tuple[str, str]]:
    return [(name, caption) for name in names for caption in CAPTIONS]


def csv_rows(path: Path, header: Sequence[str], rows: Sequence[Sequence[Any]], delimiter: str = ",") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, delimiter=delimiter)
        writer.writerow(header)
        writer.writerows(rows)


@layout()
def kaggle_flickr8k(folder: Path) -> None:
    photos(folder / "Images")
    csv_rows(folder / "captions.txt", ["image", "caption"], pairs())


@layout()
def unpacked_one_folder_too_deep(folder: Path) -> None:
    kaggle_flickr8k(folder / "archive" / "flickr8k")


@layout()
def unquoted_commas(folder: Path) -> None:
    photos(folder / "Images")
    write(folder / "captions.txt", "image,caption\n" + "".join(f"{n},{c}\n" for n, c in pairs()))


@layout()
def kaggle_flickr30k(folder: Path) -> None:
    photos(folder / "flickr30k_images")
    rows = [f"{name}| {k}| {caption}" for name in NAMES for k, caption in enumerate(CAPTIONS)]
    rows[7] = rows[7].replace("| 1|", "| 1  ")  # the published file has one such row
    write(folder / "results.csv", "\n".join(["image_name| comment_number| comment", *rows]) + "\n")


@layout()
def kaggle_flickr30k_with_commas(folder: Path) -> None:
    photos(folder / "Images")
    rows = [f"{name},{k},{caption}\n" for name in NAMES for k, caption in enumerate(CAPTIONS)]
    write(folder / "captions.txt", "image_name,comment_number,comment\n" + "".join(rows))


@layout()
def flickr30k_token(folder: Path) -> None:
    photos(folder / "flickr30k-images")
    rows = [f"{name}#{k}\t{caption}\n" for name in NAMES for k, caption in enumerate(CAPTIONS)]
    write(folder / "results_20130124.token", "".join(rows))


@layout()
def captions_csv(folder: Path) -> None:
    photos(folder / "Images")
    csv_rows(folder / "captions.csv", ["image", "caption"], pairs())


@layout()
def any_header(folder: Path) -> None:
    photos(folder / "pictures")
    csv_rows(folder / "data.csv", ["ID", "Image Name", "Photographer", "Description"], [
        [k, name, "me", caption] for k, (name, caption) in enumerate(pairs())
    ])  # fmt: skip


@layout(options=(("image_column", "bild"), ("caption_column", "satz_1,satz_2")))
def header_in_german(folder: Path) -> None:
    photos(folder)
    csv_rows(folder / "daten.csv", ["bild", "satz_1", "satz_2"], [[name, *CAPTIONS] for name in NAMES])
    write(folder / "notes.txt", "Nothing about photos.\n")


@layout(source="daten.csv", options=(("image_column", "bild"), ("caption_column", "satz_1,satz_2")))
def header_in_german_by_its_file(folder: Path) -> None:
    header_in_german(folder)


@layout()
def tabs(folder: Path) -> None:
    photos(folder / "images")
    csv_rows(folder / "captions.tsv", ["filename", "caption"], pairs(), "\t")


@layout(source="captions.txt")
def no_header(folder: Path) -> None:
    photos(folder / "images")
    write(folder / "captions.txt", "".join(f"{n}\t{c}\n" for n, c in pairs()))


@layout(captions=("A brown dog leaps over a log .",))
def own_output_csv(folder: Path) -> None:
    photos(folder / "holiday")
    csv_rows(folder / "out.csv", ["image_id", "caption"], [[f"holiday/{name}", CAPTIONS[0]] for name in NAMES])


@layout(captions=("A brown dog leaps over a log .",))
def own_output_json(folder: Path) -> None:
    photos(folder)
    write(folder / "out.json", json.dumps([{"image_id": name, "caption": CAPTIONS[0]} for name in NAMES]))


@layout(source="out.parquet", captions=("A brown dog leaps over a log .",))
def own_output_parquet(folder: Path) -> None:
    photos(folder)
    pd.DataFrame({"image_id": NAMES, "caption": [CAPTIONS[0]] * len(NAMES)}).to_parquet(folder / "out.parquet")


@layout()
def lists_that_pandas_wrote(folder: Path) -> None:
    photos(folder)
    frame = pd.DataFrame({"file_name": NAMES, "captions": [CAPTIONS] * len(NAMES)})
    frame.to_csv(folder / "metadata.csv", index=False)


@layout(captions=("A dog\nruns", 'It says "no"'))
def lines_in_quotes(folder: Path) -> None:
    photos(folder / "images")
    csv_rows(folder / "captions.csv", ["image", "caption"], [
        (name, caption) for name in NAMES for caption in ("A dog\nruns", 'It says "no"')
    ])  # fmt: skip


@layout(own_splits={"train": 8, "validation": 2, "test": 2})
def split_column(folder: Path) -> None:
    photos(folder / "images")
    splits = [*["train"] * 8, "val", "val", "test", "test"]
    csv_rows(folder / "all.csv", ["image_path", "text", "split"], [
        (f"images/{name}", caption, splits[NAMES.index(name)]) for name, caption in pairs()
    ])  # fmt: skip


@layout(own_splits={"train": 8, "validation": 2, "test": 2})
def files_by_split(folder: Path) -> None:
    photos(folder / "images")
    for split, names in (("train", NAMES[:8]), ("val", NAMES[8:10]), ("test", NAMES[10:])):
        write(
            folder / f"{split}.json",
            json.dumps([{"image": n, "caption": c, "image_id": n[:-4]} for n, c in pairs(names)]),
        )


@layout(own_splits={"train": 8, "validation": 2, "test": 2})
def karpathy_elsewhere(folder: Path) -> None:
    photos(folder / "flickr8k" / "Images")
    splits = [*["train"] * 6, "restval", "restval", "val", "val", "test", "test"]
    images = [
        {"filename": name, "split": split, "sentences": [{"raw": caption} for caption in CAPTIONS]}
        for name, split in zip(NAMES, splits, strict=True)
    ]
    write(folder / "caption_datasets" / "dataset_flickr8k.json", json.dumps({"images": images}))


def coco(names: Sequence[str], first: int = 0) -> str:
    images = [
        {"id": first + number, "file_name": name, "height": 30, "width": 40} for number, name in enumerate(names)
    ]
    annotations = [
        {"image_id": image["id"], "id": k, "caption": c} for k, c in enumerate(CAPTIONS) for image in images
    ]
    return json.dumps({"info": {}, "licenses": [], "images": images, "annotations": annotations})


@layout(own_splits={"train": 9, "validation": 3})
def coco_2017(folder: Path) -> None:
    for split, names in (("train2017", NAMES[:9]), ("val2017", NAMES[9:])):
        photos(folder / split, names)
        write(folder / "annotations" / f"captions_{split}.json", coco(names, 100 * len(names)))
        write(folder / "annotations" / f"instances_{split}.json", json.dumps({"images": [], "annotations": []}))


@layout(source="annotations/captions_val2017.json")
def coco_one_file(folder: Path) -> None:
    photos(folder / "val2017")
    write(folder / "annotations" / "captions_val2017.json", coco(NAMES))


@layout(own_splits={"train": 8, "validation": 3})
def vizwiz(folder: Path) -> None:
    for split, names in (("train", NAMES[:9]), ("val", NAMES[9:])):
        photos(folder / split, names)
        document = json.loads(coco(names, 100 * len(names)))
        for annotation in document["annotations"]:
            annotation["is_rejected"] = annotation["image_id"] == 900
        rejected = {
            "image_id": 100 * len(names) + 1,
            "id": 99,
            "caption": "Quality issues are too severe.",
            "is_rejected": True,
        }
        document["annotations"].append(rejected)
        write(folder / "annotations" / f"{split}.json", json.dumps(document))
    write(folder / "annotations" / "test.json", json.dumps({"images": [{"id": 0, "file_name": "x.jpg"}]}))


@layout(own_splits={"train": 9, "validation": 3})
def textcaps(folder: Path) -> None:
    photos(folder / "train_images")
    for split, names in (("train", NAMES[:9]), ("val", NAMES[9:])):
        data = [
            {"image_id": n[:-4], "caption_id": k, "caption_str": c, "reference_strs": CAPTIONS, "set_name": split}
            for k, (n, c) in enumerate(pairs(names))
        ]
        document = {"dataset_type": split, "dataset_name": "textcaps", "data": data}
        write(folder / f"TextCaps_0.1_{split}.json", json.dumps(document))


@layout(captions=("A brown dog leaps over a log .",))
def json_lines(folder: Path) -> None:
    photos(folder / "images")
    write(folder / "captions.jsonl", "".join(json.dumps({"image": n, "caption": CAPTIONS[0]}) + "\n" for n in NAMES))


@layout()
def names_with_captions(folder: Path) -> None:
    photos(folder / "images")
    write(folder / "captions.json", json.dumps(dict.fromkeys(NAMES, CAPTIONS)))


@layout()
def sidecar(folder: Path) -> None:
    photos(folder)
    for name in NAMES:
        write((folder / name).with_suffix(".txt"), "\n".join(CAPTIONS) + "\n")


@layout(own_splits={"train": 9, "validation": 3})
def sidecar_by_split(folder: Path) -> None:
    for split, names in (("train", NAMES[:9]), ("val", NAMES[9:])):
        photos(folder / split, names)
        for name in names:
            write((folder / split / name).with_suffix(".txt"), "\n".join(CAPTIONS))


@layout()
def flat_metadata(folder: Path) -> None:
    photos(folder)
    write(folder / "metadata.jsonl", "".join(json.dumps({"file_name": n, "captions": CAPTIONS}) + "\n" for n in NAMES))


@layout()
def imagefolder_of_train_alone(folder: Path) -> None:
    photos(folder / "train")
    csv_rows(folder / "train" / "metadata.csv", ["file_name", "text"], pairs())


@layout()
def backslashes(folder: Path) -> None:
    photos(folder / "train")
    csv_rows(folder / "metadata.csv", ["file_name", "text"], [(f"train\\{name}", c) for name, c in pairs()])


@layout()
def accents_as_macos_spells_them(folder: Path) -> None:
    names = [f"caf\u0065\u0301-{name}" for name in NAMES]  # e and an accent
    photos(folder / "Images", names)
    csv_rows(folder / "captions.txt", ["image", "caption"], pairs([f"caf\u00e9-{name}" for name in NAMES]))


@layout()
def utf_16(folder: Path) -> None:
    photos(folder / "Images")
    write(folder / "captions.txt", "image,caption\r\n" + "".join(f'{n},"{c}"\r\n' for n, c in pairs()), "utf-16")


@layout(captions=("Ein Hündchen über dem Ast",))
def windows_1252(folder: Path) -> None:
    photos(folder / "Images")
    write(
        folder / "captions.csv",
        "image;caption\n" + "".join(f"{n};Ein Hündchen über dem Ast\n" for n in NAMES),
        "cp1252",
    )


@layout()
def tar_shards(folder: Path) -> None:
    photos(folder / "drawn")
    members = []
    for name in NAMES:
        members.append((name, (folder / "drawn" / name).read_bytes()))
        members.append((name.replace(".jpg", ".txt"), "\n".join(CAPTIONS).encode()))
        (folder / "drawn" / name).unlink()
    write_tar(folder / "shards" / "000.tar", members[:12])
    write_tar(folder / "shards" / "001.tar", members[12:])


@layout(own_splits={"train": 6, "validation": 6})
def tar_shards_by_split(folder: Path) -> None:
    tar_shards(folder)
    (folder / "shards" / "000.tar").rename(folder / "shards" / "train-000.tar")
    (folder / "shards" / "001.tar").rename(folder / "shards" / "val-000.tar")


@layout(source="data/train-00000-of-00001.parquet")
def parquet_file(folder: Path) -> None:
    parquet_of_one_split(folder)


@layout()
def parquet_of_one_split(folder: Path) -> None:
    import datasets

    photos(folder.parent / "drawn")
    files = [str(folder.parent / "drawn" / name) for name in NAMES]
    data = datasets.Dataset.from_dict({"image": files, "filename": NAMES, "caption": [CAPTIONS] * len(NAMES)})
    (folder / "data").mkdir(parents=True)
    data.cast_column("image", datasets.Image()).to_parquet(folder / "data" / "train-00000-of-00001.parquet")


@layout(own_splits={"train": 8, "validation": 2, "test": 2})
def parquet_with_a_split_column(folder: Path) -> None:
    """As nlphuji/flickr30k has it: all photos are in a split named test, and a column says which split is meant."""
    import datasets

    photos(folder.parent / "drawn")
    files = [str(folder.parent / "drawn" / name) for name in NAMES]
    splits = [*["train"] * 8, "val", "val", "test", "test"]
    columns = {"image": files, "filename": NAMES, "caption": [CAPTIONS] * len(NAMES), "split": splits}
    data = datasets.Dataset.from_dict(columns).cast_column("image", datasets.Image())
    (folder / "data").mkdir(parents=True)
    data.to_parquet(folder / "data" / "test-00000-of-00001.parquet")
