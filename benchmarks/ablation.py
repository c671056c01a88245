"""Ablation study of a recipe: the recipe, and the recipe with one setting changed, each with several seeds.

    python benchmarks/ablation.py --data path/to/flickr8k --backbone path/to/mobilenet-v2 --max_train_photos 2000

All runs are selected and scored on the dev split. Runs in the output file are not repeated, so the command can be
interrupted. Prints a table of means and standard deviations over the seeds, and writes JSON.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import yaml

from nic_hf.malloc_settings import keep_freed_memory
from nic_hf.training.recipe_runner import run_recipe
from nic_hf.training.recipes import load_recipe, resolve
from nic_hf.writing import write_text

CHANGES = {
    "frozen": {
        "the recipe": {},
        "last layer only": {"feature_layers": None},
        "attention to the last layer": {"feature_layers": None, "attention": "soft"},
        "one view": {"views": 1},
        "two views, mirrored": {"views": 2},
        "no loss of the bag of words": {"bag_of_words_loss": 0.0},
        "dropout of the photo as of words": {"image_dropout": 0.5},
        "no label smoothing": {"label_smoothing": 0.0},
        "no averaging of weights": {"ema_decay": 0.0},
        "no weight decay": {"weight_decay": 0.0},
        "dropout 0.3": {"dropout": 0.3},
        "variational dropout": {"variational_dropout": True},
        "recurrent dropout 0.2": {"recurrent_dropout": 0.2},
        "scheduled sampling to 0.25": {"scheduled_sampling": 0.25},
        "constant learning rate": {"lr_scheduler_type": "constant_with_warmup"},
    }
}
METRICS = ("eval_loss", "eval_bleu_4", "eval_cider", "eval_distinct", "eval_words")


def run(recipe, changes, seed, args, folder):
    """Scores of one run on the dev split."""
    settings = {
        "data": args.data,
        "backbone": args.backbone,
        "seed": seed,
        "report_to": "none",
        "disable_tqdm": "true",
        "save_total_limit": 1,
        **dict(pair.split("=", 1) for pair in args.set),
    }
    if args.max_train_photos:
        settings["max_train_photos"] = args.max_train_photos
    recipe = yaml.safe_load(yaml.safe_dump(recipe))
    for stage in recipe["stages"].values():
        stage.update(changes)
    start = time.perf_counter()
    metrics = run_recipe(resolve(recipe, settings), folder)
    return {name: metrics[name] for name in METRICS if name in metrics} | {"seconds": time.perf_counter() - start}


def show(results, names):
    """A Markdown table, best CIDEr-D first."""
    print("| | dev loss | BLEU-4 | CIDEr-D | distinct captions | words | seeds |\n|---|---|---|---|---|---|---|")
    rows = {name: [row for row in results if row["change"] == name] for name in names}
    for name, found in sorted(rows.items(), key=lambda item: -statistics.mean(row["eval_cider"] for row in item[1])):
        cells = []
        for metric, factor, digits in zip(METRICS, (1, 100, 100, 100, 1), (3, 1, 1, 0, 1), strict=True):
            values = [factor * row[metric] for row in found]
            spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 and metric != "eval_words" else ""
            cells.append(f"{statistics.mean(values):.{digits}f}{spread}")
        print(f"| {name} | {' | '.join(cells)} | {len(found)} |")


def main():
    """Run what is missing, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--backbone", required=True)
    parser.add_argument("--recipe", default="frozen", choices=list(CHANGES))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", nargs="+", help="Names of changes.")
    parser.add_argument("--max_train_photos", type=int)
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE", help="Settings of all runs.")
    parser.add_argument("--output", type=Path, default=Path("ablation.json"))
    args = parser.parse_args()
    keep_freed_memory()
    results = json.loads(args.output.read_text()) if args.output.exists() else []
    names = args.only or list(CHANGES[args.recipe])
    for seed in args.seeds:
        for name in names:
            if any(row["change"] == name and row["seed"] == seed for row in results):
                continue
            with tempfile.TemporaryDirectory() as folder:
                changes = CHANGES[args.recipe][name]
                scores = run(load_recipe(args.recipe), changes, seed, args, Path(folder) / "run")
            results.append({"change": name, "seed": seed, **scores})
            write_text(args.output, json.dumps(results, indent=1))
            print(json.dumps(results[-1]), flush=True)
    show(results, [name for name in names if any(row["change"] == name for row in results)])


if __name__ == "__main__":
    main()
