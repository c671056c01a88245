"""Training arguments with the values that suit a small captioner."""

import logging
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import torch
from transformers import TrainingArguments

logger = logging.getLogger(__name__)


@dataclass
class CaptioningTrainingArguments(TrainingArguments):
    """`TrainingArguments`, other defaults: a recipe for thousands of photos and a frozen backbone.

    Every field of `TrainingArguments` is there.
    """

    output_dir: str = field(default="runs/captioner", metadata={"help": "Where checkpoints and samples go."})
    num_train_epochs: float = field(default=16, metadata={"help": "Passes over the captions."})
    per_device_train_batch_size: int = field(default=64, metadata={"help": "Captions a step and device."})
    per_device_eval_batch_size: int = field(default=128, metadata={"help": "Captions a step and device, to evaluate."})
    learning_rate: float = field(default=7e-4, metadata={"help": "The highest learning rate of AdamW."})
    lr_scheduler_type: str = field(default="cosine", metadata={"help": "How the learning rate falls."})
    warmup_steps: float = field(default=0.1, metadata={"help": "Steps, or share of all steps if below 1, of warm-up."})
    weight_decay: float = field(default=0.01, metadata={"help": "Weight decay of AdamW."})
    max_grad_norm: float = field(default=5.0, metadata={"help": "Gradients are clipped to this norm, as in im2txt."})
    eval_strategy: str = field(default="epoch", metadata={"help": "When to evaluate."})
    save_strategy: str = field(default="epoch", metadata={"help": "When to save."})
    save_total_limit: int | None = field(default=1, metadata={"help": "Checkpoints kept, besides the best."})
    load_best_model_at_end: bool = field(
        default=True, metadata={"help": "End with the best checkpoint, where there are evaluations and checkpoints."}
    )
    metric_for_best_model: str | None = field(default="eval_loss", metadata={"help": "What the best is best in."})
    logging_steps: float = field(default=100, metadata={"help": "Steps between lines of the log."})
    dataloader_pin_memory: bool = field(
        default_factory=torch.cuda.is_available, metadata={"help": "Pin host memory; of use with a GPU only."}
    )
    backbone_learning_rate: float | None = field(
        default=None, metadata={"help": "That of a backbone that is trained, where it differs; the same schedule."}
    )
    early_stopping_patience: int | None = field(
        default=None, metadata={"help": "Stop after so many evaluations without a better metric_for_best_model."}
    )
    ema_decay: float = field(
        default=0.0,
        metadata={"help": "Decay of a moving average of the weights, evaluated and saved in their place; 0: none."},
    )
    scheduled_sampling: float = field(
        default=0.0,
        metadata={"help": "Share of words read that the model said itself, reached step by step at the end."},
    )
    remove_unused_columns: bool = field(
        default=False, metadata={"help": "Drop what `forward` does not name. Images are columns too."}
    )
    logging_nan_inf_filter: bool = field(
        default=False,
        metadata={"help": "Leave NaN out of the logged loss. It costs a wait for the GPU a step; NaN ends training."},
    )

    def __post_init__(self) -> None:
        """Check what Trainer does not, and do without a best checkpoint where none is evaluated or saved.

        Raises:
            ValueError: naming the field, where it is out of range.
        """
        for name in ("eval_strategy", "save_strategy", "logging_strategy"):
            if str(getattr(self, name)) == "False":  # what YAML reads `no` as
                setattr(self, name, "no")
        missing = [name for name in ("eval_strategy", "save_strategy") if getattr(self, name) == "no"]
        keeps_last = self.load_best_model_at_end and bool(missing)
        if keeps_last:
            self.load_best_model_at_end = False
        super().__post_init__()
        if keeps_last and self.should_log:
            logger.warning(f"{missing[0]} is no: training ends with the last weights (load_best_model_at_end is off)")
        if self.early_stopping_patience is not None and self.eval_strategy == "no":
            raise ValueError("early_stopping_patience needs evaluations: set eval_strategy to epoch or steps")
        if self.early_stopping_patience is not None and self.early_stopping_patience < 1:
            raise ValueError(f"early_stopping_patience must be at least 1, not {self.early_stopping_patience}")
        if self.backbone_learning_rate is not None and self.backbone_learning_rate < 0:
            raise ValueError(f"backbone_learning_rate must not be negative, as is {self.backbone_learning_rate}")
        for name in ("ema_decay", "scheduled_sampling"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must lie between 0 and 1, not {getattr(self, name)}")

    def check_paths(self) -> None:
        """Find out before the work, and not after it, whether `output_dir` can be written.

        Raises:
            OSError: naming it, where it cannot, or `resume_from_checkpoint`, where there is no such checkpoint.
        """
        resumed = self.resume_from_checkpoint
        if resumed and resumed != "last" and not Path(resumed).is_dir():
            raise FileNotFoundError(f"{self.resume_from_checkpoint}: no such checkpoint to resume from")
        folder = Path(self.output_dir)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder) as file:
                file.write(bytes(4096))
        except OSError as error:
            raise OSError(f"cannot write to the output directory {folder}: {error}") from error
