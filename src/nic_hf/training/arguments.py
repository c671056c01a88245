"""Training arguments with defaults for small captioners."""

import logging
import os
from dataclasses import dataclass, field
from pathlib import Path

import torch
from transformers import TrainingArguments

from ..writing import check_writable

logger = logging.getLogger(__name__)


@dataclass
class CaptioningTrainingArguments(TrainingArguments):
    """`TrainingArguments` with defaults for thousands of photos and a frozen backbone."""

    output_dir: str = field(default="runs/captioner", metadata={"help": "Where checkpoints and samples are saved."})
    num_train_epochs: float = field(default=16, metadata={"help": "Number of passes over the captions."})
    per_device_train_batch_size: int = field(default=64, metadata={"help": "Captions per step and device."})
    per_device_eval_batch_size: int = field(
        default=128, metadata={"help": "Captions per step and device in evaluation."}
    )
    learning_rate: float = field(default=7e-4, metadata={"help": "Peak learning rate of AdamW."})
    lr_scheduler_type: str = field(default="cosine", metadata={"help": "Learning rate schedule."})
    warmup_steps: float = field(
        default=0.1, metadata={"help": "Warm-up steps, or their share of all steps if below 1."}
    )
    weight_decay: float = field(default=0.01, metadata={"help": "Weight decay of AdamW."})
    max_grad_norm: float = field(default=5.0, metadata={"help": "Norm that gradients are clipped to, as in im2txt."})
    eval_strategy: str = field(default="epoch", metadata={"help": "When to evaluate."})
    save_strategy: str = field(default="epoch", metadata={"help": "When to save."})
    save_total_limit: int | None = field(
        default=1, metadata={"help": "Number of checkpoints to keep, besides the best."}
    )
    load_best_model_at_end: bool = field(
        default=True, metadata={"help": "Load the best checkpoint at the end, if checkpoints are evaluated and saved."}
    )
    metric_for_best_model: str | None = field(
        default="eval_loss", metadata={"help": "Metric that selects the best checkpoint."}
    )
    logging_steps: float = field(default=100, metadata={"help": "Steps between log entries."})
    dataloader_pin_memory: bool = field(
        default_factory=torch.cuda.is_available, metadata={"help": "Pin host memory; only useful with a GPU."}
    )
    backbone_learning_rate: float | None = field(
        default=None, metadata={"help": "Learning rate of a trained backbone, if different; the schedule is the same."}
    )
    early_stopping_patience: int | None = field(
        default=None, metadata={"help": "Stop after this many evaluations without a better metric_for_best_model."}
    )
    ema_decay: float = field(
        default=0.0,
        metadata={"help": "Decay of a moving average of the weights, evaluated and saved in their place; 0 for none."},
    )
    min_steps: int = field(
        default=0,
        metadata={
            "help": "Train for at least this many steps: with few photos in smaller batches and more epochs (recipes"
            " only)."
        },
    )
    scheduled_sampling: float = field(
        default=0.0,
        metadata={"help": "Share of input words that are the model's own; it grows linearly from 0 to this value."},
    )
    distillation_weight: float = field(
        default=0.5, metadata={"help": "With teachers: weight of their word probabilities, against the captions."}
    )
    use_cache: bool = field(
        default=True, metadata={"help": "use_cache of the saved configuration; training itself keeps no cache."}
    )
    remove_unused_columns: bool = field(
        default=False, metadata={"help": "Drop columns that `forward` does not name, images included."}
    )
    logging_nan_inf_filter: bool = field(
        default=False,
        metadata={
            "help": "Leave NaN out of the logged loss. It waits for the GPU at each step; NaN ends training anyway."
        },
    )

    def __post_init__(self) -> None:
        """Check what Trainer does not, and turn load_best_model_at_end off if nothing is evaluated or saved.

        Raises:
            ValueError: if a field is out of range, or several processes were started that cannot train together.
        """
        for name in ("eval_strategy", "save_strategy", "logging_strategy"):
            if str(getattr(self, name)) == "False":  # how YAML reads `no`
                setattr(self, name, "no")
        missing = [name for name in ("eval_strategy", "save_strategy") if getattr(self, name) == "no"]
        keeps_last = self.load_best_model_at_end and bool(missing)
        if keeps_last:
            self.load_best_model_at_end = False
        started = int(os.environ.get("WORLD_SIZE") or 1) if "LOCAL_RANK" in os.environ else 1
        if started > 1 and not torch.accelerator.is_available():
            self.use_cpu = True  # otherwise Accelerate would not connect the processes
        super().__post_init__()
        if started > 1 and self.world_size == 1:
            raise ValueError(
                f"{started} processes were started, and each would train alone in the same folder: Accelerate does "
                f"not connect processes on {self.device}. Start one, or use the CPU with use_cpu=true"
            )
        if keeps_last and self.should_log:
            logger.warning(f"{missing[0]} is no: training ends with the last weights (load_best_model_at_end is off)")
        if self.early_stopping_patience is not None and self.eval_strategy == "no":
            raise ValueError("early_stopping_patience needs evaluations: set eval_strategy to epoch or steps")
        if self.early_stopping_patience is not None and self.early_stopping_patience < 1:
            raise ValueError(f"early_stopping_patience must be at least 1, got {self.early_stopping_patience}")
        if self.backbone_learning_rate is not None and self.backbone_learning_rate < 0:
            raise ValueError(f"backbone_learning_rate must not be negative, got {self.backbone_learning_rate}")
        for name in ("ema_decay", "scheduled_sampling"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 0 and below 1, got {getattr(self, name)}")
        if not 0 <= self.distillation_weight <= 1:
            raise ValueError(f"distillation_weight must be at least 0 and at most 1, got {self.distillation_weight}")

    def check_paths(self) -> None:
        """Check before training that `output_dir` can be written; it is not created.

        Raises:
            OSError: if it cannot, or if the checkpoint `resume_from_checkpoint` does not exist.
        """
        resumed = self.resume_from_checkpoint
        if resumed and resumed != "last" and not Path(resumed).is_dir():
            raise FileNotFoundError(f"{self.resume_from_checkpoint}: no such checkpoint")
        check_writable(self.output_dir)
