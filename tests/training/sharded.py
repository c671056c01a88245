"""Run by two processes: train a captioner whose weights they share (FSDP2), beside one that each has whole."""

import copy
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from tiny import tiny_labels, tiny_model, tiny_pixels
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from nic_hf.dataset_captions import allow_generate_where_sharded


def main(folder: str, attention: str) -> None:
    """Train both three steps on the same batch, of which each process has half, and compare."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    mesh = init_device_mesh("cpu", (2,))
    model = tiny_model(attention=None if attention == "none" else attention).train()
    whole = copy.deepcopy(model)
    for module in model.modules():
        if type(module).__name__ in model._no_split_modules:
            fully_shard(module, mesh=mesh)
    fully_shard(model, mesh=mesh)
    assert all(type(weight.data).__name__ == "DTensor" for weight in model.parameters())

    images, labels = tiny_pixels(4), tiny_labels([3, 5, 4, 5])
    own = slice(2 * rank, 2 * rank + 2)
    words = (labels != -100).sum()
    optimizers = [torch.optim.SGD(each.parameters(), lr=0.1) for each in (model, whole)]
    for _ in range(3):
        # Gradients are a mean over the processes: each counts its words as a share of half of all.
        inputs = {"pixel_values": images[own], "labels": labels[own], "num_items_in_batch": words / 2}
        loss = model(**inputs).loss
        expected = whole(pixel_values=images, labels=labels).loss
        for each, optimizer in zip((loss, expected), optimizers, strict=True):
            optimizer.zero_grad()
            each.backward()
            optimizer.step()
        mean = loss.detach() / 2
        dist.all_reduce(mean)
        torch.testing.assert_close(mean, expected.detach(), atol=1e-5, rtol=1e-5)

    weights = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    allow_generate_where_sharded(model)
    beams = {"pixel_values": images, "num_beams": 2, "max_new_tokens": 5}
    assert torch.equal(model.eval().generate(**beams), whole.eval().generate(**beams))
    if rank == 0:
        for name, weight in whole.state_dict().items():
            torch.testing.assert_close(weights[name], weight, atol=1e-5, rtol=1e-5)
        saved = copy.deepcopy(whole)
        saved.save_pretrained(Path(folder), state_dict=weights)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
