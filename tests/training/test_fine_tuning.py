"""Training the backbone too: which weights, at what rate, with what BatchNorm."""

import pytest
import torch
from tiny import tiny_labels, tiny_model, tiny_pixels
from transformers import Trainer

from nic_hf.training import CaptioningTrainer, CaptioningTrainingArguments
from nic_hf.training.fine_tuning import thaw_backbone
from nic_hf.training.recipes import load_recipe


def test_the_weights_that_match_are_trained_and_no_gradient_goes_below_them() -> None:
    model = tiny_model(freeze_batch_norm=True)
    number = thaw_backbone(model, r"stages\.1\.")
    model.train()(pixel_values=tiny_pixels(2), labels=tiny_labels([3, 4])).loss.backward()
    trained = {name for name, weight in model.encoder.named_parameters() if weight.grad is not None}
    assert trained and all("stages.1." in name for name in trained)
    assert number == sum(w.numel() for n, w in model.encoder.named_parameters() if "stages.1." in n)
    assert not model.config.freeze_backbone


@pytest.mark.parametrize("share", [0.5, "0.5"])
def test_a_share_is_that_of_the_last_weights(share: float | str) -> None:
    model = tiny_model()
    thaw_backbone(model, share)
    trained = [weight.requires_grad for weight in model.encoder.parameters()]
    assert trained == sorted(trained) and abs(sum(trained) / len(trained) - 0.5) < 0.1


def test_without_a_pattern_all_of_it_is_trained() -> None:
    model = tiny_model()
    assert thaw_backbone(model) == sum(weight.numel() for weight in model.encoder.parameters())


@pytest.mark.parametrize(
    ("pattern", "message"),
    [("layer.99", "matches no weight.*for example"), ("(", "not a regular expression"), ("1.5", "at most 1")],
)
def test_a_pattern_that_matches_nothing_is_refused(pattern: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        thaw_backbone(tiny_model(), pattern)


@pytest.mark.parametrize("frozen", [True, False])
def test_batch_norm_statistics_move_only_where_they_may(frozen: bool) -> None:
    model = tiny_model(freeze_backbone=False, freeze_batch_norm=frozen)
    before = {name: buffer.clone() for name, buffer in model.encoder.named_buffers() if "running" in name}
    model.train()(pixel_values=tiny_pixels(4), labels=tiny_labels([3, 4, 2, 3])).loss.backward()
    moved = [n for n, buffer in model.encoder.named_buffers() if n in before and not torch.equal(buffer, before[n])]
    assert bool(moved) is not frozen
    assert all(weight.grad is not None for weight in model.encoder.parameters())  # scale and shift learn either way


def test_the_backbone_has_its_own_learning_rate_on_the_same_schedule(tmp_path: str) -> None:
    model = tiny_model(freeze_backbone=False)
    args = CaptioningTrainingArguments(
        output_dir=str(tmp_path),
        use_cpu=True,
        report_to="none",
        learning_rate=1e-2,
        backbone_learning_rate=1e-4,
        weight_decay=0.1,
        warmup_steps=0,
        eval_strategy="no",
        load_best_model_at_end=False,
    )
    trainer = CaptioningTrainer(model=model, args=args, train_dataset=[0])
    trainer.create_optimizer_and_scheduler(num_training_steps=10)
    plain = Trainer(model=model, args=args, train_dataset=[0])
    plain.create_optimizer()
    decays = {
        id(weight): group["weight_decay"] for group in plain.optimizer.param_groups for weight in group["params"]
    }
    seen: set[int] = set()
    encoder = {id(weight) for weight in model.encoder.parameters()}
    for _ in range(3):
        for group in trainer.optimizer.param_groups:
            for weight in group["params"]:
                assert group["weight_decay"] == decays[id(weight)]
                assert group["initial_lr"] == (1e-4 if id(weight) in encoder else 1e-2)
                seen.add(id(weight))
        ratios = {g["lr"] / g["initial_lr"] for g in trainer.optimizer.param_groups if g["params"]}
        assert max(ratios) - min(ratios) < 1e-12
        trainer.optimizer.step()
        trainer.lr_scheduler.step()
    assert seen == decays.keys()


def test_the_recipe_thaws_with_batch_norm_frozen() -> None:
    assert load_recipe("finetune")["stages"]["finetune"]["freeze_batch_norm"] is True
