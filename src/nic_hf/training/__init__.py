"""Train a captioner with Trainer."""

from .arguments import CaptioningTrainingArguments
from .callbacks import SampleCaptionsCallback
from .self_critical import SelfCriticalTrainer, SelfCriticalTrainingArguments
from .trainer import CaptioningTrainer, TrainingDivergedError

__all__ = [
    "CaptioningTrainer",
    "CaptioningTrainingArguments",
    "SampleCaptionsCallback",
    "SelfCriticalTrainer",
    "SelfCriticalTrainingArguments",
    "TrainingDivergedError",
]
