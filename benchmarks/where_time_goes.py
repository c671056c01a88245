"""Profile captioning of one batch with and without `optimize_for_inference()`.

    python benchmarks/where_time_goes.py runs/flickr8k --output profile.json

Shows the CPU time of operators by kind for a batch of random photos, from pixels to captions (torch.profiler). The
rest is Python, mostly in `generate()`.
"""

import argparse
import json
import time
from collections import Counter
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from nic_hf import NICForConditionalGeneration
from nic_hf.malloc_settings import keep_freed_memory

# The first kind whose words are part of an operator's name counts.
KINDS = {
    "convolutions": ("conv",),
    "batch normalisation": ("batch_norm",),
    "activations": ("hardtanh", "relu", "clamp", "hardswish"),
    "LSTM and words": ("lstm", "addmm", "linear", "mkldnn_rnn", "aten::mm", "matmul", "bmm", "embedding"),
    "choice of words": ("topk", "sort", "softmax", "argmax", "gather", "index", "take_along", "where", "cumsum"),
    "memory": ("copy", "empty", "clone", "contiguous", "cat", "zeros", "ones", "fill", "pad", "stack", "to"),
}


def kind_of(name):
    """The kind of an operator."""
    return next((kind for kind, words in KINDS.items() if any(word in name for word in words)), "other operators")


def measure(model, pixels, settings, rounds):
    """Milliseconds per batch, and the share of each kind of operator."""
    with torch.inference_mode():
        model.generate(pixel_values=pixels, **settings)
        start = time.perf_counter()
        for _ in range(rounds):
            model.generate(pixel_values=pixels, **settings)
        wall = (time.perf_counter() - start) / rounds
        start = time.perf_counter()
        for _ in range(rounds):
            model.get_encoder()(pixels)
        encoder = (time.perf_counter() - start) / rounds
        with profile(activities=[ProfilerActivity.CPU]) as profiler:
            start = time.perf_counter()
            model.generate(pixel_values=pixels, **settings)
            profiled = time.perf_counter() - start
    times = Counter()
    for event in profiler.key_averages():
        times[kind_of(event.key)] += event.self_cpu_time_total / 1e6
    shares = {kind: seconds / profiled for kind, seconds in times.most_common()}
    shares["Python and waiting"] = max(0.0, 1 - sum(shares.values()))
    return {"ms": 1e3 * wall, "encoder_ms": 1e3 * encoder, "shares": shares}


def main():
    """Profile both, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--num_beams", type=int, default=3)
    parser.add_argument("--words", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    pixels = torch.randn(args.batch_size, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    settings = {"num_beams": args.num_beams, "min_new_tokens": args.words, "max_new_tokens": args.words}
    model = NICForConditionalGeneration.from_pretrained(args.checkpoint).eval()
    found = {"before": measure(model, pixels, settings, args.rounds)}
    keep_freed_memory()
    found["freed memory kept"] = measure(model, pixels, settings, args.rounds)
    found["after"] = measure(model.optimize_for_inference(), pixels, settings, args.rounds)
    names = list(dict.fromkeys(name for one in found.values() for name in one["shares"]))
    print("| | " + " | ".join(found) + " |\n|---|" + "---|" * len(found))
    for label, key in (("a batch, ms", "ms"), ("of it the encoder, ms", "encoder_ms")):
        print(f"| {label} | " + " | ".join(f"{one[key]:.0f}" for one in found.values()) + " |")
    for name in names:
        print(
            f"| {name} | " + " | ".join(f"{100 * one['shares'].get(name, 0):.0f} %" for one in found.values()) + " |"
        )
    if args.output:
        args.output.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
