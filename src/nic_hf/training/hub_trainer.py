"""A Trainer that writes model cards and pushes captioners to the Hub."""

import dataclasses
import logging
import os
import shutil
import tempfile
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, HubStrategy, TrainOutput

from .checkpoint_integrity import read_json
from .hub_upload import hub_api, hub_errors, published_files, push_captioner
from .model_cards import SHOWN, CardFacts, write_model_card

logger = logging.getLogger(__name__)

_LINKS = ".pushing-"


class PublishingTrainer(Trainer):
    """A Trainer that writes model cards and pushes captioners to the Hub.

    `create_model_card()` and `push_to_hub()` write `README.md` to the output directory. Trainer itself would push
    everything in that directory, including sample captions with the photos above them.

    Attributes:
        card_facts (`CardFacts`): what no file of the run tells.
        recipe (`dict`): as in `recipe.yaml`; by default made of the training arguments.
        strategy: which checkpoints are pushed during training, from `hub_strategy`.
        pushes: the latest pushes of checkpoints.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.card_facts = CardFacts()
        self.recipe: dict[str, Any] | None = None
        self.strategy = HubStrategy.END
        self.pushes: list[Future] = []
        super().__init__(*args, **kwargs)

    def train(self, *args: Any, **kwargs: Any) -> TrainOutput:
        """Train, with checkpoints pushed by [`PushCheckpointsCallback`]."""
        self.strategy = HubStrategy(self.args.hub_strategy)
        # With any other value Trainer would push by itself: everything in the output directory.
        self.args.hub_strategy = HubStrategy.END
        try:
            return super().train(*args, **kwargs)
        finally:
            self.args.hub_strategy = self.strategy

    def init_hf_repo(self, *args: Any, **kwargs: Any) -> None:
        """Create the repository, with errors of one line."""
        with hub_errors(f"cannot push {self.args.output_dir}"):
            super().init_hf_repo(*args, **kwargs)

    def create_model_card(
        self,
        language: str | None = None,
        license: str | None = None,
        tags: str | list[str] | None = None,
        model_name: str | None = None,
        finetuned_from: str | None = None,
        tasks: str | list[str] | None = None,
        dataset_tags: str | list[str] | None = None,
        dataset: str | list[str] | None = None,
        dataset_args: str | list[str] | None = None,
    ) -> None:
        """Write `README.md` to the output directory (see [`model_card`]); arguments override `card_facts`.

        `tasks`, `dataset_tags` and `dataset_args` are ignored: they are the same for every captioner.
        """
        if not self.is_world_process_zero():
            return
        data = [dataset] if isinstance(dataset, str) else list(dataset or [])
        given: dict[str, Any] = {
            "language": language,
            "license": license,
            "tags": [tags] if isinstance(tags, str) else tags,
            "name": model_name,
            "backbone": finetuned_from,
            "data": data[0] if data else None,
        }
        facts = dataclasses.replace(self.card_facts, **{name: value for name, value in given.items() if value})
        self.write_card(Path(self.args.output_dir or "."), facts)

    def write_card(self, folder: Path, facts: CardFacts | None = None) -> None:
        """Write the card of a checkpoint of this run, unless it is only an adapter, as with PEFT."""
        if (read_json(folder / "config.json") or {}).get("model_type") != "nic":
            return
        write_model_card(
            folder,
            facts or self.card_facts,
            recipe=self.recipe or {"stages": {"training": _settings(self.args)}},
            samples=Path(self.args.output_dir or ".") / "samples",
            state=dataclasses.asdict(self.state),
        )

    def push_to_hub(  # type: ignore[override]
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **kwargs: Any,
    ) -> CommitInfo | Future | None:
        """Save the captioner and push it with its card (see [`push_captioner`]).

        Args:
            commit_message, token, revision, private: settings of the commit and the repository; by default from the
                training arguments.
            blocking: wait until the push has finished.
            **kwargs: passed to `create_model_card`.

        Raises:
            OSError: if the Hub refuses or the connection is lost.
        """
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        token = self.args.hub_token if token is None else token
        if self.hub_model_id is None:
            self.init_hf_repo(token=token, private=private)
        self.save_model(_internal_call=True)
        if not self.is_world_process_zero():
            return None
        self.create_model_card(**kwargs)
        self.wait_for_pushes()
        options: dict[str, Any] = {
            "message": commit_message or "End of training",
            "token": token,
            "revision": revision or self.args.hub_revision,
        }
        if blocking:
            return push_captioner(self.args.output_dir or ".", str(self.hub_model_id), **options)
        return hub_api().run_as_future(
            push_captioner,
            self.args.output_dir or ".",
            str(self.hub_model_id),
            **options,
        )

    def wait_for_pushes(self) -> None:
        """Wait until the checkpoints have been pushed; failures were logged."""
        for push in self.pushes:
            push.result()


class ModelCardCallback(TrainerCallback):
    """Write a model card to each checkpoint."""

    def __init__(self, trainer: PublishingTrainer) -> None:
        self.trainer = trainer

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Write the card; a failure is logged and does not end training."""
        if not state.is_world_process_zero:
            return
        folder = _checkpoint(args, state)
        try:
            self.trainer.write_card(folder)
        except (OSError, ValueError) as error:
            logger.warning("%s: no model card: %s", folder, error)


class PushCheckpointsCallback(TrainerCallback):
    """Push each checkpoint in the background, as `hub_strategy` and `hub_always_push` say.

    It pushes hard links to the files, since Trainer may delete the checkpoint meanwhile.
    """

    def __init__(self, trainer: PublishingTrainer) -> None:
        self.trainer = trainer

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Start the push of a checkpoint."""
        pushes = self.trainer.pushes
        busy = any(not push.done() for push in pushes)
        wanted = args.push_to_hub and self.trainer.strategy != HubStrategy.END
        if not wanted or not state.is_world_process_zero or (busy and not args.hub_always_push):
            return
        self.trainer.callback_handler.on_push_begin(args, state, control)
        folder = _checkpoint(args, state)
        places: dict[Any, str] = {HubStrategy.CHECKPOINT: "last-checkpoint", HubStrategy.ALL_CHECKPOINTS: folder.name}
        place = places.get(self.trainer.strategy)
        if not busy:
            pushes.clear()
            for left in folder.parent.glob(f"{_LINKS}*"):  # by a run that was killed
                shutil.rmtree(left, ignore_errors=True)
        job = hub_api().run_as_future(
            _push_links,
            _linked(folder, published_files(folder) if place is None else None),
            str(self.trainer.hub_model_id),
            place,
            message=f"Training in progress, step {state.global_step}",
            token=args.hub_token,
            revision=args.hub_revision,
        )
        pushes.append(job)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Wait for the pushes in progress."""
        self.trainer.wait_for_pushes()


def _checkpoint(args: TrainingArguments, state: TrainerState) -> Path:
    return Path(args.output_dir or ".") / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"


def _linked(folder: Path, names: list[str] | None) -> Path:
    """Create a folder with hard links to files of a checkpoint: to `names`, or to everything that resuming needs."""
    links = Path(tempfile.mkdtemp(prefix=_LINKS, dir=folder.parent))
    if names is None:
        names = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    for name in names:
        if name == "training_args.bin":  # it contains the token
            continue
        (links / name).parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(folder / name, links / name)
        except OSError:  # a file system without hard links
            shutil.copyfile(folder / name, links / name)
    return links


def _push_links(
    links: Path, repo_id: str, place: str | None, *, message: str, token: str | None, revision: str | None
) -> None:
    """Push the captioner in a checkpoint, and to `place` everything that resuming needs; log a failure."""
    try:
        push_captioner(links, repo_id, message=message, token=token, revision=revision)
        if place is not None:
            with hub_errors(f"cannot push a checkpoint to {repo_id}"):
                hub_api().upload_folder(
                    repo_id=repo_id,
                    folder_path=links,
                    path_in_repo=place,
                    commit_message=f"{message}, checkpoint",
                    token=token,
                    revision=revision,
                )
    except (OSError, ValueError) as error:
        logger.warning("%s: %s; training continues", message, error)
    finally:
        shutil.rmtree(links, ignore_errors=True)


def _settings(args: TrainingArguments) -> dict[str, Any]:
    """Select the training arguments that a card shows if there is no recipe."""
    names = (*SHOWN, "load_best_model_at_end")
    return {name: getattr(value, "value", value) for name in names if (value := getattr(args, name, None)) is not None}
