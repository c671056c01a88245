"""Compare optimized and exported captioners with PyTorch in float32: logits, captions, CIDEr-D, size, speed.

    python benchmarks/onnx_captioner.py runs/flickr8k --data path/to/flickr8k --json onnx.json

Exports a trained checkpoint in float32 and in 8 bits (dynamic, and static with photos of the training split), captions
a split with each and with `optimize_for_inference()` in float32 and bfloat16, with the checkpoint's settings and with
greedy decoding, and scores the captions. Prints a table and writes JSON.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from machine import save

from nic_hf import NICForConditionalGeneration, NICProcessor
from nic_hf.data import load_captions
from nic_hf.evaluation import score_captions
from nic_hf.export import NICOnnxCaptioner, calibration_photos, export_onnx, quantize_onnx
from nic_hf.export.verification import next_word_logits
from nic_hf.malloc_settings import keep_freed_memory

GREEDY = {"num_beams": 1}
COLD_ONNX = """
import sys
from nic_hf.export import NICOnnxCaptioner
print(NICOnnxCaptioner.from_pretrained(sys.argv[1]).caption(sys.argv[2]))
assert "torch" not in sys.modules and "transformers" not in sys.modules
"""
COLD_PYTORCH = """
import sys
from nic_hf import ImageToTextPipeline, NICForConditionalGeneration, NICProcessor
model, processor = (part.from_pretrained(sys.argv[1]) for part in (NICForConditionalGeneration, NICProcessor))
print(ImageToTextPipeline(model=model, processor=processor)(sys.argv[2])[0]["generated_text"])
"""


@torch.no_grad()
def captions_of_pytorch(model, processor, pixel_batches, **settings):
    """Captions of all photos, and the seconds taken."""
    start, captions = time.perf_counter(), []
    for pixels in pixel_batches:
        ids = model.generate(pixel_values=torch.from_numpy(pixels), **settings)
        captions += processor.batch_decode(ids, skip_special_tokens=True)
    return captions, time.perf_counter() - start


def captions_of_onnx(captioner, pixel_batches, **settings):
    """Captions of all photos, and the seconds taken."""
    start, captions = time.perf_counter(), []
    for pixels in pixel_batches:
        captions += captioner.decode(captioner.generate(pixels, **settings))
    return captions, time.perf_counter() - start


@torch.no_grad()
def largest_difference(captioner, model, pixel_batches):
    """Largest difference of logits from PyTorch's, from photos to logits, over the words of greedy captions."""
    largest = 0.0
    for pixels in pixel_batches:
        words = captioner.generate(pixels, **GREEDY)[:, :-1]
        expected = model(pixel_values=torch.from_numpy(pixels), decoder_input_ids=torch.from_numpy(words)).logits
        found = next_word_logits(captioner, captioner.get_image_features(pixels), words[:, None])[:, 0]
        largest = max(largest, float(np.abs(found - expected.numpy()).max()))
    return largest


def cold_start(code, folder, photo):
    """Seconds from the start of a process to the caption of a photo; the best of three."""
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        subprocess.run([sys.executable, "-c", code, str(folder), photo], check=True, capture_output=True)
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def megabytes(folder):
    """Size of all files in a captioner's folder."""
    return sum(file.stat().st_size for file in Path(folder).iterdir() if file.is_file()) / 1e6


def main() -> None:
    """Export, caption, score, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", help="folder of a trained captioner")
    parser.add_argument("--data", required=True, help="captioned photos with splits, such as a Flickr8k folder")
    parser.add_argument("--split", default="dev", help="photos to caption and score")
    parser.add_argument("--max_photos", type=int, help="caption the first photos only")
    parser.add_argument("--calibration", type=int, default=200, help="photos of the training split for static int8")
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, help="output file")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    keep_freed_memory()

    model = NICForConditionalGeneration.from_pretrained(args.checkpoint).eval()
    processor = NICProcessor.from_pretrained(args.checkpoint)
    rows = load_captions(args.data, args.split)
    rows = rows.select(range(min(args.max_photos or len(rows), len(rows))))
    references = dict(zip(rows["image_id"], rows["captions"], strict=True))
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        export_onnx(args.checkpoint, folder / "float32")
        quantize_onnx(folder / "float32", folder / "dynamic")
        photos = calibration_photos(args.data, "train", args.calibration)
        quantize_onnx(folder / "float32", folder / "static", photos)
        captioners = {
            name: NICOnnxCaptioner.from_pretrained(folder / name, num_threads=args.threads)
            for name in ("float32", "dynamic", "static")
        }
        batches = [
            captioners["float32"].preprocess(rows[start : start + args.batch_size]["image"])
            for start in range(0, len(rows), args.batch_size)
        ]
        results: dict[str, dict] = {}
        reference, greedy = [], []
        faster = {"PyTorch": model}
        for name, dtype in (("PyTorch, optimised", None), ("PyTorch, bfloat16", torch.bfloat16)):
            faster[name] = NICForConditionalGeneration.from_pretrained(args.checkpoint).optimize_for_inference(dtype)
        for name in (*faster, *captioners):
            if name in faster:
                captions, seconds = captions_of_pytorch(faster[name], processor, batches)
                greedy_captions, _ = captions_of_pytorch(faster[name], processor, batches, **GREEDY)
                size = sum(p.numel() for p in model.parameters()) * 4 / 1e6
                reference, greedy = reference or captions, greedy or greedy_captions
            else:
                captions, seconds = captions_of_onnx(captioners[name], batches)
                greedy_captions, _ = captions_of_onnx(captioners[name], batches, **GREEDY)
                size = megabytes(folder / name)
            scores = score_captions(dict(zip(references, captions, strict=True)), references, metrics=["cider"])
            results[name] = {
                "megabytes": round(size, 2),
                "cider_d": round(100 * scores["cider"], 2),
                "same_captions": sum(a == b for a, b in zip(captions, reference, strict=True)),
                "same_greedy_captions": sum(a == b for a, b in zip(greedy_captions, greedy, strict=True)),
                "photos_a_second": round(len(rows) / seconds, 1),
            }
        results["float32"]["largest_logit_difference"] = largest_difference(captioners["float32"], model, batches)
        rows[0]["image"].save(folder / "photo.jpg")
        photo = str(folder / "photo.jpg")
        results["PyTorch"]["cold_start_s"] = round(cold_start(COLD_PYTORCH, args.checkpoint, photo), 2)
        for name in captioners:
            results[name]["cold_start_s"] = round(cold_start(COLD_ONNX, folder / name, photo), 2)

    print(f"{len(rows)} photos of {args.split}, {args.threads} threads, batches of {args.batch_size}\n")
    print("| | MB | CIDEr-D | against PyTorch | same captions | same, greedy | photos/s | cold start, s |")
    print("|---|---|---|---|---|---|---|---|")
    for name, result in results.items():
        cells = [
            f"{result['megabytes']:.1f}",
            f"{result['cider_d']:.2f}",
            f"{result['cider_d'] - results['PyTorch']['cider_d']:+.2f}",
            f"{result['same_captions']}",
            f"{result['same_greedy_captions']}",
            f"{result['photos_a_second']:.0f}",
            f"{result['cold_start_s']:.2f}" if "cold_start_s" in result else "",
        ]
        print(f"| {' | '.join([name, *cells])} |")
    print(f"\nlargest difference of a logit in float32: {results['float32']['largest_logit_difference']:.1g}")
    save(args.json, settings=vars(args), photos=len(rows), results=results)


if __name__ == "__main__":
    main()
