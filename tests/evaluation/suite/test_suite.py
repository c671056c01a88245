"""The tables of a checkpoint: compared with their definitions, saved completely, and not computed twice."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from evaluated import Evaluated
from tiny import tiny_model, tiny_tokenizer

from nic_hf import NICForConditionalGeneration, NICProcessor
from nic_hf.data import CaptionDataError, load_captions
from nic_hf.evaluation import load_predictions, ptb_tokenize, score_captions
from nic_hf.evaluation.paper.word_neighbours import nearest_words
from nic_hf.evaluation.suite import evaluate_captioner


def references(data: Path, split: str = "test") -> dict[str, list[str]]:
    return {row["image_id"]: row["captions"] for row in load_captions(data, split)}


def test_scores_are_those_of_the_captions_it_wrote(evaluated: Evaluated) -> None:
    for beam in (1, 3):
        predictions = load_predictions(evaluated.output / f"predictions-beam{beam}.jsonl")
        part = evaluated.results[f"beam {beam}"]
        assert predictions == part["captions"]
        assert part["scores"] == pytest.approx(score_captions(predictions, references(evaluated.data)))
        low, high = part["intervals"]["rouge_l"]
        assert low < part["scores"]["rouge_l"] < high
    assert evaluated.results["beam 1"]["captions"] != evaluated.results["beam 3"]["captions"]


def test_captions_are_those_of_the_model(evaluated: Evaluated) -> None:
    model = NICForConditionalGeneration.from_pretrained(evaluated.run).eval()
    processor = NICProcessor.from_pretrained(evaluated.run)
    for row in load_captions(evaluated.data, "test").select(range(3)):
        ids = model.generate(**processor(images=row["image"], return_tensors="pt"), num_beams=3)
        (caption,) = processor.batch_decode(ids, skip_special_tokens=True)
        assert evaluated.results["beam 3"]["captions"][row["image_id"]] == caption


def test_novel_captions_are_those_that_training_lacks(evaluated: Evaluated) -> None:
    part = evaluated.results["n_best"]
    seen = {tuple(ptb_tokenize(text)) for own in references(evaluated.data, "train").values() for text in own}
    assert len(part["examples"]) == 6
    for captions in part["examples"].values():
        assert len(captions) == 15
        assert [item["novel"] for item in captions] == [
            tuple(ptb_tokenize(item["caption"])) not in seen for item in captions
        ]
    assert 0 <= part["novel"] <= 1 and 0 <= part["best_in_training"] <= 1
    assert part["photos_without_self_cider"] < 12 and 0 < part["self_cider"] < 1


def test_ranking_is_that_of_the_models_own_loss(evaluated: Evaluated) -> None:
    model = NICForConditionalGeneration.from_pretrained(evaluated.run).eval()
    processor = NICProcessor.from_pretrained(evaluated.run)
    rows = load_captions(evaluated.data, "test")
    captions = [(number, text) for number, row in enumerate(rows) for text in row["captions"]]
    scores = np.empty((len(rows), len(captions)))
    with torch.no_grad():
        for number, row in enumerate(rows):
            feature = model.get_image_features(processor(images=row["image"], return_tensors="pt")["pixel_values"])
            for column, (_, text) in enumerate(captions):
                labels = torch.tensor([processor.tokenizer(text).input_ids])
                scores[number, column] = -model(encoder_outputs=feature, labels=labels).loss * labels.shape[1]
    owner = np.array([number for number, _ in captions])
    order = np.argsort(-scores, axis=1)
    best = np.array([np.flatnonzero(owner[line] == number)[0] + 1 for number, line in enumerate(order)])
    found = evaluated.results["ranking"]["directions"][0]
    assert (found["direction"], found["score"]) == ("annotation", "log_p")
    assert found["median_rank"] == np.median(best)
    assert found["recall_10"] == pytest.approx((best <= 10).mean())
    assert evaluated.results["ranking"]["captions"] == len(captions) == 60


def test_transfer_counts_the_words_that_the_vocabulary_lacks(evaluated: Evaluated) -> None:
    part = evaluated.results["transfer its own <b>dev</b> photos"]
    assert part["scores"] == evaluated.results["beam 3"]["scores"]
    tokenizer = NICProcessor.from_pretrained(evaluated.run).tokenizer
    ids = [i for own in references(evaluated.data).values() for text in own for i in tokenizer(text).input_ids[:-1]]
    assert part["words"] == len(ids)
    assert part["unknown_words"] == ids.count(tokenizer.unk_token_id) > 0
    assert 0 < part["unknown_distinct_words"] < part["distinct_words"]


def test_the_curve_has_a_point_for_each_checkpoint(evaluated: Evaluated) -> None:
    points = evaluated.results["learning_curve"]
    assert [point["step"] for point in points] == [40, 80, 120]
    seconds = [point["seconds"] for point in points]
    assert 0 < seconds[0] < seconds[1] < seconds[2]
    assert len({point["cider"] for point in points}) > 1


def test_a_captioner_whose_backbone_was_trained_is_scored_by_its_own_features(
    evaluated: Evaluated, tmp_path: Path
) -> None:
    model = NICForConditionalGeneration.from_pretrained(evaluated.run, freeze_backbone=False)
    processor = NICProcessor.from_pretrained(evaluated.run)
    run, photos = tmp_path / "run", load_captions(evaluated.data, "validation")
    people, expected = references(evaluated.data, "validation"), []
    for step in (1, 2):
        with torch.no_grad():
            for weights in model.encoder.parameters():
                weights.mul_(1 + 0.3 * (step - 1))
        folder = run / f"checkpoint-{step}"
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
        (folder / "trainer_state.json").write_text(
            json.dumps({"global_step": step, "epoch": step, "log_history": []}), "utf-8"
        )
        model.eval()
        pixels = processor(images=list(photos["image"]), return_tensors="pt")["pixel_values"]
        texts = processor.batch_decode(model.generate(pixel_values=pixels, num_beams=3), skip_special_tokens=True)
        expected.append(score_captions(dict(zip(people, texts, strict=True)), people, ["cider"])["cider"])
    assert expected[0] != expected[1]
    results = evaluate_captioner(
        run / "checkpoint-2",
        evaluated.data,
        tmp_path / "out",
        split="validation",
        include=("generation",),
        beams=(3,),
        metrics=("cider",),
        run=run,
        cache_dir=evaluated.settings["cache_dir"],
    )
    assert [point["cider"] for point in results["learning_curve"]] == pytest.approx(expected, abs=1e-6)
    assert results["beam 3"]["scores"]["cider"] == pytest.approx(expected[1], abs=1e-6)


def test_neighbours_are_the_nearest_vectors(evaluated: Evaluated) -> None:
    assert evaluated.results["neighbours"]["zebroid"] is None
    model, tokenizer = tiny_model(), tiny_tokenizer()
    (near,) = nearest_words(model, tokenizer, ["dog"], number=3).values()
    vectors = model.decoder.embed_tokens.weight.detach().numpy()
    own = vectors[tokenizer.convert_tokens_to_ids("dog")]
    cosines = {
        word: float(vectors[index] @ own / np.linalg.norm(vectors[index]) / np.linalg.norm(own))
        for word, index in tokenizer.get_vocab().items()
        if word != "dog" and word not in tokenizer.all_special_tokens
    }
    expected = sorted(cosines.items(), key=lambda item: -item[1])[:3]
    assert [word for word, _ in near] == [word for word, _ in expected]
    assert [cosine for _, cosine in near] == pytest.approx([cosine for _, cosine in expected], abs=1e-5)


def test_what_is_done_is_not_done_again(evaluated: Evaluated, tmp_path: Path) -> None:
    output = shutil.copytree(evaluated.output, tmp_path / "out")
    stored = json.loads((output / "evaluation.json").read_text())
    stored["parts"]["ranking"]["result"]["seconds"] = 12345
    del stored["parts"]["beam 1"]
    (output / "evaluation.json").write_text(json.dumps(stored))
    again = evaluate_captioner(evaluated.run, evaluated.data, output, **evaluated.settings)
    assert again["ranking"]["seconds"] == 12345
    assert again["beam 1"]["captions"] == evaluated.results["beam 1"]["captions"]

    changed = shutil.copytree(evaluated.run, tmp_path / "changed", ignore=shutil.ignore_patterns("checkpoint-*"))
    model = NICForConditionalGeneration.from_pretrained(changed)
    torch.nn.init.normal_(model.lm_head.weight)
    model.save_pretrained(changed)
    settings = {**evaluated.settings, "include": ("generation",), "transfer": None, "run": None}
    other = evaluate_captioner(changed, evaluated.data, output, **settings)
    assert other["beam 3"]["captions"] != evaluated.results["beam 3"]["captions"]
    assert "ranking" not in other


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"include": ("generation", "magic")}, "unknown part 'magic'"),
        ({"beams": (3, 0)}, r"beam sizes must be 1 or more, not \[3, 0\]"),
        ({"split": "nowhere"}, "nowhere"),
        ({"metrics": ("bleu", "belu")}, "belu"),
        ({"run": Path("no/such/run")}, r"no.such.run: has no checkpoint-\*/trainer_state.json"),
        ({"max_photos": 0}, "has no photos"),
    ],
)
def test_bad_input_is_named(evaluated: Evaluated, changes: dict, message: str, tmp_path: Path) -> None:
    settings = {"include": ("neighbours",), "cache_dir": evaluated.settings["cache_dir"], "beams": (1,), **changes}
    if "metrics" in changes:
        settings["include"] = ("generation",)
    with pytest.raises((ValueError, CaptionDataError), match=message):
        evaluate_captioner(evaluated.run, evaluated.data, tmp_path / "out", **settings)


def test_results_of_something_else_are_not_overwritten(evaluated: Evaluated, tmp_path: Path) -> None:
    (tmp_path / "evaluation.json").write_text("[1, 2]")
    with pytest.raises(ValueError, match=r"evaluation.json: not the results of an evaluation"):
        evaluate_captioner(evaluated.run, evaluated.data, tmp_path, include=("neighbours",))
    assert (tmp_path / "evaluation.json").read_text() == "[1, 2]"
