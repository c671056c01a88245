"""Captions per second on a CPU, in PyTorch and ONNX Runtime, compared with ViT-GPT2, GIT-base and BLIP-base.

    nic export onnx captioner-onnx
    nic export onnx captioner-int8 --int8 --calibration path/to/flickr8k
    python benchmarks/throughput.py --onnx captioner-onnx captioner-int8 --bfloat16 --output throughput.json

From decoded photos (arrays of 224 x 224, or 384 x 384 for BLIP) to exactly `--words` words per caption. The other
models have random weights of their published shapes, which does not affect their speed. For ONNX captioners, the time
of one photo from an array of bytes to a text of natural length is measured too. All run in one process, several times
each, and the best time counts. Prints a table, and writes JSON with the machine, versions, ratios to ViT-GPT2, and the
share of the rate that the captioner's multiplications alone would have (see limits.py), measured before and after.
"""

import argparse
import gc
from pathlib import Path

import numpy as np
import torch
import transformers
from limits import limit, machine_limits, operations
from machine import save, seconds

from nic_hf import NICForConditionalGeneration
from nic_hf.captioners import captioner_path
from nic_hf.images import load_photo
from nic_hf.malloc_settings import keep_freed_memory


def vit_gpt2():
    """nlpconnect/vit-gpt2-image-captioning: ViT-base and GPT-2 with cross-attention."""
    encoder = transformers.ViTConfig()
    decoder = transformers.GPT2Config(add_cross_attention=True, is_decoder=True)
    config = transformers.VisionEncoderDecoderConfig.from_encoder_decoder_configs(encoder, decoder)
    config.decoder_start_token_id, config.pad_token_id = 50256, 50256
    model = transformers.VisionEncoderDecoderModel(config)
    model.generation_config.pad_token_id = model.generation_config.decoder_start_token_id = 50256
    return model, 224


def git_base():
    """microsoft/git-base."""
    return transformers.GitForCausalLM(transformers.GitConfig()), 224


def blip_base():
    """Salesforce/blip-image-captioning-base."""
    return transformers.BlipForConditionalGeneration(transformers.BlipConfig()), 384


PEERS = {"ViT-GPT2": vit_gpt2, "GIT-base": git_base, "BLIP-base": blip_base}


def torch_captioner(model, size, batch_size, beams, words):
    """A function that captions a batch of random photos."""
    photos = torch.randn(batch_size, 3, size, size)
    model = model.eval()

    def run():
        with torch.inference_mode():
            model.generate(
                pixel_values=photos, num_beams=beams, min_new_tokens=words, max_new_tokens=words, do_sample=False
            )

    return run


def onnx_captioners(folders, providers):
    """Name, precision and captioner of each export."""
    from nic_hf.export import NICOnnxCaptioner

    opened = [NICOnnxCaptioner.from_pretrained(folder, providers=providers) for folder in folders]
    return [(each.folder.name, each.manifest["precision"].split(",")[0], each) for each in opened]


def onnx_captioner(captioner, batch_size, beams, words):
    """The same in ONNX Runtime."""
    shape = (batch_size, *captioner.manifest["image_shape"])
    photos = np.random.default_rng(0).standard_normal(shape).astype(np.float32)

    def run():
        captioner.generate(pixel_values=photos, num_beams=beams, min_new_tokens=words, max_new_tokens=words)

    return run


def onnx_one_photo(captioner, photo):
    """One photo, from its pixels as bytes to its caption."""
    if photo is None:
        pixels = np.random.default_rng(0).integers(0, 256, (224, 224, 3), dtype=np.uint8)
    else:
        pixels = np.asarray(load_photo(photo).resize((224, 224)))
    return lambda: captioner.caption(pixels, num_beams=3)


def main():
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", nargs="?", help="By default the captioner that comes with the package.")
    parser.add_argument("--onnx", nargs="*", default=[], help="Folders that `nic export onnx` wrote.")
    parser.add_argument("--providers", nargs="*", help="ONNX Runtime's execution providers, by default the CPU.")
    parser.add_argument("--photo", help="Photo to time, instead of noise.")
    parser.add_argument("--peers", nargs="*", default=list(PEERS), choices=list(PEERS))
    parser.add_argument("--bfloat16", action="store_true", help="Also measure bfloat16 in PyTorch.")
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--peer_batch_size", type=int, default=8)
    parser.add_argument("--num_beams", type=int, default=3)
    parser.add_argument("--words", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path, default=Path("throughput.json"))
    args = parser.parse_args()
    keep_freed_memory()
    beams, words = args.num_beams, args.words
    folder = captioner_path(args.checkpoint)
    plain, fast = (NICForConditionalGeneration.from_pretrained(folder) for _ in range(2))
    models = [("PyTorch", "float32", plain), ("optimize_for_inference", "float32", fast.optimize_for_inference())]
    if args.bfloat16:
        model = NICForConditionalGeneration.from_pretrained(folder).optimize_for_inference(torch.bfloat16)
        models.append(("optimize_for_inference, bfloat16", "bfloat16", model))
    exports = onnx_captioners(args.onnx, args.providers)
    counted, before = operations(plain.eval(), beams, words), machine_limits()
    runs = []
    for batch_size in (args.batch_size, 1):
        for name, kind, model in models:
            runs.append((f"nic_hf, {name}", kind, batch_size, torch_captioner(model, 224, batch_size, beams, words)))
        for name, kind, captioner in exports:
            runs.append(
                (f"nic_hf, ONNX, {name}", kind, batch_size, onnx_captioner(captioner, batch_size, beams, words))
            )
    for name, kind, captioner in exports:
        runs.append((f"nic_hf, ONNX, {name}, array to text", kind, 1, onnx_one_photo(captioner, args.photo)))
    rows = []

    def measure(name, kind, batch_size, run, rounds):
        best, median = seconds(run, rounds)
        rows.append({"what": name, "batch": batch_size, "photos_a_second": batch_size / best, "ms": 1e3 * best})
        rows[-1] |= {"median_ms": 1e3 * median, "limit": kind}
        print(f"{name:44} batch {batch_size:3}  {batch_size / best:8.1f} photos/s  {1e3 * best:9.1f} ms", flush=True)

    for name, kind, batch_size, run in runs:
        measure(name, kind, batch_size, run, args.rounds if batch_size > 1 else 6 * args.rounds)
    after = machine_limits()
    limits = {name: max(rate, after[name]) for name, rate in before.items()}
    for name in args.peers:
        model, size = PEERS[name]()
        measure(name, None, args.peer_batch_size, torch_captioner(model, size, args.peer_batch_size, beams, words), 2)
        del model
        gc.collect()
    reference = next((row["photos_a_second"] for row in rows if row["what"] == "ViT-GPT2"), None)
    for row in rows:
        if row["limit"]:
            row["of_the_limit"] = row["photos_a_second"] / limit(counted, limits, row["limit"])
            print(f"{row['what']:44} batch {row['batch']:3}  {row['of_the_limit']:8.0%} of the {row['limit']}")
        if reference:
            row["times_vit_gpt2"] = row["photos_a_second"] / reference
            print(f"{row['what']:44} batch {row['batch']:3}  {row['times_vit_gpt2']:8.1f} x ViT-GPT2")
    threads = torch.get_num_threads()
    save(args.output, settings=vars(args), threads=threads, limits=limits, operations=counted, rows=rows)


if __name__ == "__main__":
    main()
