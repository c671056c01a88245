"""Training on a few real photos: it learns, resumes exactly, and its figures are right."""

import copy
import itertools
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import Dataset, RandomSampler
from transformers import Trainer
from workshop import Workshop

from nic_hf.data import CaptionCollator, CaptionDataset, PhotoDataset, PhotoView, cache_features
from nic_hf.data.length_grouped_sampler import LengthGroupedSampler
from nic_hf.dataset_captions import generate_captions
from nic_hf.evaluation import score_captions
from nic_hf.training import CaptioningTrainer, divergence
from nic_hf.training.trainer import caption_metrics

Weights = Callable[[torch.nn.Module], dict[str, torch.Tensor]]


def words(caption: str) -> str:
    """The words of a caption, by a rule that is enough for the captions here."""
    return " ".join("".join(c if c.isalnum() or c in "-'" else " " for c in caption.lower()).split())


def assert_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    different = [name for name in one if not torch.equal(one[name], other[name])]
    assert different == []


def word_loss(model: Any, samples: CaptionDataset) -> float:
    """Mean over the words of all captions, one caption at a time, from the definition."""
    total, number = 0.0, 0
    for index in range(len(samples)):
        sample = samples[index]
        ids = [int(word) for word in sample["labels"]]
        read = torch.tensor([[model.config.bos_token_id, *ids[:-1]]])
        with torch.no_grad():
            logits = model(encoder_outputs=sample["encoder_outputs"][None], decoder_input_ids=read).logits[0]
        total -= sum(logits.double().log_softmax(-1)[step, word].item() for step, word in enumerate(ids))
        number += len(ids)
    return total / number


@pytest.fixture(scope="module")
def overfitted(workshop: Workshop, tmp_path_factory: pytest.TempPathFactory) -> CaptioningTrainer:
    """A captioner that learned one caption of each of six photos by heart."""
    rows = workshop.rows["train"].select(range(6))
    rows = rows.map(lambda row: {"captions": [min(row["captions"], key=len)]}, load_from_cache_file=False)
    model, processor = workshop.captioner(hidden_size=64, embedding_size=64)
    photos = PhotoDataset(rows, processor, workshop.encode(model, rows))
    trainer = workshop.trainer(
        tmp_path_factory.mktemp("overfitted"),
        model,
        CaptionDataset(photos, processor.tokenizer),
        num_train_epochs=150,
        logging_steps=1,
        learning_rate=2e-2,
    )
    trainer.train()
    return trainer


def test_the_loss_falls_to_almost_nothing(overfitted: CaptioningTrainer) -> None:
    losses = [entry["loss"] for entry in overfitted.state.log_history if "loss" in entry]
    assert losses[0] > 4 and losses[-1] < 0.1


def test_a_few_photos_get_their_own_captions(overfitted: CaptioningTrainer) -> None:
    photos = overfitted.train_dataset.photos
    captions = overfitted.caption(photos)
    expected = {image_id: words(captions[0]) for image_id, captions in photos.references().items()}
    assert captions == expected
    assert len(set(captions.values())) == len(photos)


def test_captions_follow_the_features(overfitted: CaptioningTrainer, workshop: Workshop) -> None:
    photos = overfitted.train_dataset.photos
    backwards = workshop.encode(overfitted.model, photos.photos.select(range(len(photos) - 1, -1, -1)))
    shuffled = PhotoDataset(photos.photos, photos.processor, backwards)
    assert list(overfitted.caption(shuffled).values()) == list(overfitted.caption(photos).values())[::-1]


def test_captions_follow_the_pixels(overfitted: CaptioningTrainer) -> None:
    photos = overfitted.train_dataset.photos
    assert overfitted.caption(PhotoDataset(photos.photos, photos.processor)) == overfitted.caption(photos)


@pytest.mark.parametrize("step", [5, 8], ids=["at the end of an epoch", "within an epoch"])
def test_a_resumed_run_ends_with_the_weights_of_one_that_never_stopped(
    step: int, workshop: Workshop, weights: Weights, tmp_path: Path
) -> None:
    arguments: dict[str, Any] = {
        "num_train_epochs": 3,
        "eval_strategy": "steps",
        "eval_steps": step,
        "save_strategy": "steps",
        "save_steps": step,
        "save_total_limit": None,
    }

    def captioner() -> Any:
        return workshop.captioner(dropout=0.5, label_smoothing=0.1, num_hidden_layers=2)[0]

    whole = workshop.trainer(tmp_path / "whole", captioner(), **arguments)
    whole.train()
    assert whole.state.global_step == 15

    model = captioner()
    model.init_weights()  # what the checkpoint holds must come from the checkpoint
    torch.rand(7)
    resumed = workshop.trainer(tmp_path / "resumed", model, **arguments)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / f"checkpoint-{step}"))
    assert resumed.state.global_step == 15
    seconds = [line["train_seconds"] for line in resumed.state.log_history]
    assert seconds[0] > 0 and seconds == sorted(seconds), "the clock goes on where the checkpoint's had stopped"
    assert_same(weights(whole.model), weights(resumed.model))

    other_order = workshop.trainer(tmp_path / "other", captioner(), seed=1, **arguments)
    other_order.train()
    assert not torch.equal(other_order.model.lm_head.weight, whole.model.lm_head.weight)


def test_evaluation_is_the_mean_over_words_and_one_caption_a_photo(
    workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = workshop.trainer(tmp_path, per_device_eval_batch_size=3)
    captioned = []
    generate = trainer.model.generate

    def counting(*args: Any, **kwargs: Any) -> Any:
        captioned.append(len(kwargs["encoder_outputs"]))
        return generate(*args, **kwargs)

    monkeypatch.setattr(trainer.model, "generate", counting)
    metrics = trainer.evaluate()
    samples = trainer.eval_dataset
    assert metrics["eval_loss"] == pytest.approx(word_loss(trainer.model, samples), rel=1e-6)
    assert sum(captioned) == len(samples.photos) == 5

    captions = trainer.caption(samples.photos)
    assert list(captions) == samples.photos.image_ids()
    scores = score_captions(captions, samples.photos.references())
    assert metrics["eval_bleu_4"] == pytest.approx(scores["bleu_4"])
    assert metrics["eval_cider"] == pytest.approx(scores["cider"])
    assert metrics["eval_distinct"] == len(set(captions.values())) / 5
    assert metrics["eval_words"] == sum(len(caption.split()) for caption in captions.values()) / 5


def test_evaluation_after_training_scores_what_was_learned(overfitted: CaptioningTrainer) -> None:
    metrics = overfitted.evaluate(overfitted.train_dataset, metric_key_prefix="train")
    assert metrics["train_bleu_4"] == pytest.approx(1.0)
    assert metrics["train_distinct"] == 1.0
    assert metrics["train_loss"] == pytest.approx(word_loss(overfitted.model, overfitted.train_dataset), rel=1e-5)


def test_the_evaluation_batch_size_does_not_move_the_loss(workshop: Workshop, tmp_path: Path) -> None:
    model = workshop.captioner()[0]
    losses = [
        workshop.trainer(tmp_path, model, per_device_eval_batch_size=size).evaluate()["eval_loss"]
        for size in (2, 7, 100)
    ]
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-6)


def test_captions_that_share_a_sample_are_evaluated_as_apart(workshop: Workshop, tmp_path: Path) -> None:
    trainer = workshop.trainer(tmp_path)
    apart = trainer.evaluate()
    photos = trainer.eval_dataset.photos
    shared = CaptionDataset(photos, photos.processor.tokenizer, captions_per_sample=3)
    together = trainer.evaluate(shared)
    assert len(shared) == 2 * len(photos)
    for name in ("eval_loss", "eval_bleu_4", "eval_distinct", "eval_words"):
        assert together[name] == pytest.approx(apart[name], rel=1e-6), name


def test_batches_are_of_like_length_where_features_are_cached_and_random_where_the_backbone_runs(
    workshop: Workshop, tmp_path: Path
) -> None:
    def sampler(trainer: CaptioningTrainer) -> Any:
        return trainer.get_train_dataloader().batch_sampler.sampler

    assert isinstance(sampler(workshop.trainer(tmp_path)), LengthGroupedSampler)
    photos = PhotoDataset(workshop.rows["train"], workshop.processor)
    pixels = CaptionDataset(photos, workshop.processor.tokenizer)
    assert isinstance(sampler(workshop.trainer(tmp_path, train=pixels)), RandomSampler)


def test_evaluation_arguments_reach_generate(workshop: Workshop, tmp_path: Path) -> None:
    trainer = workshop.trainer(tmp_path)
    trainer.eval_generate_kwargs = {"max_new_tokens": 3, "num_beams": 1}
    assert trainer.evaluate()["eval_words"] <= 3
    photos = workshop.photos("dev")
    short = generate_captions(trainer.model, photos, progress=False, max_new_tokens=3, num_beams=1)
    assert trainer.caption(photos) == short
    assert all(
        len(caption.split()) == 5 for caption in trainer.caption(photos, min_new_tokens=5, max_new_tokens=5).values()
    )


def test_the_best_of_several_captions_is_taken(overfitted: CaptioningTrainer) -> None:
    photos = overfitted.train_dataset.photos
    assert overfitted.caption(photos, num_beams=3, num_return_sequences=3) == overfitted.caption(photos)


def test_captioning_gives_the_training_mode_back(workshop: Workshop) -> None:
    model = workshop.captioner()[0]
    for training in (True, False):
        model.train(training)
        generate_captions(model, workshop.photos("dev").first(1), progress=False)
        assert model.training is training


def test_predictions_are_the_captions_one_a_photo(overfitted: CaptioningTrainer) -> None:
    output = overfitted.predict(overfitted.train_dataset)
    assert output.predictions.tolist() == list(overfitted.caption(overfitted.train_dataset.photos).values())
    assert output.metrics["test_bleu_4"] == pytest.approx(1.0)


class Samples(Dataset):
    """Samples that are no CaptionDataset."""

    def __init__(self, samples: CaptionDataset) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.samples[index]


def test_other_data_sets_are_evaluated_as_trainer_does(workshop: Workshop, tmp_path: Path) -> None:
    trainer = workshop.trainer(tmp_path, per_device_eval_batch_size=100, prediction_loss_only=True)
    trainer.evaluate()
    metrics = trainer.evaluate(Samples(trainer.eval_dataset))
    assert metrics["eval_loss"] == pytest.approx(word_loss(trainer.model, trainer.eval_dataset), rel=1e-5)
    assert "eval_bleu_4" not in metrics


def test_captions_all_alike_are_seen_as_such() -> None:
    captions = dict.fromkeys("abcd", "a dog")
    metrics = caption_metrics(captions, {name: ["a cat"] for name in captions})
    assert metrics == {"bleu_4": pytest.approx(0, abs=1e-3), "cider": 0.0, "distinct": 0.25, "words": 2.0}


def test_trainer_itself_trains_the_same_weights(workshop: Workshop, weights: Weights, tmp_path: Path) -> None:
    ours = workshop.trainer(tmp_path, train_sampling_strategy="sequential")
    plain = workshop.trainer(tmp_path, train_sampling_strategy="sequential")
    other = Trainer(
        model=plain.model, args=plain.args, train_dataset=plain.train_dataset, data_collator=plain.data_collator
    )
    ours.train()
    other.train()
    assert_same(weights(ours.model), weights(other.model))


def test_unused_columns_may_be_removed(workshop: Workshop, weights: Weights, tmp_path: Path) -> None:
    trainers = [workshop.trainer(tmp_path, remove_unused_columns=remove) for remove in (False, True)]
    for trainer in trainers:
        trainer.train()
    assert_same(*(weights(trainer.model) for trainer in trainers))
    assert trainers[1].evaluate()["eval_loss"] == trainers[0].evaluate()["eval_loss"]


def test_spawned_workers_give_the_same_batches(workshop: Workshop, weights: Weights, tmp_path: Path) -> None:
    trainers = [
        workshop.trainer(tmp_path, num_train_epochs=1, **settings)
        for settings in (
            {},
            {"dataloader_num_workers": 2, "dataloader_multiprocessing_context": "spawn"},
        )
    ]
    for trainer in trainers:
        trainer.train()
    assert_same(*(weights(trainer.model) for trainer in trainers))


def test_accumulated_batches_are_one_large_batch(workshop: Workshop, weights: Weights, tmp_path: Path) -> None:
    large = workshop.trainer(tmp_path, per_device_train_batch_size=16)
    small = workshop.trainer(tmp_path, per_device_train_batch_size=4, gradient_accumulation_steps=4)
    for trainer in (large, small):
        trainer.train()
    for name, tensor in weights(large.model).items():
        torch.testing.assert_close(weights(small.model)[name], tensor, rtol=1e-4, atol=1e-6)


def test_a_trained_backbone_learns_from_pixels(workshop: Workshop, weights: Weights, tmp_path: Path) -> None:
    model = workshop.captioner(freeze_backbone=False)[0]
    before = weights(model)
    photos = PhotoDataset(workshop.rows["train"].select(range(4)), workshop.processor, keep_pixels=True)
    train = CaptionDataset(photos, workshop.processor.tokenizer)
    workshop.trainer(tmp_path, model, train, max_steps=2, warmup_steps=0, per_device_train_batch_size=4).train()
    moved = {name for name, tensor in weights(model).items() if not torch.equal(tensor, before[name])}
    assert any(name.startswith("encoder.backbone") and name.endswith("weight") for name in moved)
    assert any(name.endswith("running_mean") for name in moved)


def test_a_frozen_backbone_does_not_move(workshop: Workshop, weights: Weights, tmp_path: Path) -> None:
    trainer = workshop.trainer(tmp_path, max_steps=2)
    before = copy.deepcopy(weights(trainer.model.encoder))
    trainer.train()
    assert_same(weights(trainer.model.encoder), before)


def test_the_features_of_a_trained_checkpoint_are_still_in_the_cache(
    overfitted: CaptioningTrainer, workshop: Workshop, tmp_path: Path
) -> None:
    overfitted.save_model(str(tmp_path))
    model = type(overfitted.model).from_pretrained(tmp_path)
    model.encoder.backbone.forward = None  # it must not run
    cache_features(model, workshop.processor, workshop.rows["train"], workshop.folder / "features")


def test_views_change_from_epoch_to_epoch_and_a_resumed_run_sees_the_same(
    workshop: Workshop, tmp_path: Path, weights: Weights
) -> None:
    """At batch size 1, and broken off in the middle of an epoch."""
    rows = workshop.rows["train"].map(lambda row: {"captions": row["captions"][:1]}, load_from_cache_file=False)
    model, processor = workshop.captioner()
    mirrored = PhotoView(mirrored=True)
    views = [(mirrored, cache_features(model, processor, rows, workshop.folder / "features", view=mirrored))]
    photos = PhotoDataset(rows, processor, workshop.encode(model, rows), views=views)

    class Watching(CaptionCollator):
        def __init__(self) -> None:
            self.seen: list[tuple[int, int]] = []  # row and view

        def __call__(self, samples: Any) -> dict[str, torch.Tensor]:
            (sample,) = samples
            self.seen += [
                (row, view)
                for row in photos.rows
                for view in (0, 1)
                if sample["encoder_outputs"].equal(photos.inputs(row, view)["encoder_outputs"])
            ]
            return super().__call__(samples)

    def run(resume: str | None = None) -> tuple[list[tuple[int, int]], dict[str, torch.Tensor]]:
        trainer = workshop.trainer(
            tmp_path,
            train=CaptionDataset(photos, processor.tokenizer),
            per_device_train_batch_size=1,
            num_train_epochs=3,
            save_strategy="steps",
            save_steps=24,
            save_total_limit=None,
        )
        trainer.data_collator = Watching()
        trainer.train(resume_from_checkpoint=resume)
        return trainer.data_collator.seen, weights(trainer.model)

    seen, final = run()
    epochs = [dict(seen[start : start + 16]) for start in (0, 16, 32)]
    assert [len(epoch) for epoch in epochs] == [16] * 3
    for before, after in itertools.pairwise(epochs):
        assert 0 < sum(before[row] != after[row] for row in before) < 16
    resumed, again = run(str(tmp_path / "checkpoint-24"))
    assert resumed[-24:] == seen[-24:]
    assert_same(final, again)


WAITS = ("item", "tolist", "cpu", "numpy", "__bool__", "__float__", "__int__", "__index__")
# Of batches on their way to the device, of schedules of the optimizer, which are kept on the CPU, and of the log.
NO_WAITS = ("torch/utils/data", "torch/optim", "nic_hf/data", "accelerate/data_loader", "_maybe_log_save_evaluate")


@pytest.mark.parametrize("arguments", [{}, {"scheduled_sampling": 0.5, "ema_decay": 0.9}])
def test_no_step_waits_for_the_device_but_where_it_is_logged(
    arguments: dict[str, Any], workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each value that is read from a tensor would be a wait for a GPU."""
    monkeypatch.setattr(divergence, "at_hand", lambda value: False)
    trainer = workshop.trainer(tmp_path, max_steps=9, logging_steps=3, **arguments)
    waits: list[tuple[int, str]] = []

    def watched(name: str) -> Callable:
        real = getattr(torch.Tensor, name)

        def call(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            places = [f"{frame.filename} {frame.name}" for frame in traceback.extract_stack()[:-1]]
            in_step = any("_run_epoch" in place for place in places)
            if in_step and not any(part in place for place in places for part in NO_WAITS):
                waits.append((trainer.state.global_step, f"{name} in {places[-1]}"))
            return real(tensor, *args, **kwargs)

        return call

    for name in WAITS:
        monkeypatch.setattr(torch.Tensor, name, watched(name))
    trainer.train()
    assert len([line for line in trainer.state.log_history if "loss" in line]) == 3
    assert waits == []
