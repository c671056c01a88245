"""Captions per second on a GPU, a profile of a decoding step, and the time to train Flickr8k to a given CIDEr-D.

    python benchmarks/gpu.py --budget 90 --profile
    python benchmarks/gpu.py --only "time to train" --data path/to/flickr8k --backbone path/to/mobilenet-v2 \
        --target 0.45 --set per_device_train_batch_size=512 learning_rate=4e-3 dataloader_num_workers=4

Measures decoding of image features with `generate()` and training steps on them, in float32 and bfloat16, eager and
compiled, and with `--target` the time of the recipe `frozen` until this CIDEr-D is reached on the dev split (with
cached features, without evaluation). A row that fails contains its error, rows after the budget are skipped, and the
JSON file is written after each row. It also runs on a CPU.
"""

import argparse
import contextlib
import functools
import json
import platform
import re
import signal
import tempfile
import time
import traceback
from pathlib import Path

import torch
import transformers
from torch.profiler import ProfilerActivity, profile
from transformers import TrainerCallback
from transformers.modeling_outputs import BaseModelOutput

from nic_hf import NICConfig, NICForConditionalGeneration

FEATURES, REGIONS, VOCABULARY, WORDS = 2768, 49, 2540, 12


def captioner(device, **settings):
    """The recipe's LSTM; its backbone is not run."""
    backbone = transformers.MobileNetV2Config(depth_multiplier=0.25, image_size=96)
    config = NICConfig(
        backbone_config=backbone,
        feature_size=FEATURES,
        vocab_size=VOCABULARY,
        embedding_size=512,
        hidden_size=512,
        **settings,
    )
    return NICForConditionalGeneration(config).to(device)


def wait(device):
    """Wait for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def training(device, batch_size, steps, dtype=torch.float32, compiled=False):
    """Captions per second of training steps, including the optimizer."""
    model = captioner(device).train()
    step_model = torch.compile(model) if compiled else model
    optimizer = torch.optim.AdamW([w for w in model.parameters() if w.requires_grad], fused=device.type == "cuda")
    features = torch.randn(batch_size, 1, FEATURES, device=device)
    labels = torch.randint(4, VOCABULARY, (batch_size, WORDS), device=device)

    def step():
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            loss = step_model(encoder_outputs=BaseModelOutput(last_hidden_state=features), labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    for _ in range(3):
        step()
    wait(device)
    start = time.perf_counter()
    for _ in range(steps):
        step()
    wait(device)
    seconds = (time.perf_counter() - start) / steps
    return {"captions_a_second": batch_size / seconds, "ms_a_step": 1000 * seconds}


def decoder(device, batch_size, beams, dtype=torch.float32, compiled=False, attention=None):
    """A function that captions a batch of features with `generate()`."""
    model = captioner(device, attention=attention).eval().to(dtype)
    regions = 1 if attention is None else REGIONS
    features = torch.randn(batch_size, regions, FEATURES, device=device, dtype=dtype)
    settings = {"num_beams": beams, "min_new_tokens": WORDS, "max_new_tokens": WORDS}
    if compiled:
        settings["cache_implementation"] = "static"
        if beams > 1:  # Transformers compiles greedy decoding and sampling itself, but not beam search
            torch._dynamo.config.allow_rnn = True
            model.forward = torch.compile(model.forward, mode="reduce-overhead")
        elif device.type != "cuda":
            settings["compile_config"] = transformers.CompileConfig()
            settings["compile_config"]._compile_all_devices = True
    return functools.partial(
        model.generate, encoder_outputs=BaseModelOutput(last_hidden_state=features), **settings
    ), model


def seconds_of(device, decode):
    """Wall-clock seconds of one call."""
    wait(device)
    start = time.perf_counter()
    decode()
    wait(device)
    return time.perf_counter() - start


def decoding(device, batch_size, beams, rounds=4, **settings):
    """Captions per second of `generate()` from image features: the best round after two warm-up rounds."""
    decode, model = decoder(device, batch_size, beams, **settings)
    first = seconds_of(device, decode)
    seconds_of(device, decode)
    seconds = min(seconds_of(device, decode) for _ in range(rounds))
    row = {"captions_a_second": batch_size / seconds, "ms_a_step": 1000 * seconds / WORDS, "first_call_s": first}
    if settings.get("compiled"):
        row["same_as_eager"] = same_as_eager(decode, model)
    return row


def same_as_eager(decode, model):
    """The share of captions that are the same without compilation."""
    settings = {name: value for name, value in decode.keywords.items() if not name.startswith(("cache_", "compile_"))}
    found = decode()
    model.__dict__.pop("forward", None)  # the compiled one, for beam search
    return (found == model.generate(**settings)).all(dim=1).float().mean().item()


def where_time_goes(device, batch_size, beams):
    """The ten kernels (on a CPU: operators) that take longest in one `generate()`, and the share that is no kernel.

    That share, of the time without the profiler, is Python, launches and waiting.
    """
    decode, _ = decoder(device, batch_size, beams)
    decode()
    seconds = min(seconds_of(device, decode) for _ in range(3))
    on_gpu = device.type == "cuda"
    with profile(activities=[ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * on_gpu) as profiler:
        profiled = seconds_of(device, decode)
    kind = torch.autograd.DeviceType.CUDA if on_gpu else torch.autograd.DeviceType.CPU
    times = [
        (event.self_device_time_total if on_gpu else event.self_cpu_time_total, event.count, event.key)
        for event in profiler.key_averages()
        if event.device_type == kind
    ]
    times.sort(reverse=True)
    for microseconds, count, key in times[:10]:
        print(f"  {microseconds / WORDS:9.1f} us per step {count / WORDS:7.1f} x  {key[:90]}")
    kernels = sum(microseconds for microseconds, _, _ in times) / 1e6
    return {
        "ms_a_step": 1000 * seconds / WORDS,
        "kernels_a_step": sum(count for _, count, _ in times) / WORDS,
        "kernel_ms_a_step": 1000 * kernels / WORDS,
        "share_outside_kernels": 1 - kernels / (seconds if on_gpu else profiled),
        "top": [{"us_a_step": t / WORDS, "count_a_step": n / WORDS, "name": key} for t, n, key in times[:10]],
    }


class _Until(TrainerCallback):
    """Stops when the target is reached, and records the seconds of training."""

    def __init__(self, target):
        self.target, self.seconds, self.reached = target, None, 0.0

    def on_evaluate(self, args, state, control, metrics, **kwargs):
        self.reached = max(self.reached, metrics["eval_cider"])
        if self.seconds is None and metrics["eval_cider"] >= self.target:
            self.seconds = next(row["train_seconds"] for row in reversed(state.log_history) if "train_seconds" in row)
            control.should_training_stop = True


def time_to_train(args):
    """Seconds of training until CIDEr-D on dev is `args.target`, and the best value reached."""
    from nic_hf.training.recipes import load_recipe, resolve
    from nic_hf.training.stage_inputs import caption_datasets, load_splits, new_captioner
    from nic_hf.training.trainer import CaptioningTrainer

    settings = {"data": args.data, "backbone": args.backbone, "squeeze": 224, "report_to": "none", "logging_steps": 10}
    settings |= dict(pair.split("=", 1) for pair in args.set)
    (stage,) = resolve(load_recipe("frozen"), settings)
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        stage.args.output_dir = folder
        tables = load_splits(stage.data, stage.args)
        model, processor = new_captioner(stage.model, tables["train"], stage.data.min_frequency)
        model.to(stage.args.device)
        _, train, evaluation = caption_datasets(model, processor, tables, stage.data, stage.args)
        cached = time.perf_counter()
        until = _Until(args.target)
        trainer = CaptioningTrainer(
            model=model,
            args=stage.args,
            train_dataset=train,
            eval_dataset=evaluation,
            processing_class=processor,
            callbacks=[until],
        )
        trainer.train()
    return {
        "target": args.target,
        "seconds": until.seconds,
        "reached": until.reached,
        "epochs": trainer.state.epoch,
        "features_s": cached - start,
        "with_evaluations_s": time.perf_counter() - cached,
    }


def rows_to_measure(args, device):
    """Name and function of each row, the most important ones first, as the budget may not suffice for all."""
    size, bf16 = args.batch_size, torch.bfloat16
    decode = functools.partial(decoding, device)
    train = functools.partial(training, device, size, args.steps)
    rows = [
        ("decoding, beam 3", functools.partial(decode, size, 3)),
        ("decoding, beam 3, bfloat16", functools.partial(decode, size, 3, dtype=bf16)),
        (f"decoding, beam 3, batch {4 * size}", functools.partial(decode, 4 * size, 3)),
        (f"decoding, beam 3, batch {4 * size}, bfloat16", functools.partial(decode, 4 * size, 3, dtype=bf16)),
        ("decoding, greedy", functools.partial(decode, size, 1)),
        ("training, float32", train),
        ("training, bfloat16", functools.partial(train, dtype=bf16)),
        ("decoding, beam 3, attention", functools.partial(decode, size, 3, attention="soft")),
        ("decoding, greedy, static, compiled", functools.partial(decode, size, 1, compiled=True)),
        ("decoding, beam 3, static, compiled", functools.partial(decode, size, 3, compiled=True)),
        ("training, bfloat16, compiled", functools.partial(train, dtype=bf16, compiled=True)),
        ("training, float32, compiled", functools.partial(train, compiled=True)),
        ("decoding, greedy, batch 1", functools.partial(decode, 1, 1)),
        ("decoding, greedy, batch 1, static, compiled", functools.partial(decode, 1, 1, compiled=True)),
    ]
    if args.profile:
        rows.insert(1, ("where a beam-3 step goes", functools.partial(where_time_goes, device, size, 3)))
    if args.target and args.data and args.backbone:
        rows.append(("time to train", functools.partial(time_to_train, args)))
    return [row for row in rows if not args.only or any(re.search(pattern, row[0]) for pattern in args.only)]


@contextlib.contextmanager
def at_most(seconds):
    """Raise TimeoutError if the body takes longer, on systems with SIGALRM."""

    def stop(*_):
        raise TimeoutError("the budget was spent in the middle of this row")

    if seconds is None or not hasattr(signal, "setitimer"):
        yield
        return
    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 0.001))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def measure(function, device, seconds_left):
    """The row of `function` with its peak GPU memory, or the reason for its absence."""
    if seconds_left is not None and seconds_left <= 0:
        return {"skipped": "the budget is spent"}
    torch._dynamo.reset()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    try:
        with at_most(seconds_left):
            row = function()
        if device.type == "cuda":
            row["peak_gib"] = torch.cuda.max_memory_allocated() / 2**30
        return row
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"[:2000], "where": traceback.format_exc(limit=-3)[-2000:]}


def in_words(row):
    """One line for the table."""
    if "error" in row or "skipped" in row:
        return row.get("skipped") or row["error"].splitlines()[0][:100]
    if "captions_a_second" in row:
        return f"{row['captions_a_second']:12,.0f} captions/s {row['ms_a_step']:8.2f} ms per step"
    return ", ".join(f"{name} {value:.3g}" for name, value in row.items() if isinstance(value, int | float))


def main():
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data")
    parser.add_argument("--backbone")
    parser.add_argument("--target", type=float, help="CIDEr-D on the dev split, such as 0.45.")
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE", help="Settings of the recipe.")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--batch_size", type=int, default=1024)
    parser.add_argument("--steps", type=int, default=30, help="Training steps to time.")
    parser.add_argument("--only", nargs="*", metavar="REGEX", help="Only rows whose names match.")
    parser.add_argument("--budget", type=float, metavar="SECONDS", help="Skip the remaining rows after this time.")
    parser.add_argument("--profile", action="store_true", help="Also profile a beam-3 step.")
    parser.add_argument("--output", type=Path, default=Path("gpu.json"))
    args = parser.parse_args()
    start = time.perf_counter()
    device = torch.device(args.device)
    torch.manual_seed(0)
    torch.set_float32_matmul_precision("high")
    name = torch.cuda.get_device_name() if device.type == "cuda" else platform.processor() or platform.machine()
    about = {"device": name, "torch": str(torch.__version__), "transformers": transformers.__version__}
    rows = []
    for what, function in rows_to_measure(args, device):
        left = None if args.budget is None else args.budget - (time.perf_counter() - start)
        rows.append({"what": what, **measure(function, device, left)})
        print(f"{what:46} {in_words(rows[-1])}", flush=True)
        args.output.write_text(
            json.dumps({"about": about, "batch_size": args.batch_size, "words": WORDS, "rows": rows}, indent=1)
        )


if __name__ == "__main__":
    main()
