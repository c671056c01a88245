"""Captioners on the Hub: one commit with what others need, and nothing of what they may not have."""

import contextlib
import dataclasses
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo, HfApi
from huggingface_hub.errors import HfHubHTTPError
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import HubStrategy
from transformers.utils import PushInProgress

from .._version import __version__
from .checkpoints import read_json
from .model_card import CARD_FILE, SHOWN, CardFacts, write_model_card

logger = logging.getLogger(__name__)

# A run's folder also holds sample captions drawn over photos of others, and logs with the same.
PUBLISHED = re.compile(
    r"config\.json|generation_config\.json|\w+_nic\.py|model[\w.-]*\.safetensors(\.index\.json)?"
    r"|processor_config\.json|preprocessor_config\.json|tokenizer\.json|tokenizer_config\.json|special_tokens_map\.json"
    rf"|recipe\.yaml|{re.escape(CARD_FILE)}|adapter_config\.json|adapter_model\.safetensors"
)
NEEDED = ("config.json", "tokenizer.json")
ONNX = re.compile(r"(onnx/)?[\w.-]+(\.onnx|\.onnx[._]data|\.json)")


def published_files(folder: str | os.PathLike, onnx: bool = False) -> list[str]:
    """Files of a captioner's folder that belong on the Hub, as paths with slashes.

    Args:
        folder: where it was saved, such as the folder of a run.
        onnx: also its exported ONNX files, in the folder or in `onnx/` in it.

    Raises:
        ValueError: where there is no captioner.
    """
    root = Path(folder)
    files = [path.relative_to(root).as_posix() for path in sorted(root.glob("*")) if path.is_file()]
    chosen = [name for name in files if PUBLISHED.fullmatch(name)]
    missing = [name for name in NEEDED if name not in chosen]
    if missing or not any(name.endswith(".safetensors") for name in chosen):
        raise ValueError(f"{folder}: no captioner: it holds no {', '.join(missing or ['model.safetensors'])}")
    if onnx:
        exported = [name for name in files if ".onnx" in name]
        exported += [path.relative_to(root).as_posix() for path in sorted(root.glob("onnx/*")) if path.is_file()]
        exported = [name for name in exported if ONNX.fullmatch(name)]
        if not any(name.endswith(".onnx") for name in exported):
            raise ValueError(f"{folder}: no ONNX files; export them first")
        chosen += exported
    return chosen


def push_captioner(
    folder: str | os.PathLike,
    repo_id: str,
    *,
    private: bool | None = None,
    token: str | None = None,
    revision: str | None = None,
    message: str = "Upload captioner",
    onnx: bool = False,
) -> CommitInfo:
    """Push a saved captioner to the Hub: weights, code, tokenizer, processor, generation config and model card.

    All of it is one commit, made when every file has arrived: a push that breaks off leaves the repository as it was.
    A model card is written where the folder has none.

    Args:
        folder: where the captioner was saved.
        repo_id: `"owner/name"`; it is made where it is not there yet.
        private: make it private; by default public.
        token: access token; by default the one that `hf auth login` saved, or `HF_TOKEN`.
        revision: branch to push to, made where it is not there yet; by default `main`.
        message: of the commit.
        onnx: also the exported ONNX files of the folder.

    Raises:
        ValueError: where the folder holds no captioner.
        OSError: where the Hub refuses, or the connection breaks off; the message says what to do.
    """
    files = published_files(folder, onnx)
    if CARD_FILE not in files:
        write_model_card(folder, CardFacts(repo_id=repo_id))
        files.append(CARD_FILE)
    api = _api()
    with hub_errors(f"cannot push {folder} to {repo_id}"):
        repo_id = api.create_repo(repo_id, private=private, token=token, exist_ok=True).repo_id
        if revision is not None:
            api.create_branch(repo_id, branch=revision, token=token, exist_ok=True)
        return api.upload_folder(
            repo_id=repo_id,
            folder_path=folder,
            allow_patterns=[_literal(name) for name in files],
            commit_message=message,
            token=token,
            revision=revision,
        )


@contextlib.contextmanager
def hub_errors(what: str) -> Iterator[None]:
    """Turn what huggingface_hub and its HTTP library raise into an `OSError` of one line.

    Raises:
        OSError: "`what`: ..."
    """
    try:
        yield
    except HfHubHTTPError as error:
        status = error.response.status_code
        if status in (401, 403):
            advice = "the token is missing, wrong or may not write there; `hf auth login`, or set HF_TOKEN"
            raise PermissionError(f"{what}: {advice} (HTTP {status})") from error
        raise OSError(f"{what}: {_one_line(error)}") from error
    except Exception as error:
        # The library under huggingface_hub differs between its versions (httpx, httpx2), and so do their exceptions.
        cause = _cause(error)
        if isinstance(error, ValueError | TypeError) or not (_is_of_http(cause) or isinstance(cause, OSError)):
            raise
        raise ConnectionError(
            f"{what}: the connection broke off ({_one_line(cause)}). The repository is as it was before; push again,"
            " what has arrived is not sent twice"
        ) from error


def _cause(error: BaseException) -> BaseException:
    while error.__cause__ is not None:
        error = error.__cause__
        if _is_of_http(error):
            return error
    return error


def _is_of_http(error: BaseException) -> bool:
    return type(error).__module__.split(".")[0] in ("httpx", "httpx2", "httpcore", "httpcore2")


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _literal(name: str) -> str:
    return re.sub(r"([*?[])", r"[\1]", name)


def _api() -> HfApi:
    return HfApi(library_name="nic_hf", library_version=__version__)


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
        given = {
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
        """Write the card of a checkpoint of this run; where it is no captioner of its own, as with PEFT, do nothing."""
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
        with hub_errors(f"cannot push {self.args.output_dir}"):
            if self.hub_model_id is None:
                self.init_hf_repo(token=token, private=private)
        self.save_model(_internal_call=True)
        if not self.is_world_process_zero():
            return None
        self.create_model_card(**kwargs)
        self._finish_current_push()
        options = {
            "message": commit_message or "End of training",
            "token": token,
            "revision": revision or self.args.hub_revision,
        }
        if blocking:
            return push_captioner(self.args.output_dir or ".", str(self.hub_model_id), **options)
        return _api().run_as_future(
            push_captioner, self.args.output_dir or ".", str(self.hub_model_id), **options  # type: ignore[arg-type]
        )

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Push a checkpoint while training goes on; a copy of it, since Trainer may remove it meanwhile."""
        strategy = self.args.hub_strategy
        if not self.is_world_process_zero() or strategy == HubStrategy.END:
            return
        busy = self.push_in_progress is not None and not self.push_in_progress.is_done()
        if busy and not self.args.hub_always_push:
            return
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        folder = Path(checkpoint_folder)
        self.write_card(folder)
        copy = Path(tempfile.mkdtemp(prefix="nic-push-"))
        shutil.copytree(folder, copy, dirs_exist_ok=True)
        places = {HubStrategy.CHECKPOINT: "last-checkpoint", HubStrategy.ALL_CHECKPOINTS: folder.name}
        job = _api().run_as_future(
            _push_copy,
            copy,
            str(self.hub_model_id),
            places.get(strategy),
            message=f"Training in progress, step {self.state.global_step}",
            token=self.args.hub_token,
            revision=self.args.hub_revision,
        )
        if busy and self.push_in_progress is not None:
            self.push_in_progress.jobs.append(job)
        else:
            self.push_in_progress = PushInProgress([job])


class _CardOfCheckpoint(TrainerCallback):
    """Puts a model card beside the weights of each checkpoint."""

    def __init__(self, trainer: PublishingTrainer) -> None:
        self.trainer = trainer

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            self.trainer.write_card(Path(args.output_dir or ".") / f"checkpoint-{state.global_step}")


def _push_copy(copy: Path, repo_id: str, place: str | None, message: str, token: str | None, revision: str | None) -> None:
    """Push the captioner of a copied checkpoint, and to `place` all that resuming needs; a failure is logged."""
    try:
        push_captioner(copy, repo_id, message=message, token=token, revision=revision)
        if place is not None:
            with hub_errors(f"cannot push a checkpoint to {repo_id}"):
                _api().upload_folder(
                    repo_id=repo_id,
                    folder_path=copy,
                    path_in_repo=place,
                    commit_message=f"{message}, checkpoint",
                    token=token,
                    revision=revision,
                )
    except (OSError, ValueError) as error:
        logger.warning("%s: %s; training goes on", message, error)
    finally:
        shutil.rmtree(copy, ignore_errors=True)


def _settings(args: TrainingArguments) -> dict[str, Any]:
    """What of the arguments a card shows, where there is no recipe."""
    return {name: getattr(value, "value", value) for name in SHOWN if (value := getattr(args, name, None)) is not None}
