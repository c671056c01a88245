"""Train a captioner with Trainer."""

from .arguments import CaptioningTrainingArguments
from .callbacks import SampleCaptionsCallback
from .trainer import CaptioningTrainer

__all__ = ["CaptioningTrainer", "CaptioningTrainingArguments", "SampleCaptionsCallback"]
