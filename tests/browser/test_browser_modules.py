"""The TypeScript of examples/browser: types, unit tests, and agreement with Python."""

import json
from pathlib import Path
from typing import Any

from cases import write_cases
from npm_project import SOURCE, run

PHOTOS_IN_PAGE = """
async (names) => {
  const { readPhoto } = await import("/some/folder/photo.js");
  const found = {};
  for (const name of names) {
    const blob = await (await fetch("/some/folder/model/" + name)).blob();
    const { width, height, data, channels } = await readPhoto(blob);
    const rgb = new Uint8Array(width * height * 3).map((_, i) => data[Math.floor(i / 3) * channels + (i % 3)]);
    found[name] = { width, height, rgb: Array.from(rgb, (level) => String.fromCharCode(level)).join("") };
  }
  return found;
}
"""


def test_types_are_right(project: Path) -> None:
    done = run(["npm", "run", "--silent", "check"], project)
    assert done.returncode == 0, done.stdout


def test_resizing_searching_and_decoding_give_what_python_gives(project: Path, tmp_path: Path) -> None:
    write_cases(tmp_path / "cases.json")
    report = tmp_path / "report.json"
    command = ["npx", "--no-install", "vitest", "run", "--reporter=json", f"--outputFile={report}"]
    done = run(command, project, NIC_BROWSER_CASES=str(tmp_path / "cases.json"))
    assert done.returncode == 0, done.stdout + done.stderr + report.read_text("utf-8")
    counts = json.loads(report.read_text("utf-8"))
    assert counts["numPassedTests"] == counts["numTotalTests"] >= 40, "none is skipped"
    assert {Path(each["name"]).name for each in counts["testResults"]} == {
        file.name for file in (SOURCE / "test").glob("*.test.ts")
    }


def test_photos_are_read_as_in_python(project: Path, browser: Any, tmp_path: Path) -> None:
    import numpy as np
    from browser_captioner import hosting, open_page
    from PIL import Image, ImageCms

    from nic_hf.images import load_photo

    command = ["src/photo.ts", "--outDir", str(tmp_path / "page"), "--module", "esnext", "--target", "es2022"]
    options = ["--moduleResolution", "bundler", "--ignoreConfig"]
    done = run(["npx", "--no-install", "tsc", *command, *options], project)
    assert done.returncode == 0, done.stdout
    (tmp_path / "page" / "index.html").write_text("<!doctype html>")
    photos = tmp_path / "photos"
    photos.mkdir()
    random = np.random.default_rng(0)
    noise = Image.fromarray(random.integers(0, 256, (60, 90, 3), dtype=np.uint8))
    noise.save(photos / "noise.png")
    noise.convert("L").save(photos / "grey.png")
    noise.quantize(64).save(photos / "palette.gif")
    noise.resize((1100, 1001)).save(photos / "several strips.png")  # more pixels than go through a canvas at once
    noise.resize((1, 130)).save(photos / "long.png")  # the middle is kept
    noise.save(photos / "lossless.webp", lossless=True)
    # A profile that would swap red and green, which Python ignores.
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    swapped = profile.replace(b"rXYZ", b"....").replace(b"gXYZ", b"rXYZ").replace(b"....", b"gXYZ")
    noise.save(photos / "profile.png", icc_profile=swapped)
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        noise.save(photos / f"turned {orientation}.png", exif=exif)
    alpha = noise.copy()
    alpha.putalpha(Image.fromarray(np.where(random.random((60, 90)) < 0.5, 0, 255).astype(np.uint8)))
    alpha.save(photos / "holes.png")
    names = sorted(file.name for file in photos.iterdir())
    with hosting(tmp_path / "page", {"model": photos}) as url:
        page = open_page(browser, url)
        found = page.evaluate(PHOTOS_IN_PAGE, names)
        page.close()
    for name in names:
        expected = np.asarray(load_photo(photos / name))
        shape = (found[name]["height"], found[name]["width"], 3)
        pixels = np.frombuffer(found[name]["rgb"].encode("latin-1"), dtype=np.uint8).reshape(shape)
        np.testing.assert_array_equal(pixels, expected, err_msg=name)


def test_the_lock_file_holds_digests_and_no_hosts() -> None:
    lock = json.loads((SOURCE / "package-lock.json").read_text("utf-8"))
    packages = {name: entry for name, entry in lock["packages"].items() if name}
    assert all(entry["integrity"].startswith("sha512-") for entry in packages.values())
    assert not any("resolved" in entry for entry in packages.values())
