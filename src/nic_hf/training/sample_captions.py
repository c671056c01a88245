"""Log captions of the same few photos after each evaluation."""

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm.auto import tqdm
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.integrations import TensorBoardCallback, TrackioCallback

from ..contact_sheet import contact_sheet, save_picture
from ..data.feature_cache import load_photo_row
from ..data.torch_datasets import PhotoDataset
from ..dataset_captions import generate_captions


class SampleCaptionsCallback(TrainerCallback):
    """Log captions of the same photos during training, as text and as a picture.

    After each evaluation it writes `samples/step-00000469.png` and a line of `samples/captions.jsonl` to the output
    directory. If the run is tracked by TensorBoard or trackio (`report_to`), [`CaptioningTrainer`] logs the picture
    there as `samples`.

    Args:
        photos: a few photos.
        **generate_kwargs: passed to `generate()`.
    """

    def __init__(self, photos: PhotoDataset, **generate_kwargs: Any) -> None:
        self.photos = photos
        self.generate_kwargs = generate_kwargs
        self.trackers: list[TrainerCallback] = []

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **kwargs: Any
    ) -> None:
        """Caption the photos."""
        captions = generate_captions(model, self.photos, progress=False, **self.generate_kwargs)
        if not state.is_world_process_zero:
            return
        folder = Path(args.output_dir or ".") / "samples"
        images = [load_photo_row(self.photos.photos[row]["image"]) for row in self.photos.rows]
        title = f"step {state.global_step}, epoch {state.epoch or 0:.1f}"
        sheet = contact_sheet(images, list(captions.values()), title=title)
        save_picture(sheet, folder / f"step-{state.global_step:08d}.png")
        log_picture(self.trackers, "samples", sheet, state.global_step)
        with (folder / "captions.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": state.global_step, "captions": captions}, ensure_ascii=False) + "\n")
        for image_id, caption in captions.items():
            tqdm.write(f"  {image_id}: {caption}", file=sys.stderr)  # print() would break the progress bar


def log_picture(trackers: Iterable[TrainerCallback], name: str, picture: Image.Image, step: int) -> None:
    """Log a picture to TensorBoard and trackio if the run is tracked there.

    The callbacks of Transformers log numbers and text only. They have logged the scores of the same evaluation before.
    """
    for tracker in trackers:
        if isinstance(tracker, TensorBoardCallback) and tracker.tb_writer is not None:
            tracker.tb_writer.add_image(name, np.asarray(picture.convert("RGB")), step, dataformats="HWC")
        if isinstance(tracker, TrackioCallback):
            import trackio

            trackio.log({name: trackio.Image(picture.convert("RGB"))}, step=step)
