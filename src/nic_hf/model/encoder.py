"""A faster encoder that cannot be trained: BatchNorm folded into convolutions, activations in place, channels last."""

import copy
import logging
from collections.abc import Sequence

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from ..layers_nic import NICEncoder

logger = logging.getLogger(__name__)

# Folding changes the order of rounding, and nothing else: this much of the largest feature.
_ROUNDING = 1e-3


class OptimizedEncoder(NICEncoder):
    """A frozen copy of an encoder, for inference only."""

    def __init__(self, encoder: NICEncoder) -> None:
        nn.Module.__init__(self)
        self.__dict__.update(copy.deepcopy(encoder).__dict__)
        self.set_frozen(True)

    def set_frozen(self, frozen: bool) -> None:
        """Freeze the backbone.

        Raises:
            ValueError: if it is to be unfrozen.
        """
        if not frozen:
            raise ValueError("a model that was optimized for inference cannot be trained: load the checkpoint again")
        super().set_frozen(True)


@torch.no_grad()
def faster_encoder(encoder: NICEncoder, dtype: torch.dtype | None = None) -> NICEncoder:
    """A copy of an encoder that gives the same features sooner, and can be neither trained nor saved.

    Which BatchNorm follows which convolution is recorded in a pass of one random image, so any backbone works. If the
    features would change, only the memory layout of the copy is changed.

    Args:
        encoder: any [`NICEncoder`]; it is not changed.
        dtype: dtype of the copy, such as `torch.bfloat16`; defaults to the dtype of `encoder`.

    Returns:
        The copy, on the same device.
    """
    image = random_images(encoder, 1)
    plain = OptimizedEncoder(encoder)
    expected = plain(image).last_hidden_state
    faster = copy.deepcopy(plain)
    skip_neutral_gates(faster)
    _fold(faster, image)
    difference = (faster(image).last_hidden_state - expected).abs().max()
    if not difference <= _ROUNDING * expected.abs().max():
        logger.warning("BatchNorm of this backbone cannot be folded: its features would change by %.2g", difference)
        faster = plain
    return faster.to(dtype=dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]


@torch.no_grad()
def skip_neutral_gates(module: nn.Module) -> int:
    """Let squeeze-and-excitation that multiplies by one return its input. Its parameters are frozen, and still saved.

    EfficientNet-Lite has none; in Transformers' `EfficientNetModel` it therefore has gates that are always open.

    Args:
        module: a backbone, or a module that contains one.

    Returns:
        The number of gates.
    """
    gates = [gate for gate in module.modules() if _is_neutral(gate)]
    for gate in gates:
        gate.requires_grad_(False)
        gate.forward = _same
    return len(gates)


def _is_neutral(gate: nn.Module) -> bool:
    expand, activation = getattr(gate, "expand", None), getattr(gate, "act_expand", None)
    if not isinstance(expand, nn.Conv2d) or not isinstance(activation, nn.Sigmoid) or expand.bias is None:
        return False
    return not expand.weight.any() and bool((activation(expand.bias) == 1).all())


def pool_whole_maps(module: nn.Module, side: int) -> None:
    """Replace average pooling with a window that is larger than the photo by the mean over all positions, in place.

    The pooling layer of `EfficientNetModel` has a window of 1,280, its number of channels. OpenVINO refuses it.

    Args:
        module: a backbone, or a module that contains one.
        side: the larger of the photo's height and width.
    """
    for parent in list(module.modules()):
        for name, pool in parent.named_children():
            clips = isinstance(pool, nn.AvgPool2d) and pool.ceil_mode and not pool.padding
            if clips and torch.as_tensor(pool.kernel_size).min() >= side:
                setattr(parent, name, nn.AdaptiveAvgPool2d(1))


def _same(inputs: torch.Tensor) -> torch.Tensor:
    return inputs


def supported_dtype(dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """Return `dtype`, or float32 with a warning on a CPU without instructions for bfloat16."""
    if dtype == torch.bfloat16 and device.type == "cpu" and not _cpu_has_bfloat16():
        logger.warning("this CPU has no instructions for bfloat16: float32 is used")
        return torch.float32
    return dtype


def _cpu_has_bfloat16() -> bool:
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16", "arm_bf16"))


def random_images(encoder: NICEncoder, number: int, shape: Sequence[int] | None = None) -> torch.Tensor:
    """Return `pixel_values` of `(channels, height, width)`, by default the backbone's; the same in each call."""
    config = encoder.backbone.config
    if shape is None:
        size = getattr(config, "image_size", None) or 224
        height, width = (size, size) if isinstance(size, int) else (size[-2], size[-1])
        shape = (getattr(config, "num_channels", 3), height, width)
    images = torch.rand((number, *shape), generator=torch.Generator().manual_seed(0))
    return images.to(next(encoder.parameters()))


def _fold(encoder: NICEncoder, image: torch.Tensor) -> None:
    """Fold each BatchNorm that reads a convolution's output and nothing else, and overwrite what is read once."""
    names = {module: name for name, module in encoder.named_modules()}
    made_by: dict[int, nn.Module] = {}  # which module made the tensor of this id
    kept = []  # tensors, so that no id is used twice
    read: dict[nn.Module, list[nn.Module | None]] = {}  # what each module was given, call by call

    def note(module: nn.Module, inputs: tuple, output: torch.Tensor) -> None:
        read.setdefault(module, []).append(made_by.get(id(inputs[0])))
        if isinstance(module, nn.Conv2d) or type(module) is nn.BatchNorm2d:
            made_by[id(output)] = module
        kept.append((inputs[0], output))

    kinds = (nn.Conv2d, nn.BatchNorm2d, nn.ReLU, nn.ReLU6, nn.SiLU, nn.Hardswish, nn.LeakyReLU)
    hooks = [module.register_forward_hook(note) for module in names if isinstance(module, kinds)]
    try:
        encoder(image)
    finally:
        for hook in hooks:
            hook.remove()
    for module, sources in read.items():
        source = sources[0]
        if type(module) is nn.BatchNorm2d:
            once = len(sources) == 1 and source is not None and len(read[source]) == 1
            if once and isinstance(source, nn.Conv2d) and module.running_mean is not None:
                _replace(encoder, names[source], fuse_conv_bn_eval(source, module))
                _replace(encoder, names[module], nn.Identity())
        elif not isinstance(module, nn.Conv2d) and None not in sources:
            module.inplace = True  # type: ignore[assignment]


def _replace(root: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(root.get_submodule(parent), child, module)
