"""A run does not resume from a checkpoint with another vocabulary, backbone or data, or an incomplete one."""

import logging
import re
import shutil
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from workshop import Workshop

from nic_hf import NICProcessor
from nic_hf.data import CaptionDataset, PhotoDataset
from nic_hf.digests import weights_digest
from nic_hf.tokenization import train_tokenizer
from nic_hf.training import CaptioningTrainer, ResumeError, TrainingDivergedError, divergence, last_checkpoint
from nic_hf.training.checkpoint_integrity import why_incomplete
from nic_hf.training.resume_check import describe

SAVING = {"max_steps": 6, "save_strategy": "steps", "save_steps": 3, "save_total_limit": None}


@pytest.fixture(scope="module")
def run(workshop: Workshop, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Output directory with checkpoint-3 and checkpoint-6; tests must not change it."""
    folder = tmp_path_factory.mktemp("run")
    workshop.trainer(folder, **SAVING).train()
    return folder


def captions(workshop: Workshop, rows: Any, tokenizer: Any = None) -> CaptionDataset:
    features = workshop.encode(workshop.captioner()[0], rows)
    photos = PhotoDataset(rows, workshop.processor, features)
    return CaptionDataset(photos, tokenizer or workshop.processor.tokenizer)


def refusal(trainer: CaptioningTrainer, checkpoint: Path) -> str:
    """What the trainer says; neither model nor checkpoint may change."""
    before = weights_digest(trainer.model)
    files = {path: path.read_bytes() for path in sorted(checkpoint.iterdir())}
    with pytest.raises(ResumeError) as caught:
        trainer.train(resume_from_checkpoint=str(checkpoint))
    assert weights_digest(trainer.model) == before
    assert {path: path.read_bytes() for path in sorted(checkpoint.iterdir())} == files
    return str(caught.value)


def test_the_same_things_are_resumed(workshop: Workshop, run: Path, tmp_path: Path) -> None:
    trainer = workshop.trainer(tmp_path, workshop.captioner(dropout=0.3, label_smoothing=0.1)[0], **SAVING)
    trainer.train(resume_from_checkpoint=str(run / "checkpoint-3"))
    assert trainer.state.global_step == 6


def test_another_batch_size_gives_a_warning(
    workshop: Workshop, run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trainer = workshop.trainer(tmp_path, **{**SAVING, "per_device_train_batch_size": 8})
    with caplog.at_level(logging.WARNING):
        trainer.train(resume_from_checkpoint=str(run / "checkpoint-3"))
    assert "samples per step: 16 there, 8 here: the order of the samples will differ" in caplog.text


def test_another_vocabulary_is_refused_and_its_words_are_named(workshop: Workshop, run: Path, tmp_path: Path) -> None:
    text = [re.sub(r"\bsnow\b", "axolotl", caption) for caption in workshop.captions]
    tokenizer = train_tokenizer(text, min_frequency=1)
    model, processor = workshop.captioner(), workshop.processor
    assert len(tokenizer) == len(processor.tokenizer), "weights would load without a word"
    trainer = workshop.trainer(tmp_path, model[0], captions(workshop, workshop.rows["train"], tokenizer), **SAVING)
    trainer.processing_class = NICProcessor(processor.image_processor, tokenizer)
    said = refusal(trainer, run / "checkpoint-3")
    words = f"{len(tokenizer)} words there, {len(tokenizer)} here"
    assert f"the vocabulary: {words}; " in said and "only there ('snow')" in said and "only here ('axolotl')" in said
    assert said.count("\n- ") == 1, "captions differ as well, for that reason only"


def test_another_order_of_words_is_refused(workshop: Workshop, run: Path, tmp_path: Path) -> None:
    tokenizer = train_tokenizer([*workshop.captions, *["zebra " * 500 + "dog"]], min_frequency=1)
    trainer = workshop.trainer(tmp_path, **SAVING)
    trainer.processing_class = NICProcessor(workshop.processor.image_processor, tokenizer)
    said = refusal(trainer, run / "checkpoint-3")
    assert "1 only here ('zebra')" in said and "with another id" in said


def test_another_backbone_is_refused(workshop: Workshop, run: Path, tmp_path: Path) -> None:
    other, frozen, sizes = workshop.captioner()[0], workshop.captioner()[0], workshop.captioner(hidden_size=24)[0]
    with torch.no_grad():
        next(other.encoder.parameters()).flatten()[0] += 1e-3
    said = refusal(workshop.trainer(tmp_path, other, **SAVING), run / "checkpoint-3")
    assert "the frozen backbone's weights: digest" in said and said.count("\n- ") == 1

    other.config.backbone_config.depth_multiplier = 0.5
    said = refusal(workshop.trainer(tmp_path, other, **SAVING), run / "checkpoint-3")
    assert "the backbone's depth_multiplier: 0.25 there, 0.5 here" in said and said.count("\n- ") == 1

    frozen.set_backbone_frozen(False)
    said = refusal(workshop.trainer(tmp_path, frozen, **SAVING), run / "checkpoint-3")
    assert "the backbone: frozen there, trained here" in said

    said = refusal(workshop.trainer(tmp_path, sizes, **SAVING), run / "checkpoint-3")
    assert "the model's hidden_size: 32 there, 24 here" in said


def test_other_preprocessing_is_refused(workshop: Workshop, run: Path, tmp_path: Path) -> None:
    _, processor = workshop.captioner()
    processor.image_processor.image_mean = [0.1, 0.2, 0.3]
    trainer = workshop.trainer(tmp_path, **SAVING)
    trainer.processing_class = processor
    assert "the preprocessing's image_mean" in refusal(trainer, run / "checkpoint-3")


def test_other_data_is_refused(workshop: Workshop, run: Path, tmp_path: Path) -> None:
    rows = workshop.rows["train"]
    fewer = captions(workshop, rows.select(range(12)))
    said = refusal(workshop.trainer(tmp_path, train=fewer, **SAVING), run / "checkpoint-3")
    assert "the data's photos: 16 there, 12 here" in said and "the data's captions: 80 there, 60 here" in said

    turned = captions(workshop, rows.select(range(15, -1, -1)))
    said = refusal(workshop.trainer(tmp_path, train=turned, **SAVING), run / "checkpoint-3")
    first, last = rows[0]["image_id"], rows[15]["image_id"]
    assert f"the first difference is in photos 0 to 15, which start with {first!r} there and {last!r} here" in said

    def edited(row: Any, index: int) -> dict[str, Any]:
        return {"captions": [*row["captions"][:-1], "a dog"] if index == 9 else row["captions"]}

    one_caption = captions(workshop, rows.map(edited, with_indices=True, load_from_cache_file=False))
    said = refusal(workshop.trainer(tmp_path, train=one_caption, **SAVING), run / "checkpoint-3")
    assert "the first difference is in photos 0 to 15" in said and said.count("\n- ") == 1

    together = CaptionDataset(workshop.photos("train"), workshop.processor.tokenizer, captions_per_sample=5)
    said = refusal(workshop.trainer(tmp_path, train=together, **SAVING), run / "checkpoint-3")
    assert "the data's captions_per_sample: 1 there, 5 here" in said

    without_features = CaptionDataset(PhotoDataset(rows, workshop.processor), workshop.processor.tokenizer)
    said = refusal(workshop.trainer(tmp_path, train=without_features, **SAVING), run / "checkpoint-3")
    assert "the image features" in said


def test_blocks_of_photos_find_the_first_difference(workshop: Workshop) -> None:
    model, processor = workshop.captioner()
    rows = workshop.rows["train"].select([*range(16), *range(16), *range(7)])
    rows = rows.remove_columns("image_id").add_column("image_id", [f"{number}.jpg" for number in range(39)])
    blocks = describe(model, processor, captions(workshop, rows))["data"]["blocks"]
    assert [name for _, name in blocks] == ["0.jpg", "16.jpg", "32.jpg"]
    order = [*range(33), 34, 33, *range(35, 39)]
    other = describe(model, processor, captions(workshop, rows.select(order)))["data"]["blocks"]
    assert [one[0] == two[0] for one, two in zip(blocks, other, strict=True)] == [True, True, False]


def test_a_checkpoint_of_an_older_version_gives_a_warning(
    workshop: Workshop, run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    old = shutil.copytree(run / "checkpoint-3", tmp_path / "checkpoint-3")
    (old / "provenance.json").unlink()
    trainer = workshop.trainer(tmp_path, **SAVING)
    with caplog.at_level(logging.WARNING):
        trainer.train(resume_from_checkpoint=True)
    assert trainer.state.global_step == 6
    assert "no provenance.json" in caplog.text and "not compared" in caplog.text


# Unfinished checkpoints.


def test_no_part_of_a_checkpoint_can_be_lost_unnoticed(run: Path, tmp_path: Path) -> None:
    """Each file gone, empty, cut short; a kill may leave any of these."""
    assert why_incomplete(run / "checkpoint-6") is None
    names = {path.name for path in (run / "checkpoint-6").iterdir()} - {"provenance.json", "README.md"}
    assert {"model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"} <= names
    for name in names:
        folder = shutil.copytree(run / "checkpoint-6", tmp_path / name)
        content = (folder / name).read_bytes()
        (folder / name).unlink()
        assert why_incomplete(folder), name
        if name.endswith((".safetensors", ".pt", ".pth", ".bin")) or name == "trainer_state.json":
            for keep in (0, len(content) // 2, len(content.rstrip()) - 1):
                (folder / name).write_bytes(content[:keep])
                assert why_incomplete(folder), f"{name}, {keep} bytes of {len(content)}"
        if name.endswith((".safetensors", ".pt", ".pth", ".bin")):
            (folder / "provenance.json").unlink()
            assert why_incomplete(folder), f"{name} of an older version, cut short"


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth"])
def test_a_flipped_bit_of_a_checkpoint_is_found(name: str, run: Path, tmp_path: Path) -> None:
    """Of numbers and of pickled state; the loaders of safetensors and of PyTorch take either as it is."""
    folder = shutil.copytree(run / "checkpoint-6", tmp_path / "checkpoint-6")
    content = (folder / name).read_bytes()
    places = [len(content) - 9]
    if not name.endswith(".safetensors"):
        with zipfile.ZipFile(folder / name) as archive:
            parts = [part for part in archive.infolist() if part.file_size > 100]
            places = [content.index(archive.read(part)) + part.file_size // 2 for part in parts]
    for place in places:
        damaged = bytearray(content)
        damaged[place] ^= 1
        (folder / name).write_bytes(damaged)
        assert (why_incomplete(folder) or "").startswith(name), place
    (folder / name).write_bytes(content)
    assert why_incomplete(folder) is None


def test_an_incomplete_checkpoint_is_skipped(
    workshop: Workshop, run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = shutil.copytree(run, tmp_path / "run")
    (folder / "checkpoint-6" / "trainer_state.json").unlink()
    (folder / "checkpoint-12").mkdir()
    with caplog.at_level(logging.WARNING):
        assert last_checkpoint(folder) == str(folder / "checkpoint-3")
    assert "checkpoint-12 is skipped" in caplog.text and "no readable trainer_state.json" in caplog.text
    said = refusal(workshop.trainer(folder, **SAVING), folder / "checkpoint-6")
    assert "checkpoint-6 is incomplete" in said and f"resume from {folder / 'checkpoint-3'}" in said

    trainer = workshop.trainer(folder, **SAVING)
    trainer.train(resume_from_checkpoint=True)
    assert why_incomplete(folder / "checkpoint-6") is None
    expected = load_file(run / "checkpoint-6" / "model.safetensors")
    given = load_file(folder / "checkpoint-6" / "model.safetensors")
    assert all(torch.equal(given[name], expected[name]) for name in expected)


def test_last_means_the_newest_or_none(workshop: Workshop, run: Path, tmp_path: Path) -> None:
    with pytest.raises(ResumeError, match="has no complete checkpoint to resume from"):
        workshop.trainer(tmp_path, **SAVING).train(resume_from_checkpoint=True)
    anew = workshop.trainer(tmp_path, **SAVING)
    anew.args.resume_from_checkpoint = "last"
    anew.args.check_paths()
    anew.train(resume_from_checkpoint="last")
    assert anew.state.global_step == 6
    steps: list[int] = []
    again = workshop.trainer(tmp_path, **SAVING)
    again.training_step = lambda *_: steps.append(1)  # type: ignore[assignment,method-assign]
    again.train(resume_from_checkpoint="last")
    assert steps == [], "it was finished"


# Divergence.


def test_a_gradient_that_is_no_number_stops_before_it_reaches_the_weights(workshop: Workshop, tmp_path: Path) -> None:
    trainer = workshop.trainer(tmp_path, **SAVING, max_grad_norm=0.0)
    step = CaptioningTrainer.training_step

    def broken(*args: Any, **kwargs: Any) -> torch.Tensor:
        loss = step(trainer, *args, **kwargs)
        if trainer.state.global_step == 4:
            trainer.model.lm_head.weight.grad[0, 0] = torch.nan
        return loss

    trainer.training_step = broken  # type: ignore[method-assign]
    checkpoint = str(tmp_path / "checkpoint-3")
    with pytest.raises(TrainingDivergedError, match="the gradient norm is nan at step 5; the last") as caught:
        trainer.train()
    assert checkpoint in str(caught.value)
    assert all(torch.isfinite(weight).all() for weight in trainer.model.parameters())
    resumed = workshop.trainer(tmp_path, **SAVING)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == 6


def test_weights_that_are_no_numbers_are_not_saved(workshop: Workshop, tmp_path: Path) -> None:
    trainer = workshop.trainer(tmp_path, **SAVING)
    step = trainer.create_optimizer().step

    def broken(*args: Any, **kwargs: Any) -> Any:
        result = step(*args, **kwargs)
        if trainer.state.global_step == 5:
            with torch.no_grad():
                trainer.model.lm_head.bias[0] = torch.inf
        return result

    trainer.optimizer.step = broken
    with pytest.raises(TrainingDivergedError, match=r"the parameter lm_head\.bias contains NaN or Inf at step 6"):
        trainer.train()
    assert last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-3")


def test_where_a_device_would_have_to_be_waited_for_divergence_shows_at_the_next_line_of_the_log(
    workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(divergence, "at_hand", lambda value: False)
    trainer = workshop.trainer(tmp_path, **{**SAVING, "save_steps": 3, "logging_steps": 5, "max_steps": 12})
    step = CaptioningTrainer.training_step

    def broken(*args: Any, **kwargs: Any) -> torch.Tensor:
        loss = step(trainer, *args, **kwargs)
        if trainer.state.global_step == 6:
            trainer.model.lm_head.weight.grad[0, 0] = torch.nan
        return loss

    trainer.training_step = broken  # type: ignore[method-assign]
    with pytest.raises(TrainingDivergedError, match=r"the gradient norm is nan at step 7; .*checkpoint-6"):
        trainer.train()
    assert last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-6"), "before the one of step 9"
