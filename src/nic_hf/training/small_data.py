"""Adapt a stage of a recipe to few photos: recipes are written for thousands, and count epochs."""

import logging
import math
from dataclasses import replace

from transformers import IntervalStrategy

from .arguments import CaptioningTrainingArguments
from .recipe_settings import ModelSettings

logger = logging.getLogger(__name__)

SMALLEST_BATCH = 8
EVALUATIONS = 10
FEW_PHOTOS, SMALL_LSTM = 1000, 512


def fitting_model(settings: ModelSettings, num_photos: int, fixed: frozenset[str] = frozenset()) -> ModelSettings:
    """Return settings of a new captioner for this number of photos: with few, a larger LSTM only takes more time."""
    if num_photos >= FEW_PHOTOS or settings.hidden_size <= SMALL_LSTM or "hidden_size" in fixed:
        return settings
    logger.warning(f"{num_photos:,} photos: hidden_size {SMALL_LSTM} in place of {settings.hidden_size:,}")
    return replace(settings, hidden_size=SMALL_LSTM)


def scale_to_data(args: CaptioningTrainingArguments, num_samples: int, fixed: frozenset[str] = frozenset()) -> str:
    """Train for at least `min_steps` steps: in smaller batches first, then in more epochs.

    The moving average of the weights then covers the last fifth of the steps, and there are ten evaluations.

    Args:
        args: the arguments of the stage, which are changed.
        num_samples: number of training samples, photos or captions.
        fixed: names of arguments that the user has set, which are kept.

    Returns:
        What was changed, or is too little, in words; empty if the recipe fits.
    """
    if args.max_steps > 0 or not args.min_steps or num_samples < 1:
        return ""
    least, args.min_steps = args.min_steps, 0  # so that the recipe of this run repeats it
    before = args.num_train_epochs, args.per_device_train_batch_size, _steps(args, num_samples)
    if before[-1] >= least:
        return ""
    if "num_train_epochs" in fixed:
        return (
            f"{num_samples:,} samples: {before[-1]:,} steps teach little; without num_train_epochs there would be more"
        )
    if "per_device_train_batch_size" not in fixed:
        per_step = args.world_size * args.gradient_accumulation_steps
        wanted = math.ceil(num_samples * args.num_train_epochs / (least * per_step))
        args.per_device_train_batch_size = min(args.per_device_train_batch_size, max(SMALLEST_BATCH, wanted))
    in_an_epoch = _steps(args, num_samples) / args.num_train_epochs
    args.num_train_epochs = max(args.num_train_epochs, math.ceil(least / in_an_epoch))
    steps = _steps(args, num_samples)
    if args.ema_decay and "ema_decay" not in fixed:
        args.ema_decay = round(min(args.ema_decay, 1 - 5 / max(steps, 10)), 4)
    when = {"eval_strategy", "save_strategy", "eval_steps", "save_steps"}
    is_each_epoch = args.eval_strategy == args.save_strategy == IntervalStrategy.EPOCH
    if args.num_train_epochs > EVALUATIONS and is_each_epoch and not fixed & when:
        args.eval_strategy = args.save_strategy = IntervalStrategy.STEPS
        args.eval_steps = args.save_steps = math.ceil(steps / EVALUATIONS)
    return (
        f"{num_samples:,} samples: {args.num_train_epochs:g} epochs in batches of {args.per_device_train_batch_size},"
        f" {steps:,} steps ({before[0]:g} epochs in batches of {before[1]} would be {before[2]:,})"
    )


def _steps(args: CaptioningTrainingArguments, num_samples: int) -> int:
    in_a_step = args.per_device_train_batch_size * args.world_size * args.gradient_accumulation_steps
    return math.ceil(math.ceil(num_samples / in_a_step) * args.num_train_epochs)
