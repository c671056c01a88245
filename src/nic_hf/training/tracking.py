"""Pictures for the trackers of `report_to`, whose callbacks in Transformers take numbers and text only."""

from collections.abc import Iterable

import numpy as np
from PIL import Image
from transformers import TrainerCallback
from transformers.integrations import TensorBoardCallback, TrackioCallback


def log_picture(trackers: Iterable[TrainerCallback], name: str, picture: Image.Image, step: int) -> None:
    """Show a picture in TensorBoard and in trackio, where the run is tracked there.

    Args:
        trackers: the callbacks of the Trainer.
        name: of the picture, the same at each step.
        picture: the picture.
        step: of the training.
    """
    for tracker in trackers:
        if isinstance(tracker, TensorBoardCallback) and tracker.tb_writer is not None:
            tracker.tb_writer.add_image(name, np.asarray(picture.convert("RGB")), step, dataformats="HWC")
        if isinstance(tracker, TrackioCallback) and tracker._initialized:
            trackio = tracker._trackio
            trackio.log({name: trackio.Image(picture.convert("RGB"))}, step=step)
