"""Train a captioner with Trainer."""

from .arguments import CaptioningTrainingArguments
from .callbacks import SampleCaptionsCallback
from .checkpoints import last_checkpoint
from .provenance import ResumeError
from .self_critical import SelfCriticalTrainer, SelfCriticalTrainingArguments
from .trainer import CaptioningTrainer, TrainingDivergedError

__all__ = [
    "CaptioningTrainer",
    "CaptioningTrainingArguments",
    "ResumeError",
    "SampleCaptionsCallback",
    "SelfCriticalTrainer",
    "SelfCriticalTrainingArguments",
    "TrainingDivergedError",
    "last_checkpoint",
]
