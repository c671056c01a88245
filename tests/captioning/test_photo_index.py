"""What a run keeps of the photos it has met: against Python's own sets and sorting, and in bounded memory."""

import random
import subprocess
import sys
from pathlib import Path

import pytest

from nic_hf.captioning.photo_index import PhotoIndex

NAMES = ["a.jpg", "b.jpg", "ü.jpg", "\udce9.jpg", "c.jpg"]


def test_each_photo_is_met_once() -> None:
    index = PhotoIndex()
    assert [index.add(name) for name in NAMES + NAMES] == [True] * 5 + [False] * 5
    assert all(name in index for name in NAMES)
    assert "d.jpg" not in index
    assert len(index) == 5


def test_records_come_in_the_order_of_the_photos() -> None:
    """Places of this run, else the last note, else the record's own, else in front; the first record of a photo."""
    chance = random.Random(3)
    index = PhotoIndex()
    photos = [f"{number}.jpg" for number in range(200)]
    met = {name: (chance.randrange(3), chance.randrange(10**12)) for name in chance.sample(photos, 90)}
    notes = [(name, (chance.randrange(3), chance.randrange(10**6))) for name in chance.choices(photos, k=120)]
    rows = [(name, (7, chance.randrange(10**6)) if chance.random() < 0.7 else None) for name in photos + photos[::3]]
    for name, key in met.items():
        index.add(name, key)
    for name, key in notes:
        index.note(name, key)
    first: dict[str, tuple[tuple[int, int], tuple[int, int]]] = {}
    for offset, (name, key) in enumerate(rows):
        index.add_record(name, key, offset // 100, offset)
        place = met.get(name) or dict(notes).get(name) or key or (-1, offset)
        first.setdefault(name, (place, (offset // 100, offset)))
    assert list(index.records()) == list(index.records()) == [where for _, where in sorted(first.values())]
    assert not index.records_are_in_order()


def test_records_added_in_order_are_known_as_such() -> None:
    index = PhotoIndex()
    for place, name in enumerate(NAMES):
        index.add_record(name, (0, place), 0, 10 * place)
    assert index.records_are_in_order()
    index.add("c.jpg", (-1, 0))
    assert not index.records_are_in_order()


def test_memory_does_not_grow_with_the_photos() -> None:
    """In sets and dictionaries of Python they would take 30 MB more."""
    code = (
        "import resource; from nic_hf.captioning.photo_index import PhotoIndex; index = PhotoIndex()\n"
        "def peak(first, number):\n"
        "    for place in range(first, first + number):\n"
        "        assert index.add(f'photos/{place}.jpg', (0, place))\n"
        "        index.add_record(f'photos/{place}.jpg', None, 0, place)\n"
        "    assert sum(1 for _ in index.records()) == first + number\n"
        "    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "before = peak(0, 50_000); print(peak(50_000, 100_000) - before)\n"
    )
    if sys.platform != "linux":
        pytest.skip("reads the peak of resident memory as Linux counts it, in KiB")
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(run.stdout) < 4096


def test_a_temporary_file_that_cannot_grow_is_named(tmp_path: Path) -> None:
    """A limit on the size of files, as a full disk."""
    code = (
        "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))\n"
        "from nic_hf.captioning.photo_index import PhotoIndex; index = PhotoIndex()\n"
        "try:\n"
        "    for place in range(10**6): index.add(str(place))\n"
        "except OSError as error: print(error)\n"
    )
    if sys.platform == "win32":
        pytest.skip("limits files as POSIX does")
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.startswith("cannot keep the list of photos in the folder for temporary files: ")
