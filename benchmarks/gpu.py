"""Captions a second on a GPU, and the time to train Flickr8k to a given CIDEr-D.

    python benchmarks/gpu.py --data path/to/flickr8k --backbone path/to/mobilenet-v2 --target 0.45

Training from cached features in float32 and bfloat16, compiled and not; decoding of image features with beam 3 at
batch 1,024; and, with `--target`, the recipe `frozen` until the dev split's CIDEr-D is reached (features cached
before, evaluations not counted). Runs on a CPU too, for a look. Prints one table and writes JSON.
"""

import argparse
import json
import platform
import tempfile
import time
from pathlib import Path

import torch
import transformers
from transformers import TrainerCallback
from transformers.modeling_outputs import BaseModelOutput

from nic_hf import NICConfig, NICForConditionalGeneration
from nic_hf.training.preparation import caption_datasets, load_splits, new_captioner
from nic_hf.training.recipes import load_recipe, resolve
from nic_hf.training.trainer import CaptioningTrainer

FEATURES, VOCABULARY, WORDS = 2768, 2540, 12


def captioner(device):
    """The recipe's LSTM; its backbone is not run."""
    backbone = transformers.MobileNetV2Config(depth_multiplier=0.25, image_size=96)
    config = NICConfig(
        backbone_config=backbone, feature_size=FEATURES, vocab_size=VOCABULARY, embedding_size=512, hidden_size=512
    )
    return NICForConditionalGeneration(config).to(device)


def wait(device):
    """Let the device finish what was asked of it."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def training(device, batch_size, steps, dtype, compiled):
    """Captions a second of training steps."""
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
    return batch_size * steps / (time.perf_counter() - start)


@torch.inference_mode()
def decoding(device, batch_size, beams, rounds):
    """Captions a second of `generate()` from image features."""
    model = captioner(device).eval()
    outputs = BaseModelOutput(last_hidden_state=torch.randn(batch_size, 1, FEATURES, device=device))
    best = 0.0
    for _ in range(rounds + 1):
        wait(device)
        start = time.perf_counter()
        model.generate(encoder_outputs=outputs, num_beams=beams, min_new_tokens=WORDS, max_new_tokens=WORDS)
        wait(device)
        best = max(best, batch_size / (time.perf_counter() - start))
    return best


class _Until(TrainerCallback):
    """Stops when the target is reached, and notes the seconds of training."""

    def __init__(self, target):
        self.target, self.seconds, self.reached = target, None, 0.0

    def on_evaluate(self, args, state, control, metrics, **kwargs):
        self.reached = max(self.reached, metrics["eval_cider"])
        if self.seconds is None and metrics["eval_cider"] >= self.target:
            self.seconds = next(row["train_seconds"] for row in reversed(state.log_history) if "train_seconds" in row)
            control.should_training_stop = True


def time_to_train(args):
    """Seconds of training until dev CIDEr-D is `args.target`, and the best that was reached."""
    settings = {"data": args.data, "backbone": args.backbone, "squeeze": 224, "report_to": "none", "logging_steps": 10}
    settings |= dict(pair.split("=", 1) for pair in args.set)
    (stage,) = resolve(load_recipe("frozen"), settings)
    with tempfile.TemporaryDirectory() as folder:
        stage.args.output_dir = folder
        tables = load_splits(stage.data, stage.args)
        model, processor = new_captioner(stage.model, tables["train"], stage.data.min_frequency)
        model.to(stage.args.device)
        _, train, evaluation = caption_datasets(model, processor, tables, stage.data, stage.args)
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
    return until.seconds, until.reached


def main():
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data")
    parser.add_argument("--backbone")
    parser.add_argument("--target", type=float, help="CIDEr-D on the dev split, such as 0.45.")
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE", help="Settings of the recipe.")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--batch_size", type=int, default=1024)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--output", type=Path, default=Path("gpu.json"))
    args = parser.parse_args()
    device = torch.device(args.device)
    torch.set_float32_matmul_precision("high")
    rows = []
    for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        for compiled in (False, True):
            rate = training(device, args.batch_size, args.steps, dtype, compiled)
            rows.append({"what": f"training, {name}{', compiled' if compiled else ''}", "captions_a_second": rate})
            print(f"{rows[-1]['what']:32} {rate:12,.0f} captions/s", flush=True)
    for beams in (1, 3):
        rate = decoding(device, args.batch_size, beams, 3)
        rows.append({"what": f"decoding, beam {beams}", "captions_a_second": rate})
        print(f"{rows[-1]['what']:32} {rate:12,.0f} captions/s", flush=True)
    if args.target and args.data and args.backbone:
        seconds, reached = time_to_train(args)
        rows.append({"what": f"training to CIDEr-D {args.target}", "seconds": seconds, "reached": reached})
        print(rows[-1])
    name = torch.cuda.get_device_name() if device.type == "cuda" else platform.processor() or platform.machine()
    about = {"device": name, "torch": str(torch.__version__), "transformers": transformers.__version__}
    args.output.write_text(json.dumps({"about": about, "batch_size": args.batch_size, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
