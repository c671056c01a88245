#!/usr/bin/env python
"""Train a captioner to maximize the score of its captions (self-critical training, Rennie et al. 2017).

    python examples/train_self_critical.py --checkpoint runs/flickr8k --data path/to/flickr8k \
        --output_dir runs/flickr8k-self-critical

Start from the best checkpoint of cross-entropy training. The log shows reward, length and diversity of the samples.
"""

import logging
import sys
from dataclasses import dataclass, field

from transformers import set_seed

from nic_hf import NICForConditionalGeneration, NICProcessor
from nic_hf.data import CaptionDataset, PhotoDataset, cache_features, load_captions
from nic_hf.training import SampleCaptionsCallback, SelfCriticalTrainer, SelfCriticalTrainingArguments
from nic_hf.training.script_parser import ScriptParser


@dataclass
class Arguments:
    """Model and data."""

    checkpoint: str = field(metadata={"help": "Captioner to start from: a folder or Hub id."})
    data: str = field(metadata={"help": "Captioned photos; see `nic_hf.data.load_captions` for the formats."})
    train_split: str = field(default="train", metadata={"help": "Split to train on."})
    eval_split: str = field(default="validation", metadata={"help": "Split that selects the best checkpoint."})
    cache_dir: str | None = field(default=None, metadata={"help": "Cache of image features."})
    num_sample_photos: int = field(default=8, metadata={"help": "Number of photos whose captions are logged."})


def main() -> None:
    """Load, train, evaluate, save."""
    parser = ScriptParser((Arguments, SelfCriticalTrainingArguments), description=__doc__)
    args, training_args = parser.parse_args_into_dataclasses()
    logging.basicConfig(level=logging.INFO if training_args.should_log else logging.WARNING, format="%(message)s")
    training_args.check_paths()
    set_seed(training_args.seed)

    model = NICForConditionalGeneration.from_pretrained(args.checkpoint)
    processor = NICProcessor.from_pretrained(args.checkpoint)
    model.to(training_args.device)
    photos = {}
    for split in (args.train_split, args.eval_split):
        with training_args.main_process_first(desc="encoding photos"):
            table = load_captions(args.data, split)
            features = (
                cache_features(model, processor, table, args.cache_dir) if model.config.freeze_backbone else None
            )
        photos[split] = PhotoDataset(table, processor, features)
    train, evaluation = photos[args.train_split], photos[args.eval_split]
    captions_per_photo = max(map(len, train.references().values()))

    trainer = SelfCriticalTrainer(
        model=model,
        args=training_args,
        train_dataset=CaptionDataset(train, processor.tokenizer, captions_per_sample=captions_per_photo),
        eval_dataset=CaptionDataset(evaluation, processor.tokenizer),
        processing_class=processor,
        callbacks=[SampleCaptionsCallback(evaluation.first(args.num_sample_photos))],
    )
    trainer.train(resume_from_checkpoint=training_args.resume_from_checkpoint)
    trainer.save_model()
    trainer.save_state()
    metrics = trainer.evaluate()
    trainer.log_metrics("eval", metrics)
    trainer.save_metrics("eval", metrics)
    trainer.create_model_card(dataset=args.data)
    trainer.accelerator.end_training()


if __name__ == "__main__":
    try:
        main()
    except (OSError, ValueError) as error:
        print("error:", *str(error).split(), file=sys.stderr)
        sys.exit(2)
