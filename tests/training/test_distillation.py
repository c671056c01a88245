"""Distillation: the probabilities of teachers, the loss, added captions, and that a captioner learns from them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from typer.testing import CliRunner
from workshop import Workshop

from nic_hf import NICForConditionalGeneration
from nic_hf.cli import app
from nic_hf.data import CaptionCollator, CaptionDataset, PhotoDataset, PhotoView
from nic_hf.model.losses import soft_cross_entropy
from nic_hf.tokenization import train_tokenizer
from nic_hf.training import DistillationTrainer, add_teacher_captions, load_teachers, soft_targets
from nic_hf.training.distillation import LIKELIEST, Teacher, photos_without_captions


@pytest.fixture(scope="session")
def folder(workshop: Workshop, tmp_path_factory: pytest.TempPathFactory) -> Path:
    model, processor = workshop.trained()
    folder = tmp_path_factory.mktemp("teacher")
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def teacher(workshop: Workshop, folder: Path) -> Teacher:
    return load_teachers([folder], workshop.rows["train"], cache_dir=workshop.folder / "features")[0]


@pytest.fixture
def dataset(workshop: Workshop) -> CaptionDataset:
    return CaptionDataset(workshop.photos("train"), workshop.processor.tokenizer, captions_per_sample=2)


def test_soft_targets_are_the_mean_of_the_teachers_word_by_word(
    workshop: Workshop, teacher: Teacher, dataset: CaptionDataset
) -> None:
    other, _ = workshop.captioner()
    untrained = Teacher("untrained", other.eval(), workshop.photos("train"))
    targets = soft_targets([teacher, untrained], dataset, workshop.processor.tokenizer)
    for caption in (0, 7, len(dataset.pairs) - 1):
        row, labels = dataset.pairs[caption]["row"], dataset.pairs[caption]["labels"]
        each = []
        for model, photos in ((teacher.model, teacher.photos), (other, workshop.photos("train"))):
            features = photos.inputs(int(row))["encoder_outputs"][None]
            steps = []
            for place in range(len(labels)):  # one word at a time
                read = torch.tensor([[model.config.bos_token_id, *labels[:place].tolist()]])
                with torch.no_grad():
                    steps.append(model(encoder_outputs=features, decoder_input_ids=read).logits[0, -1].softmax(-1))
            each.append(torch.stack(steps))
        expected = ((each[0] + each[1]) / 2).topk(LIKELIEST)
        words, probabilities = targets[caption]
        assert words.shape == (len(labels), LIKELIEST)
        assert np.array_equal(words[:, 0], expected.indices[:, 0])
        wanted = expected.values / expected.values.sum(-1, keepdim=True)
        assert np.allclose(probabilities, wanted, atol=2e-3)


def test_a_teacher_with_other_words_teaches_those_that_both_know(
    workshop: Workshop, teacher: Teacher, dataset: CaptionDataset, caplog: pytest.LogCaptureFixture
) -> None:
    tokenizer = train_tokenizer([*workshop.captions[:200], *["zebra giraffe"] * 9], min_frequency=2)
    own = CaptionDataset(workshop.photos("train"), tokenizer)
    targets = soft_targets([teacher], own, tokenizer)
    theirs = teacher.photos.processor.tokenizer.get_vocab()
    unknown = {index for word, index in tokenizer.get_vocab().items() if word not in theirs}
    assert unknown and "teaches none of them" in caplog.text
    words, probabilities = targets.words.astype(int), targets.probabilities.astype(float)
    taught = np.isin(words, list(unknown)) & (probabilities > 0)
    assert not taught.any()
    assert np.allclose(probabilities.sum(-1), 1, atol=5e-3)
    plain = soft_targets([teacher], dataset, workshop.processor.tokenizer)
    first = tokenizer.convert_ids_to_tokens(targets[0][0][0, :1].tolist())
    assert first == workshop.processor.tokenizer.convert_ids_to_tokens(plain[0][0][0, :1].tolist())


def test_the_loss_is_the_weighted_sum(
    workshop: Workshop, teacher: Teacher, dataset: CaptionDataset, tmp_path: Path
) -> None:
    model, _ = workshop.captioner()
    dataset.soft_targets = soft_targets([teacher], dataset, workshop.processor.tokenizer)
    trainer = distillation_trainer(workshop, tmp_path, model, dataset, distillation_weight=0.3)
    batch = CaptionCollator()([dataset[0], dataset[2], dataset[1]])
    model.train()
    loss = trainer.compute_loss(model, dict(batch))
    with torch.no_grad():
        logits = model(encoder_outputs=batch["encoder_outputs"], labels=batch["labels"]).logits
    labels = batch["labels"].flatten(0, 1)
    is_word = labels != -100
    full = torch.zeros_like(logits).scatter_add(
        -1, batch["teacher_words"].flatten(0, 1), batch["teacher_probabilities"].flatten(0, 1)
    )
    smoothing = model.config.label_smoothing
    hard = F.cross_entropy(logits[is_word], labels[is_word], label_smoothing=smoothing)
    soft = F.cross_entropy(logits[is_word], full[is_word])
    assert torch.allclose(loss, 0.7 * hard + 0.3 * soft, atol=2e-3)
    assert torch.allclose(
        soft_cross_entropy(
            logits[is_word],
            batch["teacher_words"].flatten(0, 1)[is_word],
            batch["teacher_probabilities"].flatten(0, 1)[is_word],
        ),
        soft,
        atol=2e-3,
    )


def test_words_of_a_mirrored_photo_are_mirrored_in_soft_targets(workshop: Workshop, teacher: Teacher) -> None:
    photos = workshop.photos("train")
    photos.views = [(PhotoView(mirrored=True), photos.features)]
    dataset = CaptionDataset(photos, workshop.processor.tokenizer)
    dataset.soft_targets = soft_targets([teacher], dataset, workshop.processor.tokenizer)
    dataset.mirrored_ids = np.arange(len(workshop.processor.tokenizer))[::-1]  # every word changes
    plain, mirrored = {}, {}
    for epoch in range(4):
        dataset.set_epoch(epoch)
        for index, view in enumerate(dataset._draw_views(range(8))):
            (mirrored if view else plain)[index] = dataset[index]
    both = plain.keys() & mirrored.keys()
    assert both
    last = len(workshop.processor.tokenizer) - 1
    for index in both:
        for name in ("labels", "teacher_words"):
            assert np.array_equal(last - plain[index][name], mirrored[index][name])
        assert np.array_equal(plain[index]["teacher_probabilities"], mirrored[index]["teacher_probabilities"])


def test_a_captioner_comes_closer_to_its_teacher_than_without_it(
    workshop: Workshop, teacher: Teacher, dataset: CaptionDataset, tmp_path: Path
) -> None:
    dataset.soft_targets = targets = soft_targets([teacher], dataset, workshop.processor.tokenizer)
    differences = []
    for weight in (0.0, 0.9):
        model, _ = workshop.captioner()
        trainer = distillation_trainer(
            workshop, tmp_path / str(weight), model, dataset, distillation_weight=weight, num_train_epochs=25
        )
        trainer.train()
        model.eval()
        total = 0.0
        for caption in range(0, len(dataset.pairs), 5):
            pair = dataset.pairs[caption]
            features = dataset.photos.inputs(int(pair["row"]))["encoder_outputs"][None]
            with torch.no_grad():
                logits = model(encoder_outputs=features, labels=torch.as_tensor(pair["labels"])[None]).logits[0]
            words, probabilities = (torch.as_tensor(each) for each in targets[caption])
            total += float(soft_cross_entropy(logits, words, probabilities))
        differences.append(total)
    assert differences[1] < 0.97 * differences[0]


def test_captions_of_teachers_are_added_and_photos_without_captions_get_them(
    workshop: Workshop, teacher: Teacher, tmp_path: Path
) -> None:
    table = workshop.rows["train"]
    more = add_teacher_captions(table, [teacher], 2)
    for before, after in zip(table["captions"], more["captions"], strict=True):
        assert after[: len(before)] == before and 1 <= len(after) - len(before) <= 2
    generated = teacher.model.generate(
        encoder_outputs=teacher.photos.inputs(0)["encoder_outputs"][None], num_beams=5, num_return_sequences=5
    )
    texts = teacher.photos.processor.batch_decode(generated, skip_special_tokens=True)
    assert set(more["captions"][0][len(table["captions"][0]) :]) <= set(texts)
    with pytest.raises(FileNotFoundError, match="no photos in this folder"):
        photos_without_captions(tmp_path, table)
    for number in range(2):
        table[number]["image"].save(tmp_path / f"{number}.jpg")
    unlabeled = photos_without_captions(tmp_path, table)
    assert unlabeled["captions"][:] == [[], []]
    own = load_teachers([teacher.name], unlabeled, cache_dir=workshop.folder / "features")
    assert all(len(captions) == 1 for captions in add_teacher_captions(unlabeled, own, 1)["captions"])


def test_it_needs_soft_targets(workshop: Workshop, dataset: CaptionDataset, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has no soft targets"):
        distillation_trainer(workshop, tmp_path, workshop.captioner()[0], dataset)


def test_nic_train_learns_from_two_teachers(workshop: Workshop, folder: Path, subset: Path, tmp_path: Path) -> None:
    photos, run = tmp_path / "photos", tmp_path / "run"
    photos.mkdir()
    workshop.rows["train"][0]["image"].save(photos / "more.jpg")
    backbone = workshop.test_data / "backbones" / "mobilenet-v1-0.25-128"
    settings = {
        "data": subset,
        "backbone": backbone,
        "unlabeled": photos,
        "cache_dir": workshop.folder / "features",
        "max_train_photos": 8,
        "views": 1,
        "edited_views": 1,
        "hidden_size": 16,
        "embedding_size": 16,
        "num_train_epochs": 1,
        "min_steps": 0,
        "finetune.trainable_backbone": "layer.2[0-9]",
        "use_cpu": "true",
    }
    words = [
        "train",
        "--recipe",
        "distill",
        *[text for name, value in settings.items() for text in (f"--{name}", value)],
    ]
    done = CliRunner().invoke(app, [*map(str, words), "--teacher", str(folder), "flickr8k", "--output_dir", str(run)])
    assert done.exit_code == 0, done.output[-3000:]
    finished = json.loads((run / "1-frozen" / "finished.json").read_text("utf-8"))
    assert finished["settings"]["teacher"] == [str(folder), "flickr8k"]
    assert NICForConditionalGeneration.from_pretrained(run).config.hidden_size == 16
    wrong = CliRunner().invoke(app, [*map(str, words), "--teacher", str(folder), "runs/none", "--output_dir", "no"])
    assert wrong.exit_code == 2 and "runs/none" in wrong.output and wrong.output.count("\n") == 1


def test_a_captioner_that_is_trained_further_is_its_own_teacher(folder: Path, subset: Path, tmp_path: Path) -> None:
    words = [
        "train",
        "--from_checkpoint",
        str(folder),
        "--data",
        str(subset),
        "--views",
        "1",
        "--num_train_epochs",
        "1",
    ]
    words += ["--cache_dir", str(tmp_path / "features"), "--use_cpu", "true", "--output_dir", str(tmp_path / "run")]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output[-3000:]
    finished = json.loads((tmp_path / "run" / "1-adapt" / "finished.json").read_text("utf-8"))
    assert finished["settings"]["teacher"] == ["start"] and finished["settings"]["learning_rate"] == 1e-4
    history = json.loads((tmp_path / "run" / "1-adapt" / "trainer_state.json").read_text("utf-8"))["log_history"]
    scores = {line["step"]: line["eval_cider"] for line in history if "eval_cider" in line}
    assert min(scores) == 0 and len(scores) >= 2, "scored before the first step, and after"
    assert finished["metrics"]["eval_cider_before_training"] == scores[0]
    smoothed = [line["eval_cider_smoothed"] for line in history if line["step"] and "eval_cider_smoothed" in line]
    assert smoothed[0] == pytest.approx(scores[sorted(scores)[1]]), "the captioner before training does not count"
    assert f"CIDEr-D {100 * scores[0]:.1f} % before training)" in done.output


def distillation_trainer(
    workshop: Workshop, folder: Path, model: Any, dataset: CaptionDataset, **arguments: Any
) -> DistillationTrainer:
    photos = workshop.photos("dev")
    assert isinstance(photos, PhotoDataset)
    base = workshop.trainer(folder, model, dataset, **arguments)
    return DistillationTrainer(
        model=model,
        args=base.args,
        train_dataset=dataset,
        eval_dataset=base.eval_dataset,
        processing_class=workshop.processor,
    )
