"""Captions of a whole data set, on one process or many."""

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
    """Caption every photo; under torchrun each process takes its share and all get the whole result.

    Args:
        model: the captioner; put in eval mode while it captions.
        photos: the photos.
        batch_size: photos a step.
        num_workers: processes that decode photos, where there are no cached features.
        progress: show a bar.
        **generate_kwargs: passed to `generate()`; what is not given is as the checkpoint's generation config says.

    Returns:
        A caption for each `image_id`, in the order of the data set.
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
    """As [`generate_captions`], with all `num_return_sequences` captions of each photo, the best first."""
    allow_generate_where_sharded(model)
    state = PartialState()
    share = range(state.process_index, len(photos), state.num_processes)
    if photos.features is not None:
        num_workers = 0  # to read cached features takes less time than to start a worker
    loader: DataLoader = DataLoader(
        Subset(photos, share),
        batch_size=batch_size,
        num_workers=num_workers,
        collate_fn=CaptionCollator(),
        multiprocessing_context="spawn" if num_workers else None,
        generator=torch.Generator(),  # a loader draws from the global one otherwise, and changes a run by watching it
    )
    was_training = model.training
    model.eval()
    captioner: Any = model  # the type of `generate` holds for the library's own classes only
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
    """Let `generate()` gather the weights of a model that FSDP2 has shared out, as `forward` does."""
    if not torch.distributed.is_available():
        return
    from torch.distributed.fsdp import FSDPModule, register_fsdp_forward_method

    if isinstance(model, FSDPModule):
        register_fsdp_forward_method(model, "generate")
