"""Read the files of a run for its model card: results, sample captions, recipe, number of parameters."""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from safetensors import safe_open

from ..evaluation.score_names import SCORES, percent_with_interval

CHECKPOINT = re.compile(r"checkpoint-(\d+)")


@dataclass
class Result:
    """Scores of a split with a number of beams."""

    split: str
    num_beams: int
    scores: dict[str, float]  # fractions, by the names of SCORES
    intervals: dict[str, Sequence[float]] = field(default_factory=dict)

    def cell(self, name: str) -> str:
        """Return a score in percent, with its interval if there is one."""
        return percent_with_interval(self.scores[name], self.intervals.get(name)) if name in self.scores else ""


def read_recipe(path: Path) -> dict[str, Any] | None:
    """Read a `recipe.yaml`; None if it does not exist.

    Raises:
        ValueError: if it is not a recipe.
    """
    if not path.is_file():
        return None
    try:
        recipe = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: not YAML ({error})") from error
    if not isinstance(recipe, dict) or not isinstance(recipe.get("stages"), dict):
        raise ValueError(f"{path}: not a recipe (a mapping with `stages`)")
    return recipe


def evaluation_parts(path: Path) -> dict[str, Any]:
    """Read the parts of an `evaluation.json` by name.

    Raises:
        OSError: if it cannot be read.
        ValueError: if `nic evaluate` did not write it, or it has no scores.
    """
    try:
        parts = {name: part["result"] for name, part in json.loads(path.read_text(encoding="utf-8"))["parts"].items()}
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: not results of nic evaluate ({error})") from error
    if not any(name.startswith("beam ") for name in parts):
        raise ValueError(f"{path}: no caption scores; nic evaluate writes them in the part generation")
    return parts


def evaluation_results(parts: Mapping[str, Any], split: str) -> list[Result]:
    """Return the scores in these parts, one result for each number of beams."""
    found = [part for name, part in parts.items() if name.startswith("beam ")]
    return [Result(split, part["num_beams"], part["scores"], part.get("intervals") or {}) for part in found]


def chosen_step(folder: Path, state: Mapping[str, Any], settings: Mapping[str, Any]) -> int | None:
    """Return the step of the weights: the step of a checkpoint, or of the best one, which Trainer loads at the end."""
    numbered = CHECKPOINT.fullmatch(folder.name)
    if numbered:
        return int(numbered[1])
    best = state.get("best_global_step") if settings.get("load_best_model_at_end", True) else None
    return best or state.get("global_step")


def development_results(
    state: Mapping[str, Any], step: int | None, settings: Mapping[str, Any], generation: Mapping[str, Any]
) -> list[Result]:
    """Return the scores of the last evaluation at a step."""
    lines = [line for line in state.get("log_history", []) if "eval_bleu_4" in line and line.get("step") == step]
    if not lines:
        return []
    scores = {score: lines[-1][f"eval_{score}"] for score in SCORES if f"eval_{score}" in lines[-1]}
    return [Result(settings.get("eval_split") or "validation", generation.get("num_beams") or 1, scores)]


def sample_captions(folder: Path, samples: str | Path | None, step: int | None) -> dict[str, str]:
    """Return the captions that `SampleCaptionsCallback` logged at a step, or at the last step before it."""
    places = [folder / "samples", folder.parent / "samples"] if samples is None else [Path(samples)]
    path = next((place / "captions.jsonl" for place in places if (place / "captions.jsonl").is_file()), None)
    if path is None:
        return {}
    found: dict[str, str] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            entry = json.loads(line)
        except ValueError:
            continue  # the run was killed while writing
        if step is None or entry["step"] <= step:
            found = entry["captions"]
    return found


def count_parameters(folder: Path) -> int | None:
    """Count the parameters in a folder; only the headers of the files are read."""
    files = sorted(folder.glob("model*.safetensors"))
    total = 0
    for path in files:
        with safe_open(path, framework="numpy") as weights:
            total += sum(math.prod(weights.get_slice(name).get_shape()) for name in weights.keys())  # noqa: SIM118
    return total if files else None
