"""Train captioners with `Trainer`."""

from .arguments import CaptioningTrainingArguments
from .checkpoint_integrity import last_checkpoint
from .divergence import TrainingDivergedError
from .hub_upload import push_captioner
from .model_card import CardFacts, model_card, write_model_card
from .resume_check import ResumeError
from .sample_captions import SampleCaptionsCallback
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
