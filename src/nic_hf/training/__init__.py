"""Train captioners with `Trainer`."""

from typing import TYPE_CHECKING

from .._lazy import lazy_names

if TYPE_CHECKING:
    from .arguments import CaptioningTrainingArguments
    from .checkpoint_integrity import last_checkpoint
    from .distillation import DistillationTrainer, add_teacher_captions, load_teachers, soft_targets
    from .divergence import TrainingDivergedError
    from .hub_upload import push_captioner
    from .model_cards import CardFacts, model_card, write_model_card
    from .resume_check import ResumeError
    from .sample_captions import SampleCaptionsCallback
    from .self_critical import SelfCriticalTrainer, SelfCriticalTrainingArguments
    from .trainer import CaptioningTrainer

_MODULES = {
    "CaptioningTrainer": "trainer",
    "CaptioningTrainingArguments": "arguments",
    "CardFacts": "model_cards",
    "DistillationTrainer": "distillation",
    "ResumeError": "resume_check",
    "SampleCaptionsCallback": "sample_captions",
    "SelfCriticalTrainer": "self_critical",
    "SelfCriticalTrainingArguments": "self_critical",
    "TrainingDivergedError": "divergence",
    "add_teacher_captions": "distillation",
    "last_checkpoint": "checkpoint_integrity",
    "load_teachers": "distillation",
    "model_card": "model_cards",
    "push_captioner": "hub_upload",
    "soft_targets": "distillation",
    "write_model_card": "model_cards",
}

__all__ = [
    "CaptioningTrainer",
    "CaptioningTrainingArguments",
    "CardFacts",
    "DistillationTrainer",
    "ResumeError",
    "SampleCaptionsCallback",
    "SelfCriticalTrainer",
    "SelfCriticalTrainingArguments",
    "TrainingDivergedError",
    "add_teacher_captions",
    "last_checkpoint",
    "load_teachers",
    "model_card",
    "push_captioner",
    "soft_targets",
    "write_model_card",
]

__getattr__, __dir__ = lazy_names(__name__, _MODULES)
