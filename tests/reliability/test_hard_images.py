"""Whatever is given as a photo: a caption or an error that names the file; no crash, no hang, no gigabyte."""

import contextlib
import json
import os
import subprocess
import sys
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
from hard_images import HardImage, claimed, disguised, encoded, hard_images, large, photo, turned
from PIL import Image, ImageChops, ImageStat
from tiny import tiny_model, tiny_photos, tiny_tokenizer

import nic_hf
from nic_hf import ImageToTextPipeline, NICProcessor
from nic_hf.data.feature_cache import load_photo_row
from nic_hf.images import load_photo
from nic_hf.model.processor import build_image_processor

GIBIBYTE = 2**30
SECONDS = 10


def cropping_processor() -> NICProcessor:
    """The shorter side to 128 pixels, then the middle: a thread of a photo would become a large one."""
    settings = {
        "image_processor_type": "MobileNetV2ImageProcessor",
        "size": {"shortest_edge": 128},
        "crop_size": {"height": 96, "width": 96},
    }
    return NICProcessor(build_image_processor(settings), tiny_tokenizer())


def save_photos_and_captioner(images: list[HardImage], folder: Path) -> None:
    """The photos, beside them `plain.png`, and a small captioner to caption them."""
    (folder / "photos").mkdir()
    for image in images:
        (folder / "photos" / image.name).write_bytes(image.content)
    tiny_photos(1)[0].save(folder / "photos" / "plain.png")
    tiny_model().save_pretrained(folder / "checkpoint")
    cropping_processor().save_pretrained(folder / "checkpoint")


def caption_all(images: list[HardImage], folder: Path, timeout: int) -> dict[str, dict]:
    """What `captioning_child.py` reports of them."""
    pytest.importorskip("resource", reason="only POSIX systems limit the memory of a process")
    if not Path("/proc/self/statm").exists():
        pytest.skip("the memory of a process is read from /proc")
    save_photos_and_captioner(images, folder)
    command = [sys.executable, str(Path(__file__).with_name("captioning_child.py"))]
    command += [str(folder / "photos"), str(folder / "checkpoint"), str(folder / "report.json")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(nic_hf.__file__).parents[1])}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=timeout)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((folder / "report.json").read_text())


def check(images: list[HardImage], report: dict[str, dict]) -> None:
    ways = ("pipeline", "captioning", "cache", "training")
    for image in images:
        kinds = {way: next(iter(report[way][image.name])) for way in ways}
        assert len(set(kinds.values())) == 1, f"{image.name}: the ways disagree: {kinds}"
        assert image.expected in ("either", kinds["captioning"]), f"{image.name}: {report['captioning'][image.name]}"
        for way in ways:
            assert image.name in report[way][image.name].get("error", image.name), report[way][image.name]
    slowest = max(report["seconds"], key=report["seconds"].__getitem__)
    assert report["seconds"][slowest] < SECONDS, f"{slowest} took {report['seconds'][slowest]:.1f} s"
    memory = max(report["memory"].values())
    assert memory < GIBIBYTE, f"{memory / GIBIBYTE:.2f} GiB over the model's own: {report['memory']}"
    print(
        f"{len(images)} files, {sum('caption' in result for result in report['captioning'].values())} captioned; "
        f"slowest {slowest} {report['seconds'][slowest]:.2f} s; {memory / 2**20:.0f} MiB over the model's own"
    )


def test_a_sample_of_hard_images(tmp_path: Path) -> None:
    images = hard_images()
    assert len(images) >= 300
    sample = [image for place, image in enumerate(images) if place % 8 == 0]
    threads = [image for image in images if image.name.startswith(("shape-60000", "shape-1x60000", "bomb", "eps"))]
    sample = list({image.name: image for image in [*sample, *threads]}.values())
    check(sample, caption_all(sample, tmp_path, timeout=400))


@pytest.mark.soak
def test_all_hard_images(tmp_path: Path) -> None:
    images = hard_images()
    check(images, caption_all(images, tmp_path, timeout=3600))


@pytest.mark.soak
def test_large_images(tmp_path: Path) -> None:
    images = list(large())
    check(images, caption_all(images, tmp_path, timeout=3600))


def peak_of_caption_command(folder: Path, photos: list[str]) -> int:
    """The most memory, in bytes, that `nic caption` with four threads takes for photos of the folder."""
    command = [sys.executable, "-m", "nic_hf", "caption", *(str(folder / "photos" / name) for name in photos)]
    command += ["--model", str(folder / "checkpoint"), "--workers", "4", "--device", "cpu"]
    environment = {**os.environ, "PYTHONPATH": str(Path(nic_hf.__file__).parents[1])}
    process = psutil.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    most = 0
    while process.poll() is None:
        with contextlib.suppress(psutil.NoSuchProcess):
            most = max(most, process.memory_info().rss)
        time.sleep(0.01)
    assert process.returncode == 0
    return most


@pytest.mark.soak
def test_threads_that_read_large_images_share_one_gigabyte(tmp_path: Path) -> None:
    images = [image for image in large() if image.expected == "caption"]
    assert len(images) >= 4
    save_photos_and_captioner(images, tmp_path)
    alone = peak_of_caption_command(tmp_path, ["plain.png"])
    taken = peak_of_caption_command(tmp_path, [image.name for image in images]) - alone
    print(f"{taken / 2**20:.0f} MiB over the model's own")
    assert taken < GIBIBYTE


LOADING_CHILD = """
import sys, warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from nic_hf.images import load_photo

def refusal(content):
    try:
        load_photo(content)
    except OSError as error:
        return error

warnings.simplefilter("ignore")
with ThreadPoolExecutor(4) as pool:
    errors = list(pool.map(refusal, [sys.stdin.buffer.read()] * 12))  # kept, as those who list them later keep them
assert all(errors)
print(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0])
"""


@pytest.mark.parametrize("name", ["rows.blp", "narrow.blp", "square.bmp", "canvas.webp"])
def test_threads_that_refuse_what_claims_a_gigabyte_stay_below_it(name: str) -> None:
    if not Path("/proc/self/status").exists():
        pytest.skip("the memory of a process is read from /proc")
    content = claimed()[name]
    assert len(content) < 2000
    environment = {**os.environ, "PYTHONPATH": str(Path(nic_hf.__file__).parents[1])}
    command = [sys.executable, "-c", LOADING_CHILD]
    done = subprocess.run(command, input=content, env=environment, capture_output=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout) / 1024 < 900, "megabytes"


def test_an_error_that_is_kept_keeps_no_pixels() -> None:
    with pytest.raises(OSError, match="cannot read it") as caught:
        load_photo(encoded(photo(), "BMP")[:900])
    frames = list(traceback.walk_tb(caught.value.__cause__.__traceback__))
    assert len(frames) > 2
    held = [value for frame, _ in frames[1:] for value in frame.f_locals.values()]
    assert not [value for value in held if isinstance(value, Image.Image)], "only the line of each call is left"


def test_large_photos_are_decoded_one_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = []
    for number in range(4):
        paths.append(tmp_path / f"{number}.png")
        photo(number).save(paths[-1])
    at_once, most = 0, 0

    def bounded(image: Image.Image) -> Image.Image:
        nonlocal at_once, most
        at_once += 1
        most = max(most, at_once)
        time.sleep(0.05)
        at_once -= 1
        return image

    monkeypatch.setattr("nic_hf.images._bounded", bounded)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(load_photo, paths))
        assert most > 1, "these are small"
        most = 0
        monkeypatch.setattr("nic_hf.images._KEPT_PIXELS", 100)
        list(pool.map(load_photo, paths))
        assert most == 1


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_a_photo_held_in_any_way_has_the_same_caption(kind: str, tmp_path: Path) -> None:
    captioner = ImageToTextPipeline(model=tiny_model(), processor=cropping_processor())
    captions = {}
    for orientation in range(1, 9):
        file = tmp_path / f"{orientation}.img"
        file.write_bytes(turned(photo(), orientation, kind))
        captions[orientation] = captioner(str(file))[0]["generated_text"]
    assert len(set(captions.values())) == 1, captions
    sideways = photo().transpose(Image.Transpose.ROTATE_90)
    assert captioner(sideways)[0]["generated_text"] != captions[1], "this captioner says the same of anything"


def test_long_and_large_photos_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_photo(Image.new("RGB", (20000, 3), "red")).size == (300, 3)
    marked = Image.new("L", (1, 501))
    marked.putpixel((0, 250), 255)
    assert load_photo(marked).getpixel((0, 50)) == (255, 255, 255), "the middle is kept"
    monkeypatch.setattr("nic_hf.images._KEPT_PIXELS", 1000)
    for mode in ("1", "P", "I;16", "RGB", "RGBA", "CMYK", "F"):
        small = load_photo(Image.new(mode, (100, 60)))
        assert small.mode == "RGB" and small.size == (20, 12), mode


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "L", "F"])
def test_reducing_in_strips_is_reducing(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    image = photo().resize((31, 500)).convert(mode)
    if mode in ("RGBA", "LA"):
        image.putalpha(Image.radial_gradient("L").resize(image.size))
    wanted = load_photo(image.reduce(3))
    monkeypatch.setattr("nic_hf.images._KEPT_PIXELS", 7200)
    assert load_photo(image).tobytes() == wanted.tobytes()


@pytest.mark.parametrize("kind", ["JPEG", "TIFF", "PNG"])
def test_a_bounded_photo_still_stands_upright(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nic_hf.images._KEPT_PIXELS", 1000)
    (tmp_path / "photo.img").write_bytes(turned(photo(), 6, kind))
    found = load_photo(tmp_path / "photo.img")
    assert found.size == (16, 12)
    wanted = photo().reduce(4)
    assert max(ImageStat.Stat(ImageChops.difference(found, wanted)).mean) < 6


@pytest.mark.parametrize("name", ["eps.jpg", "wmf.jpg"])
def test_programs_that_draw_are_not_run(name: str, tmp_path: Path) -> None:
    content = next(image.content for image in disguised() if image.name == name)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(OSError, match=rf"{name}: .*programs that draw, which are not run"):
        load_photo(tmp_path / name)


def test_a_photo_held_as_bytes_is_named(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"tar://a\.jpg::shard\.tar: cannot read it as an image"):
        load_photo_row({"path": "tar://a.jpg::shard.tar", "bytes": encoded(photo(), "JPEG")[:400]})
    with pytest.raises(OSError, match=r"dog\.jpg: cannot read"):
        load_photo(b"no photo", name="dog.jpg")
