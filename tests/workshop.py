"""What tests of training start from."""

from pathlib import Path
from typing import Any

import datasets
from subset import real_captioner
from transformers import set_seed

from nic_hf import NICForConditionalGeneration, NICProcessor
from nic_hf.data import CaptionDataset, FeatureTable, PhotoDataset, cache_features, load_captions
from nic_hf.training import CaptioningTrainer, CaptioningTrainingArguments


class Workshop:
    """Photos, captions and features that many tests start from."""

    def __init__(self, test_data: Path, subset: Path, folder: Path) -> None:
        self.test_data, self.folder = test_data, folder
        self.rows = {split: load_captions(subset, split, cache_dir=folder / "arrow") for split in ("train", "dev")}
        self.captions = [caption for captions in self.rows["train"]["captions"] for caption in captions]
        model, self.processor = self.captioner()
        self.features = {split: self.encode(model, rows) for split, rows in self.rows.items()}

    def captioner(self, **config: Any) -> tuple[NICForConditionalGeneration, NICProcessor]:
        """An untrained captioner; the same weights each time."""
        set_seed(0)
        settings: dict[str, Any] = {"hidden_size": 32, "embedding_size": 32, "dropout": 0.0, **config}
        return real_captioner(self.test_data, self.captions, **settings)

    def trained(self) -> tuple[NICForConditionalGeneration, NICProcessor]:
        """A captioner that has learned enough to say different things of different photos."""
        model, processor = self.captioner(hidden_size=96, embedding_size=64)
        self.trainer(self.folder / "run", model, num_train_epochs=16).train()
        return model, processor

    def encode(self, model: NICForConditionalGeneration, rows: datasets.Dataset) -> FeatureTable:
        """Features of photos."""
        return cache_features(model, self.processor, rows, self.folder / "features")

    def photos(self, split: str) -> PhotoDataset:
        """Photos of a split, with features."""
        return PhotoDataset(self.rows[split], self.processor, self.features[split])

    def trainer(
        self,
        output_dir: Path,
        model: NICForConditionalGeneration | None = None,
        train: CaptionDataset | None = None,
        callbacks: list | None = None,
        **arguments: Any,
    ) -> CaptioningTrainer:
        """A trainer that only trains, unless told more."""
        model = self.captioner()[0] if model is None else model
        model.set_feature_statistics(*self.features["train"].statistics())
        settings: dict[str, Any] = {
            "output_dir": str(output_dir),
            "num_train_epochs": 2,
            "per_device_train_batch_size": 16,
            "per_device_eval_batch_size": 4,
            "learning_rate": 5e-3,
            "eval_strategy": "no",
            "save_strategy": "no",
            "load_best_model_at_end": False,
            "disable_tqdm": True,
            "report_to": "none",
            **arguments,
        }
        tokenizer = self.processor.tokenizer
        return CaptioningTrainer(
            model=model,
            args=CaptioningTrainingArguments(**settings),
            train_dataset=CaptionDataset(self.photos("train"), tokenizer) if train is None else train,
            eval_dataset=CaptionDataset(self.photos("dev"), tokenizer),
            processing_class=self.processor,
            callbacks=callbacks,
        )
