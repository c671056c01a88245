"""Pushing while saving, as Transformers and its Trainer do it: what lands on the Hub is whole and loads."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hub_process import run
from hub_server import TOKEN, HubServer

import nic_hf

SOURCE = str(Path(nic_hf.__file__).parents[1])

# Each answer is what the captioner of a seed says, by a copy of the whole repository on disk.
SCRIPT = """
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from tiny import CAPTIONS, tiny_model, tiny_photos, tiny_processor
from transformers import Seq2SeqTrainer, Seq2SeqTrainingArguments, Trainer, TrainingArguments

from nic_hf import ImageToTextPipeline, NICForConditionalGeneration, NICProcessor


def say(model):
    captioner = ImageToTextPipeline(model=model, processor=tiny_processor())
    return [answer[0]["generated_text"] for answer in captioner(tiny_photos(3))]


def digests(folder):
    return sorted(line.split()[1] for line in Path(folder, "weights.sha256").read_text().splitlines())


def downloaded(repo, revision=None, **options):
    folder = snapshot_download(repo, revision=revision)
    model = NICForConditionalGeneration.from_pretrained(folder, **options)  # checks the digests
    answer = {"says": say(model), "digests": digests(folder), "files": sorted(p.name for p in Path(folder).iterdir())}
    try:
        NICProcessor.from_pretrained(folder)  # checks that it is the model's
        return {**answer, "has processor": True}
    except OSError:
        return {**answer, "has processor": False}


answers = {f"seed {seed}": say(tiny_model(seed)) for seed in range(60, 70)}

tiny_model(60).save_pretrained("model", push_to_hub=True, repo_id="someone/model", commit_message="mine")
answers["model"] = downloaded("someone/model")
tiny_model(61).save_pretrained("model", push_to_hub=True, repo_id="someone/model")
answers["model again"] = downloaded("someone/model")
tiny_processor().save_pretrained("model", push_to_hub=True, repo_id="someone/model")
answers["model and processor"] = downloaded("someone/model")
tiny_model(62).save_pretrained("elsewhere", push_to_hub=True, repo_id="someone/model")
answers["model only, over both"] = downloaded("someone/model")

tiny_model(63).save_pretrained("named-by-folder", push_to_hub=True, private=True, token=TOKEN)
answers["named by its folder"] = downloaded("someone/named-by-folder")
tiny_model(64).save_pretrained("branch", push_to_hub=True, repo_id="someone/model", revision="next")
answers["branch"] = downloaded("someone/model", revision="next")
tiny_model(65).save_pretrained("shards", push_to_hub=True, repo_id="someone/shards", max_shard_size="2KB")
answers["shards"] = downloaded("someone/shards")
tiny_model(66).save_pretrained("variants", push_to_hub=True, repo_id="someone/variants")
tiny_model(67).save_pretrained("variants", variant="other")
tiny_model(68).save_pretrained("variants", push_to_hub=True, repo_id="someone/variants", variant="other")
answers["usual"] = downloaded("someone/variants")
answers["variant"] = downloaded("someone/variants", variant="other")
weights = tiny_model(69).state_dict()
tiny_model(60).save_pretrained("given", state_dict=weights, push_to_hub=True, repo_id="someone/given")
answers["given weights"] = downloaded("someone/given")
try:
    tiny_model(60).save_pretrained("wrong", push_to_hub=True, repo_id="someone/wrong", pirvate=True)
except TypeError as error:
    answers["misspelt"] = str(error)
answers["local"] = sorted(path.name for path in Path("model").iterdir())

processor = tiny_processor()
photos = [processor(images=photo, text_target=caption, return_tensors="pt")
          for photo, caption in zip(tiny_photos(4), CAPTIONS)]
rows = [{name: value[0] for name, value in row.items()} for row in photos]


def collate(rows):
    labels = torch.nn.utils.rnn.pad_sequence([row["labels"] for row in rows], True, -100)
    return {"pixel_values": torch.stack([row["pixel_values"] for row in rows]), "labels": labels}


def train(seed, folder, repo, **options):
    settings = dict(output_dir=folder, push_to_hub=True, hub_model_id=repo, hub_strategy="every_save",
                    hub_always_push=True, save_strategy="steps", save_steps=1, max_steps=2, report_to="none",
                    per_device_train_batch_size=2, disable_tqdm=True, learning_rate=0.1, use_cpu=True,
                    remove_unused_columns=False)
    trainer = Trainer(tiny_model(seed), TrainingArguments(**{**settings, **options}), data_collator=collate,
                      train_dataset=rows, processing_class=processor)
    trainer.train()
    trainer._finish_current_push()
    return trainer


trainer = train(60, "run", "someone/run")
answers["while training"] = [say(trainer.model), downloaded("someone/run")]
trainer.push_to_hub()
answers["after training"] = [say(trainer.model), downloaded("someone/run")]
# Over what the first run left in its folder, and in the repository, with a folder of its own.
for folder in ("run", "second-run"):
    trainer = train(61, folder, "someone/run")
    answers[f"trained anew in {folder}"] = [say(trainer.model), downloaded("someone/run")]
"""


@pytest.fixture(scope="module")
def hub() -> Iterator[HubServer]:
    with HubServer() as server:
        yield server


@pytest.fixture(scope="module")
def answers(hub: HubServer, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("author")
    path = os.pathsep.join([SOURCE, str(Path(__file__).parent)])
    return run(SCRIPT, folder, tmp_path_factory.mktemp("home"), hub, HF_TOKEN=TOKEN, PYTHONPATH=path)


PUSHES = {
    "model": 60,
    "model again": 61,
    "model and processor": 61,
    "model only, over both": 62,
    "named by its folder": 63,
    "branch": 64,
    "shards": 65,
    "usual": 66,
    "variant": 68,
    "given weights": 69,
}


@pytest.mark.parametrize("push", PUSHES)
def test_what_was_saved_and_pushed_loads_from_a_copy(answers: dict[str, Any], push: str) -> None:
    assert answers[push]["says"] == answers[f"seed {PUSHES[push]}"]
    weights = [name for name in answers[push]["files"] if name.endswith(".safetensors")]
    # A variant is pushed without its neighbours; what the repository has of those is another save's.
    pushed = ["model.other.safetensors"] if push in ("usual", "variant") else weights
    assert answers[push]["digests"] == pushed


def test_captioners_of_these_seeds_differ(answers: dict[str, Any]) -> None:
    said = [tuple(said) for name, said in answers.items() if name.startswith("seed ")]
    assert len(set(said)) == len(said) == 10


def test_the_parts_work_together_once_both_were_pushed(answers: dict[str, Any]) -> None:
    assert not answers["model again"]["has processor"]
    assert answers["model and processor"]["has processor"]
    assert answers["model only, over both"]["has processor"]


def test_a_push_is_one_commit_of_the_files_that_were_saved(hub: HubServer, answers: dict[str, Any]) -> None:
    commits = hub.repository("someone/model").refs["main"]
    titles = [commit.title for commit in commits]
    assert titles == ["initial commit", "mine", "Upload model", "Upload processor", "Upload model"]
    assert set(answers["local"]) | {"README.md"} == set(commits[3].files) | {".gitattributes"} & set(commits[3].files)
    assert "tokenizer.json" not in commits[1].files and "modeling_nic.py" in commits[1].files
    assert hub.repository("someone/named-by-folder").private
    assert not hub.repository("someone/model").private


def test_a_misspelt_keyword_of_the_push_is_named(answers: dict[str, Any]) -> None:
    assert "pirvate" in answers["misspelt"]


@pytest.mark.parametrize(
    "time", ["while training", "after training", "trained anew in run", "trained anew in second-run"]
)
def test_what_trainer_pushes_loads_from_a_copy(answers: dict[str, Any], time: str) -> None:
    said, copy = answers[time]
    assert copy["says"] == said
    assert copy["has processor"]
    assert copy["digests"] == ["model.safetensors"]
