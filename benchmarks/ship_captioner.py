"""Replace the captioner that comes with the package: train one or take one, calibrate and score it, write its card.

    python benchmarks/ship_captioner.py --data flickr8k --backbone efficientnet-lite0
    python benchmarks/ship_captioner.py --data flickr8k --captioner runs/better

The weights are the average of the checkpoints that the last stage of the run kept, if it kept several. They are stored
in float16, without the layer of the bag-of-words loss, the code of the core (nic_hf has it) and anything of the
photos and captions they were trained on. The stored files are what is scored. A captioner with a higher CIDEr-D is not
replaced, unless --replace is given.
"""

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import yaml
from huggingface_hub import ModelCard

import nic_hf.captioners
from nic_hf import NICProcessor
from nic_hf.captioners import DEFAULT
from nic_hf.decoding import average_checkpoints
from nic_hf.evaluation import calibrate
from nic_hf.evaluation.suite import evaluate_captioner
from nic_hf.lookup import CARD_FILE
from nic_hf.training.checkpoint_integrity import RECIPE_FILE, STATE_FILE
from nic_hf.training.model_cards import CardFacts, write_model_card

LARGEST = 25_000_000  # bytes
TERMS = (
    "research and non-commercial use, as for the photos and captions of Flickr8k that it was trained on; the weights"
    " of the backbone that it started from are under Apache-2.0"
)
NOTE = f"""It comes with [nic_hf](https://github.com/nic-hf/nic_hf): `nic caption photo.jpg` uses it. Its weights
are the average of the checkpoints of the last stage, in float16.

**Terms of the weights**: {TERMS}. The code is under Apache-2.0."""
USAGE = """```python
from nic_hf import ImageToTextPipeline

captioner = ImageToTextPipeline.from_pretrained()
captioner("photo.jpg")  # [{"generated_text": "..."}]
captioner("photo.jpg", return_scores=True)  # with the chance that people would accept the caption: its confidence
```

"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="Flickr8k's folder")
    parser.add_argument("--captioner", type=Path, help="a trained captioner; by default one is trained")
    parser.add_argument("--backbone", help="backbone to train with")
    parser.add_argument("--recipe", default="shipped", help="recipe to train with")
    parser.add_argument("--run", type=Path, default=Path("runs/shipped"), help="folder of the training run")
    parser.add_argument("--cache_dir", help="folder to keep image features in")
    parser.add_argument("--name", default=DEFAULT, help="name of the captioner in the package")
    parser.add_argument("--length_penalty", type=float, help="chosen on the dev split; the run's by default")
    parser.add_argument("--photos", nargs="*", type=Path, default=[], help="photos to caption for the card")
    parser.add_argument("--replace", action="store_true", help="replace a captioner with a higher CIDEr-D too")
    args = parser.parse_args()
    captioner = args.captioner or train(args)
    target = Path(nic_hf.captioners.__file__).parent / args.name
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary, args.name)
        store(captioner, folder, args.length_penalty)
        size = sum(file.stat().st_size for file in folder.iterdir())
        if size > LARGEST:
            raise SystemExit(
                f"{captioner}: {size / 1e6:.1f} MB in float16; at most {LARGEST / 1e6:.0f} MB are shipped"
            )
        print(calibrate(folder, args.data, cache_dir=args.cache_dir))  # on the dev split, into its config.json
        results = evaluate_captioner(
            folder,
            args.data,
            Path(temporary, "evaluation"),
            include=("generation",),
            beams=(3,),
            cache_dir=args.cache_dir,
        )
        scores = results["beam 3"]["scores"]
        before = cider_in_card(target / CARD_FILE)
        print(f"{size / 1e6:.1f} MB; CIDEr-D {100 * scores['cider']:.2f}, the present one {before or 'none'}")
        if before is not None and round(100 * scores["cider"], 2) < before and not args.replace:
            raise SystemExit(f"{target} has a higher CIDEr-D: not replaced (--replace would)")
        write_card(folder, captioner, args, Path(temporary, "evaluation", "evaluation.json"))
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(folder, target)
        for file in target.iterdir():
            file.chmod(0o644)
    if args.name == DEFAULT:
        shutil.copyfile(target / CARD_FILE, Path(__file__).parents[1] / "MODEL_CARD.md")
    print(target)


def train(args: argparse.Namespace) -> Path:
    """Train with the recipe, and return the folder of the run."""
    if args.backbone is None:
        raise SystemExit("give --backbone to train with, or a trained --captioner")
    command = [sys.executable, "-m", "nic_hf", "train", "--recipe", args.recipe, "--data", args.data]
    command += ["--backbone", args.backbone, "--output_dir", str(args.run)]
    command += ["--cache_dir", args.cache_dir] if args.cache_dir else []
    subprocess.run([*command, *(["--resume"] if args.run.exists() else [])], check=True)
    return args.run


def store(captioner: Path, folder: Path, length_penalty: float | None) -> None:
    """Save a captioner in float16, to be loaded in float32, without code and local paths."""
    last_stage = max(captioner.glob("[0-9]-*"), default=captioner)
    checkpoints = sorted(last_stage.glob("checkpoint-*"))
    print(f"the average of {len(checkpoints)} checkpoints of {last_stage}" if len(checkpoints) > 1 else captioner)
    model = average_checkpoints(checkpoints if len(checkpoints) > 1 else [captioner], dtype=torch.float32)
    model.config.bag_of_words_loss, model.bag_of_words = 0.0, None  # only training computes it
    if length_penalty is not None:
        model.generation_config.length_penalty = length_penalty
    model.half().save_pretrained(folder)
    NICProcessor.from_pretrained(captioner).save_pretrained(folder)
    for file in folder.glob("*.py"):
        file.unlink()
    for path in folder.glob("*.json"):
        if path.name != "tokenizer.json":
            path.write_text(json.dumps(without_places(json.loads(path.read_text("utf-8"))), indent=2) + "\n", "utf-8")


def without_places(settings: Any) -> Any:
    """Settings without the places of code and of local files, and with float32 as the dtype to compute in."""
    if not isinstance(settings, dict):
        return settings
    left_out = ("auto_map", "custom_pipelines", "id2label", "label2id", "_name_or_path", "name_or_path")
    kept = {name: without_places(value) for name, value in settings.items() if name not in left_out}
    return {**kept, "dtype": "float32"} if "dtype" in kept else kept


def write_card(folder: Path, captioner: Path, args: argparse.Namespace, evaluation: Path) -> None:
    """Write the card and the recipe, with names in place of local paths."""
    recipe = yaml.safe_load((captioner / RECIPE_FILE).read_text("utf-8"))
    for settings in recipe["stages"].values():
        settings.update({key: Path(settings[key]).name for key in ("data", "backbone") if settings.get(key)})
        settings["teacher"] = [Path(teacher).name for teacher in settings.get("teacher") or []]
    (folder / RECIPE_FILE).write_text(yaml.safe_dump(recipe, sort_keys=False, width=119), "utf-8")
    captions = nic_hf.ImageToTextPipeline.from_pretrained(folder)([str(photo) for photo in args.photos])
    last = list(recipe["stages"].values())[-1]
    facts = CardFacts(
        name=f"nic-{args.name}",
        note=NOTE,
        license="other",
        data=args.name,
        backbone=None if args.backbone is None else Path(args.backbone).name,
        backbone_license="Apache-2.0",
        examples={photo.name: own[0]["generated_text"] for photo, own in zip(args.photos, captions, strict=True)},
    )
    facts.backbone = facts.backbone or last["backbone"]
    state = json.loads((captioner / STATE_FILE).read_text("utf-8"))
    state |= {"best_model_checkpoint": None, "best_global_step": None}  # it is an average
    card = write_model_card(folder, facts, recipe=recipe, evaluation=evaluation, state=state)
    text, number = re.subn(r"```python\n.*?(?=## Results)", lambda _: USAGE, card.read_text("utf-8"), flags=re.DOTALL)
    assert number == 1, "the template of cards has changed"
    card.write_text(text, "utf-8")


def cider_in_card(card: Path) -> float | None:
    """CIDEr-D in the metadata of a card, in percent."""
    if not card.is_file():
        return None
    results = ModelCard.load(card).data.eval_results or []
    return next((result.metric_value for result in results if result.metric_type == "cider"), None)


if __name__ == "__main__":
    main()
