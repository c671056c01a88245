"""A Trainer that writes model cards, and pushes what others need and may have."""

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
from transformers.trainer_utils import HubStrategy
from transformers.utils import PushInProgress

from .checkpoint_integrity import read_json
from .hub_upload import hub_api, hub_errors, published_files, push_captioner
from .model_card import SHOWN, CardFacts, write_model_card

logger = logging.getLogger(__name__)

_LINKS = ".pushing-"


class PublishingTrainer(Trainer):
    """A Trainer that writes model cards, and pushes what others need and may have.

    `README.md` is written beside each checkpoint and, by `create_model_card()` and `push_to_hub()`, in the folder of
    the run. Trainer itself would push all that is in that folder: sample captions with the photos above them too.

    Attributes:
        card_facts (`CardFacts`): what no file of the run says.
        recipe (`dict`): as `recipe.yaml` holds it; by default made of the arguments.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.card_facts = CardFacts()
        self.recipe: dict[str, Any] | None = None
        super().__init__(*args, **kwargs)
        self.add_callback(_CardOfCheckpoint(self))

    def init_hf_repo(self, *args: Any, **kwargs: Any) -> None:
        """Trainer's, with errors of one line."""
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
        """Write `README.md` in the folder of the run (see [`model_card`]); arguments go before `card_facts`.

        `tasks`, `dataset_tags` and `dataset_args` are Trainer's and say nothing that is not known of a captioner.
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
        """Write the card of a checkpoint of this run, unless it is no captioner of its own, as with PEFT."""
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
        """Save the captioner and push it (see [`push_captioner`]) with its card.

        Args:
            commit_message, token, revision, private: of the commit and the repository; by default those of the
                arguments of the run.
            blocking: wait for the end of the push.
            **kwargs: for `create_model_card`.

        Raises:
            OSError: where the Hub refuses, or the connection breaks off.
        """
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        token = self.args.hub_token if token is None else token
        if self.hub_model_id is None:
            self.init_hf_repo(token=token, private=private)
        self.save_model(_internal_call=True)
        if not self.is_world_process_zero():
            return None
        self.create_model_card(**kwargs)
        self._finish_current_push()
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

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Push a checkpoint while training goes on; by links to its files, since Trainer may remove it meanwhile."""
        strategy = self.args.hub_strategy
        if not self.is_world_process_zero() or strategy == HubStrategy.END:
            return
        running: Any = self.push_in_progress
        busy = running is not None and not running.is_done()
        if busy and not self.args.hub_always_push:
            return
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        folder = Path(checkpoint_folder)
        self.write_card(folder)
        places: dict[Any, str] = {HubStrategy.CHECKPOINT: "last-checkpoint", HubStrategy.ALL_CHECKPOINTS: folder.name}
        place = places.get(strategy)
        if not busy:
            for left in folder.parent.glob(f"{_LINKS}*"):  # by a run that was killed
                shutil.rmtree(left, ignore_errors=True)
        job = hub_api().run_as_future(
            _push_links,
            _linked(folder, published_files(folder) if place is None else None),
            str(self.hub_model_id),
            place,
            message=f"Training in progress, step {self.state.global_step}",
            token=self.args.hub_token,
            revision=self.args.hub_revision,
        )
        jobs = [*running.jobs, job] if busy else [job]
        self.push_in_progress = PushInProgress(jobs)  # type: ignore[arg-type, assignment]


class _CardOfCheckpoint(TrainerCallback):
    """Puts a model card beside the weights of each checkpoint."""

    def __init__(self, trainer: PublishingTrainer) -> None:
        self.trainer = trainer

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if not state.is_world_process_zero:
            return
        folder = Path(args.output_dir or ".") / f"checkpoint-{state.global_step}"
        try:
            self.trainer.write_card(folder)
        except (OSError, ValueError) as error:  # no reason to end training
            logger.warning("%s: no model card: %s", folder, error)


def _linked(folder: Path, names: list[str] | None) -> Path:
    """A folder beside a checkpoint with links to its files: to those of `names`, or to all that a run resumes from."""
    links = Path(tempfile.mkdtemp(prefix=_LINKS, dir=folder.parent))
    if names is None:
        names = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    for name in names:
        if name == "training_args.bin":  # it holds the token
            continue
        (links / name).parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(folder / name, links / name)
        except OSError:  # a file system without links
            shutil.copyfile(folder / name, links / name)
    return links


def _push_links(
    links: Path, repo_id: str, place: str | None, *, message: str, token: str | None, revision: str | None
) -> None:
    """Push the captioner of a checkpoint, and to `place` all that resuming needs; a failure is logged."""
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
        logger.warning("%s: %s; training goes on", message, error)
    finally:
        shutil.rmtree(links, ignore_errors=True)


def _settings(args: TrainingArguments) -> dict[str, Any]:
    """What of the arguments a card shows, where there is no recipe."""
    names = (*SHOWN, "load_best_model_at_end")
    return {name: getattr(value, "value", value) for name in names if (value := getattr(args, name, None)) is not None}
