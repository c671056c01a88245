#!/usr/bin/env python
"""Train Show and Tell on captioned photos with Trainer.

    python examples/train_captioner.py --data path/to/flickr8k --backbone google/mobilenet_v2_1.0_224 \
        --output_dir runs/flickr8k

`nic train` does the same with recipes of one or more stages; this script is for your own changes. For two processes or
GPUs, replace `python` by `torchrun --nproc_per_node 2`.
"""

import json
import logging
import sys
from dataclasses import dataclass, field
from pathlib import Path

import transformers
from transformers import set_seed

from nic_hf.training import CaptioningTrainer, CaptioningTrainingArguments, SampleCaptionsCallback
from nic_hf.training.recipe_settings import DataSettings, ModelSettings
from nic_hf.training.script_parser import ScriptParser
from nic_hf.training.stage_inputs import caption_datasets, load_splits, new_captioner, trained_captioner

logger = logging.getLogger(__name__)


@dataclass
class StartSettings:
    """Start of training."""

    from_checkpoint: str | None = field(
        default=None, metadata={"help": "Captioner to train further; its backbone and sizes are kept."}
    )


def main() -> None:
    """Parse arguments, load data, train, evaluate, save."""
    parser = ScriptParser(
        (ModelSettings, DataSettings, CaptioningTrainingArguments, StartSettings), description=__doc__
    )
    if len(sys.argv) == 2 and sys.argv[1].endswith((".json", ".yaml", ".yml")):
        parse = parser.parse_json_file if sys.argv[1].endswith(".json") else parser.parse_yaml_file
        try:
            model_settings, data_settings, training_args, start = parse(sys.argv[1])
        except (TypeError, ValueError) as error:  # invalid JSON, or an unknown or missing option
            raise ValueError(f"{sys.argv[1]}: {error}") from error
    else:
        model_settings, data_settings, training_args, start = parser.parse_args_into_dataclasses()

    logging.basicConfig(level=logging.INFO if training_args.should_log else logging.WARNING, format="%(message)s")
    transformers.utils.logging.set_verbosity(training_args.get_process_log_level())
    training_args.check_paths()
    set_seed(training_args.seed)

    # Photos and captions, a captioner with the vocabulary of the training split, and the features of the photos, which
    # are computed once if the backbone is frozen.
    tables = load_splits(data_settings, training_args)
    is_new = start.from_checkpoint is None
    learned = tables["train"], data_settings.min_frequency
    if is_new:
        model, processor = new_captioner(model_settings, *learned)
    else:
        model, processor = trained_captioner(model_settings, start.from_checkpoint, *learned)
    model.to(training_args.device)
    photos, train_dataset, eval_dataset = caption_datasets(
        model, processor, tables, data_settings, training_args, set_statistics=is_new
    )

    trainer = CaptioningTrainer(
        model=model,
        args=training_args,
        train_dataset=train_dataset,
        eval_dataset=eval_dataset,
        processing_class=processor,
        callbacks=[SampleCaptionsCallback(photos["eval"].first(data_settings.num_sample_photos))],
    )
    result = trainer.train(resume_from_checkpoint=training_args.resume_from_checkpoint)
    trainer.save_model()
    trainer.log_metrics("train", result.metrics)
    trainer.save_metrics("train", result.metrics)
    trainer.save_state()
    metrics = trainer.evaluate()
    trainer.log_metrics("eval", metrics)
    trainer.save_metrics("eval", metrics)
    trainer.create_model_card(dataset=data_settings.data)

    if "predict" in photos:
        captions = trainer.caption(photos["predict"])
        if trainer.is_world_process_zero():
            path = Path(training_args.output_dir) / f"predictions_{data_settings.predict_split}.json"
            path.write_text(json.dumps(captions, indent=1, ensure_ascii=False), encoding="utf-8")
            logger.info(f"Captions of {data_settings.predict_split}: {path}")
    trainer.accelerator.end_training()


if __name__ == "__main__":
    try:
        main()
    except (OSError, ValueError) as error:
        # Invalid input: the message is enough.
        print("error:", *str(error).split(), file=sys.stderr)
        sys.exit(2)
