"""The same seed gives the same weights and captions, whatever the workers; a caption does not depend on its batch."""

import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from subset import real_captioner
from tiny import CAPTIONS, save_tiny_checkpoint, tiny_model, tiny_photos, tiny_processor

from nic_hf import NICForConditionalGeneration, NICProcessor
from nic_hf.captioning import TorchCaptioner
from nic_hf.captioning.captioners import caption_batch
from nic_hf.data import CaptionDataset, PhotoDataset, load_captions
from nic_hf.dataset_captions import generate_captions
from nic_hf.training import CaptioningTrainer, CaptioningTrainingArguments


def check_batches(captioner: TorchCaptioner, photos: list[np.ndarray], num_beams: int) -> None:
    alone = [caption_batch(captioner, [photo], 1, num_beams=num_beams)[0] for photo in photos]
    assert len({captions[0] for captions in alone}) > 3
    generator = random.Random(num_beams)
    for size in (2, 5, len(photos)):
        for _ in range(3):
            order = generator.sample(range(len(photos)), len(photos))
            for start in range(0, len(order), size):
                chosen = order[start : start + size]
                found = caption_batch(captioner, [photos[i] for i in chosen], 1, num_beams=num_beams)
                assert found == [alone[i] for i in chosen], f"{size} photos at once, {num_beams} beams"


@pytest.mark.parametrize("attention", [None, "soft"])
@pytest.mark.parametrize("num_beams", [1, 3])
def test_a_caption_does_not_depend_on_its_batch(num_beams: int, attention: str | None) -> None:
    captioner = TorchCaptioner(tiny_model(attention=attention), tiny_processor(), device="cpu")
    check_batches(captioner, [captioner.prepare(photo) for photo in tiny_photos(24, seed=2)], num_beams)


@pytest.mark.soak
@pytest.mark.parametrize("num_beams", [1, 3])
def test_a_caption_of_the_real_backbone_does_not_depend_on_its_batch(num_beams: int, test_data: Path) -> None:
    from nic_hf.images import load_photo

    model, processor = real_captioner(test_data, CAPTIONS, hidden_size=64, embedding_size=64, initializer_range=1.5)
    captioner = TorchCaptioner(model, processor, device="cpu")
    names = sorted((test_data / "flickr8k" / "Images").glob("*.jpg"))[:48]
    check_batches(captioner, [captioner.prepare(load_photo(name)) for name in names], num_beams)


def train(folder: Path, workers: int, seed: int = 0) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Weights and captions of a run on photos, without a cache, that `workers` processes decode."""
    start = folder / "start"
    if not start.exists():
        save_tiny_checkpoint(start, dropout=0.3)
        (folder / "photos" / "train").mkdir(parents=True)
        rows = []
        for number, photo in enumerate(tiny_photos(16, seed=4)):
            photo.save(folder / "photos" / "train" / f"{number}.png")
            rows += [{"file_name": f"{number}.png", "text": CAPTIONS[(number + i) % 4]} for i in range(2)]
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / "photos" / "train" / "metadata.jsonl").write_text(lines, "utf-8")
    model, processor = NICForConditionalGeneration.from_pretrained(start), NICProcessor.from_pretrained(start)
    photos = PhotoDataset(load_captions(folder / "photos", "train", cache_dir=folder / "arrow"), processor)
    output = folder / f"workers{workers}-{seed}"
    arguments = CaptioningTrainingArguments(
        output_dir=str(output),
        max_steps=8,
        per_device_train_batch_size=4,
        dataloader_num_workers=workers,
        eval_strategy="no",
        save_strategy="no",
        load_best_model_at_end=False,
        disable_tqdm=True,
        report_to="none",
        use_cpu=True,
        seed=seed,
    )
    trainer = CaptioningTrainer(
        model=model,
        args=arguments,
        train_dataset=CaptionDataset(photos, processor.tokenizer),
        processing_class=processor,
    )
    trainer.train()
    trainer.save_model()
    return load_file(output / "model.safetensors"), generate_captions(
        model, photos, num_workers=workers, progress=False
    )


def check_training(folder: Path, workers: tuple[int, ...]) -> None:
    weights, captions = train(folder, 0)
    for number in workers:
        again, said = train(folder, number)
        assert [name for name in weights if not torch.equal(weights[name], again[name])] == [], f"{number} workers"
        assert said == captions
    other, _ = train(folder, 0, seed=1)
    assert any(not torch.equal(weights[name], other[name]) for name in weights), "the seed has no meaning"


def test_the_same_seed_gives_the_same_weights(tmp_path: Path) -> None:
    check_training(tmp_path, (0,))


@pytest.mark.soak
def test_workers_change_nothing(tmp_path: Path) -> None:
    check_training(tmp_path, (2, 4))
