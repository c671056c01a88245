"""What is built and installed in an environment of its own captions a photo, far from the project's folder."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from subset import make_subset, real_captioner

pytest.importorskip("build", reason="build is not installed")

ROOT = Path(__file__).parents[1]

SPLITS = "nic_hf/data/flickr8k_split.safetensors"  # checksums of names, no photo and no name


def run(*command: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    """A command, without what the tests' own environment would add to Python's path."""
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, env=environment, capture_output=True, text=True, timeout=3000
    )
    assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    return done


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy of the tracked files, by way of the source distribution, as `python -m build` does."""
    folder = tmp_path_factory.mktemp("build")
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True
    )
    if listed.returncode:
        pytest.skip("not a git checkout")
    for name in listed.stdout.splitlines():
        if (ROOT / name).is_file():
            target = folder / "source" / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes((ROOT / name).read_bytes())
    run(sys.executable, "-m", "build", "--outdir", folder / "dist", folder / "source", cwd=folder)
    (built,) = (folder / "dist").glob("*.whl")
    return built


@pytest.mark.slow
def test_the_wheel_holds_all_that_the_package_needs(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    package = {path.relative_to(ROOT / "src").as_posix() for path in (ROOT / "src" / "nic_hf").rglob("*.py")}
    assert package <= names
    recipes = {f"nic_hf/recipes/{path.name}" for path in (ROOT / "examples" / "configs").glob("*.yaml")}
    assert recipes and recipes <= names
    templates = {path.relative_to(ROOT / "src").as_posix() for path in (ROOT / "src").rglob("templates/*")}
    assert templates and templates <= names
    assert "nic_hf/py.typed" in names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    captioners = {
        path.relative_to(ROOT / "src").as_posix() for path in (ROOT / "src" / "nic_hf" / "captioners").glob("[!_]*/*")
    }
    assert "nic_hf/captioners/flickr8k/model.safetensors" in captioners <= names
    others = names - captioners - {SPLITS}
    assert not [name for name in others if name.endswith((".jpg", ".png", ".safetensors", ".onnx"))]


@pytest.mark.slow
def test_it_installs_in_an_empty_environment_and_captions_a_photo(
    wheel: Path, flickr8k: Path, test_data: Path, tmp_path: Path
) -> None:
    make_subset(flickr8k, tmp_path / "flickr8k", train=4)
    model, processor = real_captioner(
        test_data, ["a dog runs", "two children play"], hidden_size=16, embedding_size=16
    )
    model.save_pretrained(tmp_path / "captioner")
    processor.save_pretrained(tmp_path / "captioner")
    run(sys.executable, "-m", "venv", tmp_path / "fresh", cwd=tmp_path)
    scripts = next(path for path in (tmp_path / "fresh" / "bin", tmp_path / "fresh" / "Scripts") if path.is_dir())
    run(scripts / "python", "-m", "pip", "install", "-q", "-c", ROOT / "constraints.txt", wheel, cwd=tmp_path)

    (photo, *_) = sorted((tmp_path / "flickr8k" / "Images").iterdir())
    done = run(scripts / "nic", "caption", photo, "--model", tmp_path / "captioner", cwd=tmp_path)
    (line,) = done.stdout.splitlines()
    name, caption = line.split("\t")
    assert name.endswith(photo.name) and caption
    done = run(scripts / "nic", "caption", photo, cwd=tmp_path)  # with the captioner that comes with it
    assert len(done.stdout.split("\t")[1].split()) > 3
    show = (scripts / "nic", "train", "--show", "--data", "x", "--backbone", "y")
    done = subprocess.run(show, cwd=tmp_path, capture_output=True, text=True)
    missing = 'nic train: accelerate is not installed: pip install "nic_hf[train]"\n'
    assert (done.returncode, done.stderr) == (2, missing)
    run(scripts / "python", "-m", "pip", "install", "-q", "-c", ROOT / "constraints.txt", "accelerate", cwd=tmp_path)
    assert "views: 4" in run(*show, cwd=tmp_path).stdout  # the recipe `frozen` was found
    where = run(scripts / "python", "-c", "import nic_hf; print(nic_hf.__file__)", cwd=tmp_path).stdout
    assert str(tmp_path / "fresh") in where
