"""The contrastive loss: against pair-by-pair likelihoods, and that a captioner learns to tell photos apart by it."""

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from workshop import Workshop

from nic_hf.data import CaptionCollator, CaptionDataset
from nic_hf.evaluation.paper.ranking import caption_log_likelihoods
from nic_hf.training import SelfCriticalTrainer, SelfCriticalTrainingArguments
from nic_hf.training.contrastive import contrastive_loss, photo_similarity


@pytest.fixture
def batch(workshop: Workshop) -> dict[str, torch.Tensor]:
    dataset = CaptionDataset(workshop.photos("train"), workshop.processor.tokenizer, captions_per_sample=1)
    photos = [dataset[index] for index in range(0, 30, 5)]
    return dict(CaptionCollator()(photos))


@pytest.mark.parametrize("negatives", [1, 3, 50])
def test_the_loss_is_that_of_the_pairs(workshop: Workshop, batch: dict[str, torch.Tensor], negatives: int) -> None:
    model, _ = workshop.trained()
    model.eval()
    features, labels = batch["encoder_outputs"], batch["labels"]
    captions = [[int(word) for word in caption if word != -100] for caption in labels.flatten(0, -2)]
    scores = torch.from_numpy(caption_log_likelihoods(model, features, captions)).T  # captions by photos
    similarity = photo_similarity(model, features)
    expected = []
    for own in range(len(labels)):
        others = similarity[own].argsort(descending=True)[: min(negatives, len(labels) - 1)]
        expected.append(-scores[own, [own, *others.tolist()]].log_softmax(0)[0])
    with torch.no_grad():
        loss = contrastive_loss(model, features, labels, negatives)
    assert torch.allclose(loss, torch.stack(expected).mean(), atol=1e-4)


def test_similarity_is_the_cosine_of_standardised_features(workshop: Workshop, batch: dict[str, torch.Tensor]) -> None:
    model, _ = workshop.trained()
    features = batch["encoder_outputs"]
    similarity = photo_similarity(model, features)
    standardised = (features - model.image_projection.mean) / model.image_projection.std
    for one, other in itertools.permutations(range(len(features)), 2):
        wanted = torch.cosine_similarity(standardised[one], standardised[other], dim=0)
        assert torch.allclose(similarity[one, other], wanted, atol=1e-5)
    assert similarity.diagonal().isinf().all()


def test_a_photo_is_not_its_own_negative(workshop: Workshop, batch: dict[str, torch.Tensor]) -> None:
    """Captions of one photo may be several samples of a batch; a photo without captions is left out."""
    model, _ = workshop.trained()
    model.eval()
    features, labels = batch["encoder_outputs"][:2], batch["labels"][:2]
    with torch.no_grad():
        alone = contrastive_loss(model, features[:1], labels[:1])
        same = contrastive_loss(model, features[[0, 0]], labels[[0, 0]])
        two = contrastive_loss(model, features, labels)
        repeated = contrastive_loss(model, features[[0, 0, 1, 1]], labels[[0, 0, 1, 1]], negatives=3)
        first = contrastive_loss(model, features, torch.stack([labels[0], torch.full_like(labels[0], -100)]))
        second = contrastive_loss(model, features.flip(0), torch.stack([labels[1], torch.full_like(labels[0], -100)]))
    assert alone == same == 0
    assert torch.allclose(two, (first + second) / 2, atol=1e-5)
    # Twice the same negative: log(1 + 2 r) for log(1 + r).
    ratios = torch.stack([first, second]).exp() - 1
    assert torch.allclose(repeated, (1 + 2 * ratios).log().mean(), atol=1e-4)


def test_accumulated_gradients_are_those_of_one_batch(workshop: Workshop, tmp_path: Path) -> None:
    """Trainer divides by the words of all batches of a step, and not by their number."""
    trainer = workshop.trainer(tmp_path, contrastive_weight=0.5)
    model, labels = trainer.model.eval(), next(iter(trainer.get_train_dataloader()))
    features, captions = labels["encoder_outputs"], labels["labels"]
    with torch.no_grad():
        plain = contrastive_loss(model, features, captions)
        words = (captions != -100).sum()
        half = trainer.contrastive(model, features, captions, num_items_in_batch=2 * words)
        whole = trainer.contrastive(model, features, captions)
    assert torch.allclose(whole, 0.5 * plain) and torch.allclose(half, 0.25 * plain)
    assert trainer.contrastive.mean() == {"contrastive_loss": pytest.approx(plain.item())}
    assert trainer.contrastive.mean() == {}


def test_photos_are_found_better_after_it(workshop: Workshop, tmp_path: Path) -> None:
    losses, names = {}, workshop.photos("train").references()
    photos = workshop.photos("train")
    features = torch.stack([photos.inputs(row)["encoder_outputs"] for row in range(len(photos))])
    captions = [workshop.processor.tokenizer(own[0]).input_ids for own in names.values()]
    for weight in (0.0, 1.0):
        trainer = workshop.trainer(
            tmp_path / str(weight), contrastive_weight=weight, num_train_epochs=8, logging_steps=5
        )
        trainer.train()
        logged = [line["contrastive_loss"] for line in trainer.state.log_history if "contrastive_loss" in line]
        assert (len(logged) > 0) == (weight > 0) and np.isfinite(logged).all()
        scores = caption_log_likelihoods(trainer.model.eval(), features, captions)
        losses[weight] = float(np.mean(np.logaddexp.reduce(scores, axis=0) - np.diag(scores)))
    assert losses[1.0] < losses[0.0] - 0.1, losses


def test_self_critical_training_has_it_too(workshop: Workshop, tmp_path: Path) -> None:
    dataset = CaptionDataset(workshop.photos("train"), workshop.processor.tokenizer, captions_per_sample=5)
    batch, losses = CaptionCollator()([dataset[index] for index in range(4)]), []
    for weight in (0.0, 0.5):
        torch.manual_seed(1)
        model, _ = workshop.captioner()
        settings = {"report_to": "none", "eval_strategy": "no", "save_strategy": "no", "load_best_model_at_end": False}
        arguments = SelfCriticalTrainingArguments(str(tmp_path), contrastive_weight=weight, **settings)
        trainer = SelfCriticalTrainer(
            model=model, args=arguments, train_dataset=dataset, processing_class=workshop.processor
        )
        torch.manual_seed(0)
        losses.append(trainer.compute_loss(model.train(), dict(batch)))
    added = 0.5 * trainer.contrastive.mean()["contrastive_loss"]
    assert added > 0.1 and (losses[1] - losses[0]).item() == pytest.approx(added, rel=1e-4)
