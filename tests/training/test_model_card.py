"""Model cards: read back as the Hub reads them, every field against the file that it is from."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from hub_server import check_card
from huggingface_hub import ModelCard
from safetensors.numpy import load_file
from tiny import save_tiny_checkpoint, tiny_photos
from typer.testing import CliRunner
from workshop import Workshop

import nic_hf
from nic_hf.cli import app
from nic_hf.training import CardFacts, SampleCaptionsCallback, model_card, write_model_card

RECIPE = {
    "versions": {"nic_hf": "0.1", "transformers": "5.23.0", "torch": "2.13.0", "python": "3.11.7"},
    "stages": {
        "frozen": {
            "backbone": "/home/jane/backbones/mobilenet-v2",
            "data": "/home/jane/data/flickr8k",
            "train_split": "train",
            "eval_split": "validation",
            "min_frequency": 5,
            "image_dropout": 0.0,
            "freeze_backbone": True,
            "scheduled_sampling": 0.0,
            "learning_rate": 0.0015,
            "seed": 42,
        },
        "finetune": {
            "data": "/home/jane/data/flickr8k",
            "train_split": "train",
            "eval_split": "validation",
            "min_frequency": 5,
            "freeze_backbone": False,
            "learning_rate": 0.0005,
            "seed": 7,
        },
    },
}
STATE = {
    "global_step": 3000,
    "best_global_step": 2000,
    "epoch": 6.0,
    "log_history": [
        {"step": 1000, "eval_bleu_4": 0.15, "eval_cider": 0.35, "eval_loss": 3.0, "train_seconds": 60.0},
        {"step": 2000, "eval_bleu_4": 0.1828, "eval_cider": 0.4462, "eval_loss": 2.9, "train_seconds": 120.0},
        {"step": 3000, "eval_bleu_4": 0.17, "eval_cider": 0.40, "eval_loss": 2.8, "train_seconds": 185.0},
    ],
}
SAMPLES = [
    {"step": 1000, "captions": {"a.jpg": "a dog"}},
    {"step": 2000, "captions": {"a.jpg": "a black dog", "b.jpg": "a | b", "<i>.jpg": "<b>a</b> ![](c)"}},
    {"step": 3000, "captions": {"a.jpg": "a black cat"}},
]


def beam(size: int, bleu: float) -> dict[str, Any]:
    return {
        "num_beams": size,
        "scores": {"bleu_4": bleu, "cider": 2 * bleu, "meteor": bleu + 0.01},
        "intervals": {"bleu_4": [bleu - 0.01, bleu + 0.01]},
        "diversity": {"distinct_captions": 0.7, "in_training": 0.15, "vocabulary": 1245},
    }


MODEL_CARD = Path(__file__).parents[2] / "MODEL_CARD.md"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """The folder of a run in two stages."""
    folder = tmp_path / "captioner"
    save_tiny_checkpoint(folder)
    (folder / "recipe.yaml").write_text(yaml.safe_dump(RECIPE, sort_keys=False))
    (folder / "trainer_state.json").write_text(json.dumps(STATE))
    (folder / "samples").mkdir()
    (folder / "samples" / "captions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in SAMPLES))
    config = json.loads((folder / "config.json").read_text())
    config["backbone_config"]["_name_or_path"] = "google/mobilenet_v2_1.0_224"
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture
def evaluation(tmp_path: Path) -> Path:
    parts = {f"beam {size}": {"key": "", "result": beam(size, bleu)} for size, bleu in ((1, 0.17), (3, 0.19))}
    (tmp_path / "evaluation.json").write_text(json.dumps({"parts": parts}))
    return tmp_path / "evaluation.json"


def row(card: ModelCard, start: str) -> list[str]:
    """Cells of the line of a table that starts so."""
    (line,) = [line for line in card.text.splitlines() if line.startswith(f"| {start} |")]
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]


def test_the_head_is_what_the_hub_reads(run: Path) -> None:
    card = ModelCard.load(write_model_card(run, CardFacts(license="apache-2.0", data="jxie/flickr8k", tags=["mine"])))
    data = card.data
    assert check_card(data.to_dict()) == []
    assert (data.license, data.language, data.library_name) == ("apache-2.0", "en", "transformers")
    assert data.pipeline_tag == "image-to-text"
    assert data.datasets == ["jxie/flickr8k"]
    assert data.base_model == "google/mobilenet_v2_1.0_224"
    assert {"image-captioning", "show-and-tell", "mine"} <= set(data.tags)
    assert data.metrics == ["bleu", "cider"]


def test_results_of_the_chosen_checkpoint_on_the_dev_split(run: Path) -> None:
    card = model_card(run)
    results = card.data.eval_results
    found = {(r.dataset_name, r.dataset_type, r.dataset_split, r.metric_type, r.metric_value) for r in results}
    assert found == {
        ("Flickr8k", "flickr8k", "validation", "bleu", 18.28),
        ("Flickr8k", "flickr8k", "validation", "cider", 44.62),
    }
    assert card.data.model_name == "captioner"
    assert row(card, "validation") == ["validation", "3", "18.3", "44.6"]
    assert "backbone google/mobilenet_v2_1.0_224; seed 7; length penalty 1.0" in card.text
    assert "The checkpoint was selected on these photos" in card.text


def test_results_of_an_evaluation_stand_in_their_place(run: Path, evaluation: Path) -> None:
    card = model_card(run, evaluation=evaluation)
    values = {r.metric_name: (r.dataset_split, r.metric_value) for r in card.data.eval_results}
    # What the captioner does by itself, beam 3, goes into the head; the table has both.
    assert values == {
        "BLEU-4, beam 3": ("test", 19.0),
        "METEOR, beam 3": ("test", 20.0),
        "CIDEr-D, beam 3": ("test", 38.0),
    }
    assert check_card(card.data.to_dict()) == []
    lines = [line for line in card.text.splitlines() if line.startswith("| test |")]
    assert lines == [
        "| test | 1 | 17.0 (16.0 – 18.0) | 18.0 | 34.0 |",
        "| test | 3 | 19.0 (18.0 – 20.0) | 20.0 | 38.0 |",
    ]
    assert (
        "70% of the captions of the test split (beam 3) are unique, and 15% are copies of training captions"
        in card.text
    )
    assert "1,245 words" in card.text


def test_what_it_was_trained_from(run: Path) -> None:
    card = model_card(run, CardFacts(data_license="mine alone", backbone_license="Apache-2.0"))
    assert "| setting | frozen | finetune |" in card.text
    assert row(card, "`learning_rate`") == ["`learning_rate`", "0.0015", "0.0005"]
    assert row(card, "`image_dropout`") == ["`image_dropout`", "0.0", ""]
    assert row(card, "`freeze_backbone`") == ["`freeze_backbone`", "True", "False"]
    assert row(card, "`seed`") == ["`seed`", "42", "7"]
    assert "`scheduled_sampling`" not in card.text
    assert "3,000 steps, 6.0 epochs in the last stage, finetune" in card.text
    assert "the weights are from step 2,000; 3 minutes of training." in card.text
    assert "nic_hf 0.1, transformers 5.23.0, torch 2.13.0, python 3.11.7" in card.text
    assert "Licence: mine alone." in card.text and "Licence: Apache-2.0." in card.text
    assert "Hodosh" in card.text and "vinyals2015show" in card.text and "hodosh2013framing" in card.text
    assert "Words that occur fewer than 5 times in training are never generated." in card.text
    numbers = sum(tensor.size for tensor in load_file(run / "model.safetensors").values())
    assert f"{numbers / 1e6:.1f} million parameters" in card.text


def test_captions_are_those_of_the_chosen_step_and_break_no_table(run: Path) -> None:
    card = model_card(run)
    assert row(card, "a.jpg") == ["a.jpg", "a black dog"]
    assert row(card, "b.jpg") == ["b.jpg", "a \\| b"]
    assert row(card, "&lt;i>.jpg") == ["&lt;i>.jpg", "&lt;b>a&lt;/b> !&#91;](c)"], "no markup"


def test_no_folder_of_the_machine_is_told(run: Path) -> None:
    config = json.loads((run / "config.json").read_text())
    config["backbone_config"]["_name_or_path"] = "C:\\Users\\jane\\backbones\\mobilenet-v2"
    (run / "config.json").write_text(json.dumps(config))
    card = str(model_card(run))
    assert "jane" not in card and "mobilenet-v2" in card
    assert "base_model" not in card


def test_a_captioner_of_which_nothing_is_known_has_a_card_that_says_so(tmp_path: Path) -> None:
    save_tiny_checkpoint(tmp_path / "checkpoint-20")
    card = model_card(tmp_path / "checkpoint-20")
    assert check_card(card.data.to_dict()) == []
    assert card.data.eval_results is None and card.data.license is None and card.data.language is None
    assert card.text.startswith(f"# {tmp_path.name}") or f"# {tmp_path.name}\n" in card.text
    assert "No scores were measured." in card.text
    assert "How it was trained is not recorded." in card.text
    assert "- **Data**: not stated. Licence: not stated" in card.text


def test_what_is_no_captioner_or_no_evaluation_is_named(tmp_path: Path, run: Path) -> None:
    with pytest.raises(ValueError, match="not a captioner"):
        model_card(tmp_path)
    (tmp_path / "evaluation.json").write_text("{}")
    with pytest.raises(ValueError, match=r"evaluation\.json: not results of nic evaluate"):
        model_card(run, evaluation=tmp_path / "evaluation.json")
    (run / "recipe.yaml").write_text("- a list")
    with pytest.raises(ValueError, match=r"recipe\.yaml: not a recipe"):
        model_card(run)


def test_nic_card_captions_photos_and_takes_what_training_cannot_know(run: Path, evaluation: Path) -> None:
    photo = run.parent / "beach.png"
    tiny_photos(1)[0].save(photo)
    output = run.parent / "MODEL_CARD.md"
    options = ["--output", str(output), "--evaluation", str(evaluation), "--license", "mit", "--photo", str(photo)]
    done = CliRunner().invoke(app, ["card", str(run), "--name", "Beach", "--repo", "me/beach", *options])
    assert done.exit_code == 0, done.output
    assert done.stdout.strip() == str(output)
    card = ModelCard.load(output)
    assert card.data.license == "mit" and card.data.model_name == "Beach"
    assert 'model="me/beach"' in card.text and "# Beach\n" in card.text
    model = nic_hf.NICForConditionalGeneration.from_pretrained(run)
    captioner = nic_hf.ImageToTextPipeline(model=model, processor=nic_hf.NICProcessor.from_pretrained(run))
    assert row(card, "beach.png")[1] == captioner(photo)[0]["generated_text"]
    assert not (run / "README.md").exists()
    wrong = CliRunner().invoke(app, ["card", str(run.parent)])
    assert wrong.exit_code == 2 and "holds no captioner" in wrong.output


def test_the_card_of_the_reference_model_is_one_that_this_code_writes(run: Path, evaluation: Path) -> None:
    card = ModelCard.load(MODEL_CARD)
    assert check_card(card.data.to_dict()) == []
    own = model_card(run, CardFacts(note="No weights.", license="mit"), evaluation=evaluation)
    headings = [line for line in own.text.splitlines() if line.startswith("## ")]
    assert [line for line in card.text.splitlines() if line.startswith("## ")] == headings
    metrics = {result.metric_name: result.metric_value for result in card.data.eval_results}
    assert 10 < metrics["BLEU-4, beam 3"] < 30 < metrics["CIDEr-D, beam 3"] < 80
    cells = row(card, "test | 3")
    for title, cell in zip(row(card, "split"), cells, strict=True):
        if f"{title}, beam 3" in metrics:
            assert float(cell.split()[0]) == pytest.approx(metrics[f"{title}, beam 3"], abs=0.0501)


def test_training_writes_a_card_beside_each_checkpoint(workshop: Workshop, tmp_path: Path) -> None:
    trainer = workshop.trainer(
        tmp_path / "run",
        eval_strategy="steps",
        save_strategy="steps",
        eval_steps=2,
        save_steps=2,
        max_steps=4,
        save_total_limit=2,
        seed=5,
        callbacks=[SampleCaptionsCallback(workshop.photos("dev").first(2), max_new_tokens=6)],
    )
    trainer.card_facts = CardFacts(data="flickr8k", license="other")
    trainer.train()
    logged = [line for line in trainer.state.log_history if "eval_cider" in line]
    for line in logged:
        folder = tmp_path / "run" / f"checkpoint-{line['step']}"
        card = ModelCard.load(folder / "README.md")
        assert check_card(card.data.to_dict()) == []
        values = {r.metric_name: r.metric_value for r in card.data.eval_results}
        assert values["BLEU-4, beam 3"] == round(100 * line["eval_bleu_4"], 2)
        assert values["CIDEr-D, beam 3"] == round(100 * line["eval_cider"], 2)
        assert card.data.model_name == "run"
        assert row(card, "`seed`") == ["`seed`", "5"]
        samples = [json.loads(text) for text in (tmp_path / "run/samples/captions.jsonl").read_text().splitlines()]
        (captions,) = [sample["captions"] for sample in samples if sample["step"] == line["step"]]
        for photo, caption in captions.items():
            assert row(card, photo)[1] == caption
    # A card that somebody edited makes no checkpoint unfit to be resumed.
    (folder / "README.md").write_text("edited")
    shutil.rmtree(tmp_path / "run" / "checkpoint-2")
    assert nic_hf.training.last_checkpoint(tmp_path / "run") == str(folder)
