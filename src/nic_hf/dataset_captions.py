"""Caption a dataset, with one process or several."""

from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from torch.utils.data import DataLoader, Subset

from .data.torch_datasets import CaptionCollator, PhotoDataset
from .model.captioner import NICForConditionalGeneration
from .progress_bar import progress_bar


def generate_captions(
    model: NICForConditionalGeneration,
    photos: PhotoDataset,
    *,
    batch_size: int = 64,
    num_workers: int = 0,
    progress: bool = True,
    **generate_kwargs: Any,
) -> dict[str, str]:
    """Caption every photo; with torchrun each process captions its share, and all return all captions.

    Args:
        model: the captioner; it is in eval mode meanwhile.
        photos: the photos.
        batch_size: photos per batch.
        num_workers: number of processes that decode photos, if features are not cached.
        progress: show a progress bar.
        **generate_kwargs: passed to `generate()`, overriding the generation config.

    Returns:
        A caption for each `image_id`, in the order of the dataset.
    """
    lists = generate_caption_lists(
        model, photos, batch_size=batch_size, num_workers=num_workers, progress=progress, **generate_kwargs
    )
    return {image_id: captions[0] for image_id, captions in lists.items()}


def generate_caption_lists(
    model: NICForConditionalGeneration,
    photos: PhotoDataset,
    *,
    batch_size: int = 64,
    num_workers: int = 0,
    progress: bool = True,
    **generate_kwargs: Any,
) -> dict[str, list[str]]:
    """Like [`generate_captions`], with all `num_return_sequences` captions of a photo, the best first."""
    allow_generate_where_sharded(model)
    state = PartialState()
    share = range(state.process_index, len(photos), state.num_processes)
    if photos.features is not None:
        num_workers = 0  # reading cached features is faster than starting a worker
    loader: DataLoader = DataLoader(
        Subset(photos, share),
        batch_size=batch_size,
        num_workers=num_workers,
        collate_fn=CaptionCollator(),
        multiprocessing_context="spawn" if num_workers else None,
        generator=torch.Generator(),  # the global generator, a loader's default, belongs to training
    )
    was_training = model.training
    model.eval()
    captioner: Any = model  # the type hints of `generate` fit only classes of Transformers
    lists: list[list[str]] = []
    hidden = not (progress and state.is_main_process)
    shown = progress_bar(total=len(share), unit="photo", desc="Captioning", hidden=hidden, leave=False)
    with torch.no_grad(), shown as bar:
        for batch in loader:
            batch = {name: tensor.to(model.device) for name, tensor in batch.items()}
            batch_length = len(next(iter(batch.values())))
            generated = captioner.generate(**batch, **generate_kwargs)
            captions = photos.processor.tokenizer.batch_decode(generated, skip_special_tokens=True)
            each = len(captions) // batch_length
            lists += [captions[start : start + each] for start in range(0, len(captions), each)]
            bar.update(batch_length)
    model.train(was_training)
    found = dict(gather_object(list(zip(share, lists, strict=True))))
    return {image_id: found[position] for position, image_id in enumerate(photos.image_ids())}


def allow_generate_where_sharded(model: torch.nn.Module) -> None:
    """Let `generate()` gather the weights of a model sharded by FSDP2, as `forward` does."""
    if not torch.distributed.is_available():
        return
    from torch.distributed.fsdp import FSDPModule, register_fsdp_forward_method

    if isinstance(model, FSDPModule):
        register_fsdp_forward_method(model, "generate")
