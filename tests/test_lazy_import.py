"""`import nic_hf` waits for nothing, and registers the classes all the same."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import nic_hf

SOURCE = str(Path(nic_hf.__file__).parents[1])
REGISTERED = """
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor
from transformers.pipelines import PIPELINE_REGISTRY
import nic_hf
config = AutoConfig.for_model("nic")
assert type(config) is nic_hf.NICConfig
assert AutoModelForImageTextToText._model_mapping[type(config)] is nic_hf.NICForConditionalGeneration
assert "image-captioning" in PIPELINE_REGISTRY.get_supported_tasks()
assert not [finder for finder in sys.meta_path if type(finder).__module__.startswith("nic_hf")], "it still watches"
"""


def python(code: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": SOURCE, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", f"import sys\n{code}"]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)


@pytest.mark.parametrize(
    "code",
    [
        "import nic_hf; dir(nic_hf), nic_hf.__version__",
        "import nic_hf.data, nic_hf.captioning; dir(nic_hf.data)",
        "import nic_hf.export",
        "from nic_hf.export import NICOnnxCaptioner",
        "from nic_hf.cli import app; app(['--help'], standalone_mode=False)",
        "from nic_hf.cli import app; app(['export', 'onnx', '--help'], standalone_mode=False)",
    ],
)
def test_nothing_heavy_is_imported(code: str) -> None:
    heavy = "torch", "transformers", "datasets", "onnxruntime", "matplotlib", "huggingface_hub"
    done = python(f"{code}\nfound = set(sys.modules) & {set(heavy)}\nassert not found, found")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "imports",
    [
        "import nic_hf, transformers",
        "import transformers, nic_hf",
        "from nic_hf.processing_nic import load_image_processor",  # a module of the core that imports Transformers
        "from nic_hf import NICForConditionalGeneration",
        "from nic_hf import NICProcessor",
        "from nic_hf import ImageToTextPipeline",
        "from nic_hf import NICConfig, NICCache",
        "from nic_hf.model.processor import load_image_processor",
        "from nic_hf.model.backbone import load_backbone",
        "from nic_hf.training import CaptioningTrainer",
    ],
)
def test_the_classes_are_registered_whatever_is_imported_first(imports: str) -> None:
    done = python(f"{imports}\n{REGISTERED}")
    assert done.returncode == 0, done.stderr


def test_transformers_without_torch_is_left_alone() -> None:
    done = python("sys.modules['torch'] = None\nimport nic_hf, transformers\nprint(transformers.__version__)")
    assert done.returncode == 0, done.stderr
    assert "Error" not in done.stderr
    done = python("sys.modules['torch'] = None\nimport nic_hf\nnic_hf.NICConfig, nic_hf.NICForConditionalGeneration")
    assert "torch" in done.stderr.splitlines()[-1]


def test_a_process_that_blocks_transformers_stays_without_it() -> None:
    code = """
import importlib.abc
class Blocker(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name == "transformers":
            raise ImportError("blocked")
sys.meta_path.insert(0, Blocker())
import nic_hf
try:
    import transformers
except ImportError as error:
    assert str(error) == "blocked"
else:
    raise AssertionError("it was imported past the blocker")
"""
    done = python(code)
    assert done.returncode == 0, done.stderr


def test_all_public_names_are_there() -> None:
    assert set(nic_hf.__all__) <= set(dir(nic_hf))
    for name in nic_hf.__all__:
        assert getattr(nic_hf, name) is not None
    with pytest.raises(AttributeError, match="module 'nic_hf' has no attribute 'NICModel'"):
        nic_hf.NICModel  # noqa: B018
