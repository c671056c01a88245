"""Which checkpoint of a run to keep: rules that choose on one half of the dev split, scored on the other half.

    nic train --recipe frozen ... --seed 1 --save_total_limit 100 --output_dir runs/seed1     # and seeds 2 and 3
    python benchmarks/checkpoint_choice.py runs/seed*/1-frozen --data path/to/flickr8k

Each checkpoint captions the dev split with its own generation config, the decoding that will be used. Then the photos
are split in half at random, many times. Prints the mean CIDEr-D of the other half in percent for each rule, over
halves and runs, and how far it is from the checkpoint that is best there.
"""

import argparse
import json
from pathlib import Path

import numpy as np

from nic_hf import NICForConditionalGeneration, NICProcessor, load_captions
from nic_hf.dataset_captions import generate_captions
from nic_hf.decoding import average_checkpoints
from nic_hf.evaluation import score_captions
from nic_hf.evaluation.suite.tables import photos_with_features
from nic_hf.training.trainer import SMOOTHED_EVALUATIONS as LAST  # also the number of checkpoints that are averaged


def photo_scores(model, processor, photos, cache_dir):
    """CIDEr-D of each photo in percent, with the document frequencies of the whole split."""
    dataset = photos_with_features(model.eval(), processor, photos, cache_dir=cache_dir)
    captions = generate_captions(model, dataset, batch_size=128)
    scores = score_captions(captions, dataset.references(), ["cider"], per_image=True)["per_image"]
    return np.array([100 * scores[name]["cider"] for name in captions])


def smoothed(means):
    """Mean of each value and those before it, of `LAST` at most."""
    return np.array([means[max(0, place + 1 - LAST) : place + 1].mean() for place in range(len(means))])


def main():
    """Caption, choose, and print a line for each rule."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, help="folders of stages, with checkpoints")
    parser.add_argument("--data", required=True)
    parser.add_argument("--split", default="dev")
    parser.add_argument("--halves", type=int, default=500)
    parser.add_argument("--cache_dir")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    photos = load_captions(args.data, args.split)
    rules = {
        "the last checkpoint": lambda half: -1,
        "the best score": lambda half: half.mean(axis=1).argmax(),
        f"the best score, smoothed over {LAST} evaluations": lambda half: smoothed(half.mean(axis=1)).argmax(),
    }
    found = {rule: [] for rule in (*rules, f"the average of the last {LAST}", "the best on the other half")}
    generator = np.random.default_rng(0)
    for run in args.runs:
        checkpoints = sorted(run.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
        if len(checkpoints) < 2:
            raise SystemExit(f"{run}: {len(checkpoints)} checkpoints; give the folder of a stage that kept several")
        processor = NICProcessor.from_pretrained(checkpoints[-1])
        models = (NICForConditionalGeneration.from_pretrained(checkpoint) for checkpoint in checkpoints)
        scores = np.stack([photo_scores(model, processor, photos, args.cache_dir) for model in models])
        average = photo_scores(average_checkpoints(checkpoints[-LAST:]), processor, photos, args.cache_dir)
        print(f"{run}: " + ", ".join(f"{mean:.2f}" for mean in scores.mean(axis=1)), flush=True)
        for _ in range(args.halves):
            order = generator.permutation(len(photos))
            half, other = order[: len(order) // 2], order[len(order) // 2 :]
            for rule, choose in rules.items():
                found[rule].append(scores[choose(scores[:, half]), other].mean())
            found[f"the average of the last {LAST}"].append(average[other].mean())
            found["the best on the other half"].append(scores[:, other].mean(axis=1).max())
    best = np.array(found["the best on the other half"])
    rows = [
        {"rule": rule, "cider": float(np.mean(values)), "below_best": float(np.mean(best - values))}
        for rule, values in found.items()
    ]
    for row in rows:
        print(f"{row['rule']}: {row['cider']:.2f}, {row['below_best']:.2f} below the best")
    if args.output:
        args.output.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
