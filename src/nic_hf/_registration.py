"""Registers the classes with Transformers' Auto classes and pipelines, without importing Transformers for it.

`import nic_hf` alone must not wait for torch; yet after it, and `import transformers` before or after, the Auto
classes must know a checkpoint of this package. So the import of Transformers is watched.
"""

import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType

_PACKAGE = __name__.rpartition(".")[0]


def register_with_transformers() -> None:
    """Register the classes, now if Transformers is imported, otherwise when it is."""
    if "transformers" in sys.modules:
        _register()
    elif not any(isinstance(finder, _WatchForTransformers) for finder in sys.meta_path):
        sys.meta_path.insert(0, _WatchForTransformers())


def _register() -> None:
    from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor
    from transformers.pipelines import PIPELINE_REGISTRY

    from .configuration_nic import NICConfig
    from .model.captioner import NICForConditionalGeneration
    from .model.pipeline import ImageToTextPipeline
    from .model.processor import NICProcessor

    AutoConfig.register(NICConfig.model_type, NICConfig, exist_ok=True)
    AutoModelForImageTextToText.register(NICConfig, NICForConditionalGeneration, exist_ok=True)
    AutoProcessor.register(NICConfig, NICProcessor, exist_ok=True)
    # "image-to-text" itself cannot be registered: Transformers 5.19 and later rewrite the name before they look here.
    PIPELINE_REGISTRY.register_pipeline(
        "image-captioning",
        pipeline_class=ImageToTextPipeline,
        pt_model=(AutoModelForImageTextToText,),
        type="multimodal",
    )


class _WatchForTransformers:
    """Registers the classes once Transformers is imported, then steps aside.

    The modules of the core and of `model` are watched too: one that is being imported imports Transformers itself, and
    its classes are there only when its import ends.
    """

    def __init__(self) -> None:
        self.running = 0

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Find Transformers or a module of the core as other finders do, and note when its import ends."""
        is_own = fullname.startswith(f"{_PACKAGE}.model.") or (
            fullname.startswith(f"{_PACKAGE}.") and fullname.endswith("_nic")
        )
        if fullname != "transformers" and not is_own:
            return None
        spec = self._find_elsewhere(fullname, path, target)
        if spec is None or spec.loader is None:
            return None
        execute = spec.loader.exec_module

        def execute_and_note(module: ModuleType) -> None:
            self.running += 1
            try:
                execute(module)
            finally:
                self.running -= 1
            if self.running == 0 and "transformers" in sys.modules:
                self._step_aside()

        spec.loader.exec_module = execute_and_note  # type: ignore[method-assign]
        return spec

    def _find_elsewhere(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None
    ) -> ModuleSpec | None:
        for finder in sys.meta_path:
            if finder is not self and (spec := finder.find_spec(fullname, path, target)) is not None:
                return spec
        return None

    def _step_aside(self) -> None:
        if self in sys.meta_path:
            sys.meta_path.remove(self)
            try:
                _register()
            except ImportError:
                return  # Transformers without torch, which other packages may use; importing a class here says more
