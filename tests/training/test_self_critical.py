"""Self-critical training: the gradient that it takes, and that the reward grows."""

import logging
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from workshop import Workshop

from nic_hf.data import CaptionDataset, PhotoDataset
from nic_hf.training import SelfCriticalTrainer, SelfCriticalTrainingArguments
from nic_hf.training.self_critical import _advantages, _never_sampled, _word_losses


def critical_trainer(workshop: Workshop, folder: Path, model: Any, **arguments: Any) -> SelfCriticalTrainer:
    settings = {
        "eval_strategy": "no",
        "save_strategy": "no",
        "load_best_model_at_end": False,
        "metric_for_best_model": None,
        "disable_tqdm": True,
        "report_to": "none",
        "per_device_train_batch_size": 8,
        "logging_steps": 1,
        "learning_rate": 1e-3,
        "lr_scheduler_type": "constant",
        "warmup_steps": 0,
        **arguments,
    }
    tokenizer = workshop.processor.tokenizer
    return SelfCriticalTrainer(
        model=model,
        args=SelfCriticalTrainingArguments(output_dir=str(folder), **settings),
        train_dataset=CaptionDataset(workshop.photos("train"), tokenizer, captions_per_sample=5),
        eval_dataset=CaptionDataset(workshop.photos("dev"), tokenizer),
        processing_class=workshop.processor,
    )


@pytest.fixture(scope="session")
def trained(workshop: Workshop, tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    """Weights of a captioner that cross-entropy has taught to end its captions."""
    trainer = workshop.trainer(tmp_path_factory.mktemp("start"), num_train_epochs=25)
    trainer.train()
    return {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}


@pytest.fixture
def start(workshop: Workshop, trained: dict[str, torch.Tensor]) -> Any:
    model, _ = workshop.captioner()
    model.load_state_dict(trained)
    return model


def test_the_reward_of_samples_grows(workshop: Workshop, start: Any, tmp_path: Path) -> None:
    trainer = critical_trainer(workshop, tmp_path, start, max_steps=40, cross_entropy_weight=0.0)
    trainer.train()
    lines = [line for line in trainer.state.log_history if "reward" in line]
    rewards = [line["reward"] for line in lines]
    assert len(rewards) == 40
    assert np.mean(rewards[-8:]) > 1.3 * np.mean(rewards[:8])
    for line in lines:
        assert 0 < line["sampled_distinct"] <= 1 and 0 <= line["unfinished"] <= 1
        assert 1 <= line["sampled_words"] <= 20 and 0 < line["reward_share"] < 1


def test_the_loss_is_the_policy_gradient(workshop: Workshop, start: Any, tmp_path: Path) -> None:
    trainer = critical_trainer(workshop, tmp_path, start, cross_entropy_weight=0.5, num_samples=3)
    batch = next(iter(trainer.get_train_dataloader()))
    seen: dict[str, Any] = {}
    sample = trainer._sample

    def watched(*arguments: Any) -> torch.Tensor:
        seen["samples"] = sample(*arguments)
        return seen["samples"]

    trainer._sample = watched  # type: ignore[method-assign]
    start.train()
    loss = trainer.compute_loss(start, dict(batch))

    # One caption at a time, from the definition.
    eos = start.config.eos_token_id
    never = [start.config.pad_token_id, start.config.bos_token_id, start.config.unk_token_id]

    def log_likelihood(feature: torch.Tensor, caption: list[int], left_out: list[int]) -> float:
        read = torch.tensor([[start.config.bos_token_id, *caption[:-1]]])
        with torch.no_grad():
            chances = start(encoder_outputs=feature, decoder_input_ids=read).logits[0].double().softmax(-1)
        chances[:, left_out] = 0.0
        chances /= chances.sum(-1, keepdim=True)
        return float(chances[range(len(caption)), caption].log().sum())

    weighted, words, people, people_words = 0.0, 0, 0.0, 0
    for photo, own in enumerate(batch["labels"]):
        feature = batch["encoder_outputs"][photo : photo + 1]
        references = [[int(w) for w in caption if w >= 0] for caption in own]
        samples = [[int(w) for w in caption if w >= 0] for caption in seen["samples"][photo]]
        (rewards,) = trainer.reward([samples], [references])
        rewards = [r if s[-1] == eos else 0.0 for r, s in zip(rewards, samples, strict=True)]
        for index, caption in enumerate(samples):
            others = [r for n, r in enumerate(rewards) if n != index]
            weighted -= (rewards[index] - np.mean(others)) * log_likelihood(feature, caption, never)
            words += len(caption)
        for caption in references:
            people -= log_likelihood(feature, caption, [])
            people_words += len(caption)
    assert loss.item() == pytest.approx(weighted / words + 0.5 * people / people_words, rel=1e-4)


def test_samples_come_from_the_distribution_whose_likelihood_is_learned_from(
    workshop: Workshop, start: Any, tmp_path: Path
) -> None:
    """Whatever the generation config says, which is left as it was."""
    start.generation_config.update(
        do_sample=True,
        temperature=0.3,
        top_k=3,
        top_p=0.5,
        repetition_penalty=3.0,
        no_repeat_ngram_size=2,
        min_new_tokens=5,
    )
    start.generation_config.suppress_tokens = [5]
    before = start.generation_config.to_dict()
    unk = start.config.unk_token_id
    with torch.no_grad():
        start.lm_head.weight.mul_(3)  # surer of its words, so that some captions come often
        start.lm_head.bias[unk] = start.lm_head.bias.max() + 5  # said often, if it may be
    trainer = critical_trainer(workshop, tmp_path, start, num_samples=8000, max_sampled_words=3)
    feature = workshop.photos("dev")[0]["encoder_outputs"][None]
    torch.manual_seed(0)
    (samples,) = trainer._sample(start, feature)
    assert start.generation_config.to_dict() == before

    seen = Counter(tuple(int(word) for word in caption if word >= 0) for caption in samples)
    labels = torch.nn.utils.rnn.pad_sequence([torch.tensor(ids) for ids in seen], True, -100)[None]
    with torch.no_grad():
        logits = start(
            encoder_outputs=feature, decoder_input_ids=start.prepare_decoder_input_ids_from_labels(labels)
        ).logits.view(*labels.shape, -1)
    chances = (-_word_losses(logits, labels, _never_sampled(start.config)).sum(-1)[0]).exp()
    found = torch.tensor([number / len(samples) for number in seen.values()])
    often = chances > 0.002
    assert often.sum() > 20 and found[often].sum() > 0.5, (often.sum(), found[often].sum())
    # Within five standard deviations of what 8,000 draws of these chances give.
    deviation = (chances * (1 - chances) / len(samples)).sqrt()
    assert ((found - chances).abs() < 5 * deviation)[often].all()
    assert abs(float(found[often].sum() - chances[often].sum())) < 0.025


def test_photos_with_one_caption_each_are_learned_from(workshop: Workshop, start: Any, tmp_path: Path) -> None:
    rows = workshop.rows["train"].map(lambda row: {"captions": row["captions"][:1]}, load_from_cache_file=False)
    photos = PhotoDataset(rows, workshop.processor, workshop.features["train"])
    trainer = critical_trainer(workshop, tmp_path, start, max_steps=3)
    trainer = SelfCriticalTrainer(
        model=start,
        args=trainer.args,
        train_dataset=CaptionDataset(photos, workshop.processor.tokenizer),
        processing_class=workshop.processor,
    )
    trainer.train()
    lines = [line for line in trainer.state.log_history if "reward" in line]
    assert len(lines) == 3 and any(line["reward"] > 0 for line in lines)


def test_samples_end_once(workshop: Workshop, start: Any, tmp_path: Path) -> None:
    trainer = critical_trainer(workshop, tmp_path, start, max_sampled_words=6)
    features = torch.stack([workshop.photos("dev")[n]["encoder_outputs"] for n in range(5)])
    start.train()
    samples = trainer._sample(start, features)
    assert start.training
    eos = start.config.eos_token_id
    assert samples.shape[:2] == (5, 5) and samples.shape[2] <= 6
    for caption in samples.flatten(0, 1).tolist():
        words = [word for word in caption if word != -100]
        assert caption == words + [-100] * (len(caption) - len(words))
        assert eos not in words[:-1]
        assert len(words) == len(caption) or words[-1] == eos
    assert len(set(map(tuple, samples.flatten(0, 1).tolist()))) > 5


def test_the_baseline_is_the_mean_of_the_others() -> None:
    rewards = np.array([[1.0, 2.0, 6.0], [3.0, 3.0, 3.0]])
    assert _advantages(rewards).tolist() == [[-3.0, -1.5, 4.5], [0.0, 0.0, 0.0]]


def test_no_reward_at_all_is_reported_and_then_refused(
    workshop: Workshop, start: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with torch.no_grad():
        start.lm_head.bias[start.config.eos_token_id] = -1e4  # no caption ends any more
    trainer = critical_trainer(workshop, tmp_path, start, max_steps=80, cross_entropy_weight=0.0)
    before = {name: tensor.clone() for name, tensor in start.state_dict().items()}
    with caplog.at_level(logging.WARNING), pytest.raises(ValueError, match="no sample of 50 batches has a reward"):
        trainer.train()
    assert "all samples of this batch have a reward of 0" in caplog.text
    moved = [name for name, tensor in start.state_dict().items() if not torch.equal(tensor, before[name])]
    assert moved == [], "not even by weight decay"


def test_where_nothing_is_rewarded_people_alone_are_learned_from(
    workshop: Workshop, start: Any, tmp_path: Path
) -> None:
    with torch.no_grad():
        start.lm_head.bias[start.config.eos_token_id] = -1e4
    trainer = critical_trainer(workshop, tmp_path, start, cross_entropy_weight=0.5)
    batch = next(iter(trainer.get_train_dataloader()))
    start.train()
    read = []
    start.decoder.embed_tokens.register_forward_hook(lambda _, inputs, __: read.append(inputs[0].numel()))
    trainer.compute_loss(start, dict(batch)).backward()
    gradients = {name: weight.grad.clone() for name, weight in start.named_parameters() if weight.grad is not None}
    words = read[-1]
    start.zero_grad()
    (0.5 * start(**batch).loss).backward()
    assert gradients and words == read[-1], "the samples are not even read"
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, start.get_parameter(name).grad, rtol=1e-4, atol=1e-6)


def test_captions_of_a_photo_must_be_together(workshop: Workshop, start: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="captions_per_sample"):
        SelfCriticalTrainer(
            model=start,
            args=SelfCriticalTrainingArguments(
                output_dir=str(tmp_path), eval_strategy="no", save_strategy="no", load_best_model_at_end=False
            ),
            train_dataset=CaptionDataset(workshop.photos("train"), workshop.processor.tokenizer),
        )
    with pytest.raises(ValueError, match="at least 2"):
        critical_trainer(workshop, tmp_path, start, num_samples=1)
