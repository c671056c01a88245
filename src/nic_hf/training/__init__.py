"""Train a captioner with Trainer."""

from .arguments import CaptioningTrainingArguments
from .callbacks import SampleCaptionsCallback
from .checkpoints import last_checkpoint
from .divergence import TrainingDivergedError
from .model_card import CardFacts, model_card, write_model_card
from .provenance import ResumeError
from .publishing import push_captioner
from .self_critical import SelfCriticalTrainer, SelfCriticalTrainingArguments
from .trainer import CaptioningTrainer

__all__ = [
    "CaptioningTrainer",
    "CaptioningTrainingArguments",
    "CardFacts",
    "ResumeError",
    "SampleCaptionsCallback",
    "SelfCriticalTrainer",
    "SelfCriticalTrainingArguments",
    "TrainingDivergedError",
    "last_checkpoint",
    "model_card",
    "push_captioner",
    "write_model_card",
]
