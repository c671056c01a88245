"""Write model cards from the files of a captioner: training data, settings and scores.

The files are `config.json`, `generation_config.json`, `model.safetensors`, `trainer_state.json`, `recipe.yaml`,
`samples/captions.jsonl`, and the `evaluation.json` of `nic evaluate`.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from ..evaluation.score_names import JAVA_METRICS, SCORES
from ..lookup import CARD_FILE
from ..writing import markdown_text, write_text
from .checkpoint_integrity import RECIPE_FILE, STATE_FILE, read_json
from .dataset_facts import CITATION, KnownData, known_data
from .run_records import (
    CHECKPOINT,
    Result,
    chosen_step,
    count_parameters,
    development_results,
    evaluation_parts,
    evaluation_results,
    read_recipe,
    sample_captions,
)

TEMPLATE = Path(__file__).parent / "templates" / "model_card.md.jinja"
TAGS = ("image-captioning", "show-and-tell", "nic")
EXAMPLES = 8
# Settings of a recipe that the card shows unless they have this value; recipe.yaml has all of them.
SHOWN = {
    "objective": None,
    "freeze_backbone": None,
    "feature_layers": None,
    "attention": None,
    "hidden_size": None,
    "num_hidden_layers": 1,
    "word_vectors": None,
    "views": 1,
    "dropout": None,
    "image_dropout": None,
    "label_smoothing": 0.0,
    "bag_of_words_loss": 0.0,
    "num_train_epochs": None,
    "max_steps": -1,
    "per_device_train_batch_size": None,
    "gradient_accumulation_steps": 1,
    "captions_per_sample": 1,
    "learning_rate": None,
    "backbone_learning_rate": None,
    "lr_scheduler_type": None,
    "weight_decay": 0.0,
    "ema_decay": None,
    "scheduled_sampling": 0.0,
    "cross_entropy_weight": 0.0,
    "metric_for_best_model": None,
    "max_train_photos": None,
    "seed": None,
}


@dataclass
class CardFacts:
    """Facts that the files of a run do not contain, or that override them.

    Attributes:
        name: name of the captioner; by default the name of its folder.
        note: a second paragraph, such as where to find the weights.
        repo_id: Hub id in the usage example.
        license: licence of the captioner, as the Hub spells it (`apache-2.0`).
        language: language of the captions (`en`); known for common datasets.
        tags: additional tags for the Hub.
        data: name or Hub id of the training data.
        data_license, backbone_license: licences of data and backbone, in words.
        backbone: name or Hub id of the backbone.
        split: the split of `evaluation.json`.
        examples: captions by photo, instead of those that training logged.
    """

    name: str | None = None
    note: str | None = None
    repo_id: str | None = None
    license: str | None = None
    language: str | None = None
    tags: list[str] = field(default_factory=list)
    data: str | None = None
    data_license: str | None = None
    backbone: str | None = None
    backbone_license: str | None = None
    split: str = "test"
    examples: dict[str, str] = field(default_factory=dict)


def write_model_card(
    folder: str | Path,
    facts: CardFacts | None = None,
    *,
    output: str | Path | None = None,
    recipe: Mapping[str, Any] | None = None,
    evaluation: str | Path | None = None,
    samples: str | Path | None = None,
    state: Mapping[str, Any] | None = None,
) -> Path:
    """Write the model card of a captioner, by default to `README.md` in its folder. See [`model_card`].

    Raises:
        OSError: if a file cannot be read, or the card cannot be written.
        ValueError: if the folder is not a captioner, or a file is invalid.
    """
    card = model_card(folder, facts, recipe=recipe, evaluation=evaluation, samples=samples, state=state)
    return write_text(output or Path(folder) / CARD_FILE, f"{str(card).rstrip()}\n")


def model_card(
    folder: str | Path,
    facts: CardFacts | None = None,
    *,
    recipe: Mapping[str, Any] | None = None,
    evaluation: str | Path | None = None,
    samples: str | Path | None = None,
    state: Mapping[str, Any] | None = None,
) -> ModelCard:
    """Render the model card of a captioner.

    It never contains photos: most datasets do not allow their redistribution.

    Args:
        folder: folder of the captioner.
        facts: facts that its files do not contain.
        recipe: content of `recipe.yaml`, if that file is not in the folder.
        evaluation: an `evaluation.json` of `nic evaluate`, whose scores replace those on the validation split.
        samples: folder of the sample captions, if it is not `samples` in `folder` or next to it.
        state: content of `trainer_state.json`, if that file is not in the folder.

    Raises:
        OSError: if a file cannot be read.
        ValueError: if the folder is not a captioner, or a file is invalid.
    """
    folder, facts = Path(folder), facts or CardFacts()
    config = read_json(folder / "config.json")
    if config is None or config.get("model_type") != "nic":
        raise ValueError(f"{folder}: not a captioner (it has no config.json with model_type nic)")
    generation = read_json(folder / "generation_config.json") or {}
    recipe = read_recipe(folder / RECIPE_FILE) if recipe is None else recipe
    stages = [{"name": name, **settings} for name, settings in (recipe or {}).get("stages", {}).items()]
    last: dict[str, Any] = stages[-1] if stages else {}
    state = read_json(folder / STATE_FILE) or {} if state is None else state

    given = facts.data and (Path(facts.data).name if Path(facts.data).exists() else facts.data)
    data_name = given or _public_name(last.get("data"))
    known = known_data(data_name)
    parts = None if evaluation is None else evaluation_parts(Path(evaluation))
    step = chosen_step(folder, state, last)
    results = evaluation_results(parts, facts.split) if parts else development_results(state, step, last, generation)
    backbone = facts.backbone or _public_name(config["backbone_config"].get("_name_or_path"))
    examples = facts.examples or sample_captions(folder, samples, step)
    name = facts.name or _name(folder.resolve())
    # The metadata, which leaderboards read, has the scores with the default number of beams.
    usual = [result for result in results if result.num_beams == generation.get("num_beams", 1)] or results[:1]
    columns = [score for score in SCORES if any(score in result.scores for result in results)]

    card_data = ModelCardData(
        language=facts.language or (known.language if known else None),
        license=facts.license,
        library_name="transformers",
        pipeline_tag="image-to-text",
        tags=[*TAGS, *(tag for tag in facts.tags if tag not in TAGS)],
        datasets=[data_name] if data_name and _is_hub_id(data_name) else None,
        base_model=backbone if _is_hub_id(backbone) else None,
        metrics=list(dict.fromkeys(SCORES[score].hub_type for score in columns)) or None,
        model_name=name,
        eval_results=list(_eval_results(usual, data_name, known)) or None,
    )
    return ModelCard.from_template(
        card_data,
        template_path=str(TEMPLATE),
        name=name,
        facts=facts,
        config=config,
        backbone=backbone,
        kind=config["backbone_config"].get("model_type", "vision model"),
        parameters=count_parameters(folder),
        generation=generation,
        examples=[(_cell(photo), _cell(caption)) for photo, caption in list(examples.items())[:EXAMPLES]],
        results=results,
        titles={score: SCORES[score].title for score in columns},
        java=[SCORES[score].title for score in columns if score in JAVA_METRICS],
        tested=parts is not None,
        state=state,
        step=step,
        minutes=max((line.get("train_seconds", 0.0) for line in state.get("log_history", [])), default=0.0) / 60,
        recipe=recipe or {},
        stages=stages,
        last=last,
        settings=list(_settings(stages)),
        data_name=data_name,
        known=known,
        diversity=None if parts is None else _diversity(parts, results),
        citations=[CITATION, *([known.citation] if known else [])],
    )


def _name(folder: Path) -> str:
    return folder.parent.name if CHECKPOINT.fullmatch(folder.name) else folder.name


def _public_name(source: Any) -> str | None:
    """Return a Hub id unchanged, and only the last part of a path: local folders do not belong in a card."""
    if not isinstance(source, str) or not source:
        return None
    if _is_hub_id(source) and not Path(source).exists():
        return source
    return re.split(r"[/\\]", source.rstrip("/\\"))[-1]


def _is_hub_id(name: str | None) -> bool:
    return name is not None and re.fullmatch(r"[\w.-]+/[\w.-]+", name) is not None and not name.startswith(".")


def _eval_results(results: list[Result], data_name: str | None, known: KnownData | None) -> Iterator[EvalResult]:
    title = known.title if known else (data_name or "unnamed")
    for result in results:
        for name, score in SCORES.items():
            if name in result.scores:
                yield EvalResult(
                    task_type="image-to-text",
                    task_name="Image captioning",
                    dataset_type=data_name if data_name and _is_hub_id(data_name) else _slug(title),
                    dataset_name=title,
                    dataset_split=result.split,
                    metric_type=score.hub_type,
                    metric_name=f"{score.title}, beam {result.num_beams}",
                    metric_value=round(100 * result.scores[name], 2),
                    verified=False,
                )


def _slug(title: str) -> str:
    return re.sub(r"[^\w.-]+", "-", title.lower()).strip("-")


def _settings(stages: list[dict[str, Any]]) -> Iterator[tuple[str, list[str]]]:
    for name, usual in SHOWN.items():
        values = [_public_name(stage.get(name)) if name == "word_vectors" else stage.get(name) for stage in stages]
        if any(value is not None and value != usual for value in values):
            yield f"`{name}`", ["" if value is None else _cell(value) for value in values]


def _diversity(parts: Mapping[str, Any], results: list[Result]) -> dict[str, Any] | None:
    """Return how varied the captions are, with 3 beams if there are any."""
    beams = 3 if any(result.num_beams == 3 for result in results) else results[0].num_beams
    diversity = parts[f"beam {beams}"].get("diversity") or {}
    return {"beams": beams, **diversity} if "distinct_captions" in diversity else None


def _cell(value: Any) -> str:
    """Escape text for a table cell."""
    return markdown_text(str(value)).replace("|", "\\|").replace("\n", " ")
