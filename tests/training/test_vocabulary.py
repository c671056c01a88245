"""A captioner trained further on other captions: refused where it knows none of their words, or taught them."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny import save_tiny_checkpoint, save_tiny_photos, tiny_features, tiny_labels, tiny_model, tiny_tokenizer
from typer.testing import CliRunner

from nic_hf import NICForConditionalGeneration, NICProcessor
from nic_hf.cli import app
from nic_hf.training.vocabulary import check_coverage, extend_vocabulary

GERMAN = ["Ein brauner Hund springt über einen Ast", "Zwei Kinder spielen im Sand", "Ein Mann wartet in Berlin"]
ENGLISH = ["a black dog runs through the snow", "two children play on a beach", "a man rides his red bicycle"]
EXAMPLE = Path(__file__).parents[2] / "examples" / "train_captioner.py"
OPTIONS = {
    "min_frequency": 1,
    "num_train_epochs": 2,
    "per_device_train_batch_size": 4,
    "num_sample_photos": 2,
    "learning_rate": 1e-2,
    "bag_of_words_loss": 1.0,
    "use_cpu": "true",
    "report_to": "none",
}


def captioned(folder: Path, captions: list[str], number: int = 6) -> Path:
    """Photos with these captions, two of them for evaluation."""
    for split, photos in (("train", number - 2), ("validation", 2)):
        (folder / split).mkdir(parents=True)
        paths = save_tiny_photos(folder / split, photos)
        lines = [json.dumps({"file_name": path.name, "captions": captions}) for path in paths]
        (folder / split / "metadata.jsonl").write_text("\n".join(lines), "utf-8")
    return folder


@pytest.fixture(scope="module")
def english(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A captioner that knows English."""
    folder = tmp_path_factory.mktemp("english") / "captioner"
    save_tiny_checkpoint(folder, bag_of_words_loss=1.0)
    return folder


@pytest.fixture(scope="module")
def german(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return captioned(tmp_path_factory.mktemp("german") / "data", GERMAN)


def train(output: Path, data: Path, english: Path, *more: str) -> object:
    flags = [text for name, value in OPTIONS.items() for text in (f"--{name}", str(value))]
    start = ["train", "--recipe", "paper", "--from_checkpoint", str(english), "--data", str(data)]
    return CliRunner().invoke(app, [*start, "--output_dir", str(output), *flags, *more])


def test_captions_in_another_language_are_refused_in_a_line(english: Path, german: Path, tmp_path: Path) -> None:
    done = train(tmp_path / "run", german, english)
    assert done.exit_code == 2 and done.stderr.count("nic train: ") == 1
    message = done.stderr.splitlines()[-1]
    assert f"{english} knows 6% of the words of the training captions; unknown are ein, " in message
    assert "min_vocabulary_coverage requires 50%" in message and "--extend_vocabulary true" in message
    assert not list(tmp_path.glob("run/1-frozen/checkpoint-*"))


def test_the_share_needed_is_a_setting(english: Path, german: Path, tmp_path: Path) -> None:
    done = train(tmp_path / "run", german, english, "--min_vocabulary_coverage", "0", "--max_steps", "1")
    assert done.exit_code == 0, done.stderr


def test_the_vocabulary_grows_where_asked_for(english: Path, german: Path, tmp_path: Path) -> None:
    done = train(tmp_path / "run", german, english, "--extend_vocabulary", "true")
    assert done.exit_code == 0, done.stderr
    old = NICProcessor.from_pretrained(english).tokenizer
    processor = NICProcessor.from_pretrained(tmp_path / "run")
    model = NICForConditionalGeneration.from_pretrained(tmp_path / "run")
    words = processor.tokenizer.get_vocab()
    assert old.get_vocab().items() <= words.items() and {"hund", "spielen", "berlin"} <= words.keys()
    assert model.config.vocab_size == len(words) == len(model.lm_head.weight) == len(model.bag_of_words.weight)
    assert 3 not in processor.tokenizer(GERMAN).input_ids[0]
    recipe = (tmp_path / "run" / "recipe.yaml").read_text("utf-8")
    assert "extend_vocabulary: true" in recipe


def test_the_example_trains_further_too(english: Path, german: Path, tmp_path: Path) -> None:
    options = {
        **OPTIONS,
        "data": german,
        "backbone": english,
        "from_checkpoint": english,
        "output_dir": tmp_path / "x",
    }
    flags = [text for name, value in options.items() for text in (f"--{name}", str(value))]
    done = subprocess.run([sys.executable, str(EXAMPLE), *flags], capture_output=True, text=True, timeout=500)
    assert done.returncode == 2 and "knows 6%" in done.stderr.splitlines()[-1]
    command = [sys.executable, str(EXAMPLE), *flags, "--extend_vocabulary", "true"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "hund" in NICProcessor.from_pretrained(tmp_path / "x").tokenizer.get_vocab()


def test_captions_that_are_partly_known_are_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    tokenizer = tiny_tokenizer()
    assert check_coverage(tokenizer, ENGLISH, 0.5, "it", "do this") > 0.9
    assert not caplog.messages
    coverage = check_coverage(tokenizer, [*ENGLISH, "a purple dog"], 0.5, "it", "do this")
    assert coverage > 0.9 and not caplog.messages
    check_coverage(tokenizer, ["a purple dog runs"], 0.5, "it", "do this")
    assert "it knows 75% of the words of the training captions; unknown are purple." in caplog.text
    assert "become <unk>: do this" in caplog.text
    with pytest.raises(ValueError, match=r"knows 75%.* requires 80%: do this"):
        check_coverage(tokenizer, ["a purple dog runs"], 0.8, "it", "do this")


@pytest.mark.parametrize("config", [{}, {"bag_of_words_loss": 1.0}, {"attention": "soft"}])
def test_a_captioner_with_new_words_says_what_it_said_before(config: dict) -> None:
    model, tokenizer = tiny_model(**config), tiny_tokenizer()
    features = tiny_features(8) if not config.get("attention") else torch.randn(8, 4, 10)
    labels = tiny_labels([5, 7, 4, 6, 5, 7, 4, 6])
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with torch.no_grad():
        logits = model(encoder_outputs=features, labels=labels).logits
        said = model.generate(encoder_outputs=features, num_beams=1)
    extended = extend_vocabulary(model, tokenizer, GERMAN, min_frequency=1)
    old = len(tokenizer)
    assert len(extended) > old
    with torch.no_grad():
        after = model(encoder_outputs=features, labels=labels).logits
        assert torch.equal(after[..., :old], logits)
        assert after.softmax(dim=-1)[..., old:].sum(dim=-1).max() <= 0.01
        assert torch.equal(model.generate(encoder_outputs=features, num_beams=1), said)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor[: len(before[name])] if tensor.ndim else tensor, before[name]), name
    new = model.decoder.embed_tokens.weight[old:]
    assert 0.5 < float((new.std() / model.decoder.embed_tokens.weight[:old].std()).detach()) < 2


@pytest.mark.parametrize("config", [{}, {"bag_of_words_loss": 1.0}])
def test_new_words_are_saved_and_learned(config: dict, tmp_path: Path) -> None:
    model = tiny_model(**config)
    tokenizer = extend_vocabulary(model, tiny_tokenizer(), GERMAN, min_frequency=1)
    model.save_pretrained(tmp_path)
    loaded = NICForConditionalGeneration.from_pretrained(tmp_path)
    assert loaded.config.vocab_size == len(tokenizer)
    features, labels = tiny_features(3), tokenizer(GERMAN, padding=True, return_tensors="pt").input_ids
    labels = labels.masked_fill(labels == tokenizer.pad_token_id, -100)
    assert torch.equal(
        loaded(encoder_outputs=features, labels=labels).logits, model(encoder_outputs=features, labels=labels).logits
    )
    optimizer = torch.optim.AdamW([p for p in loaded.parameters() if p.requires_grad], lr=0.05)
    loaded.train()
    for _ in range(60):
        loaded(encoder_outputs=features, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    ids = loaded.eval().generate(encoder_outputs=features)
    assert tokenizer.batch_decode(ids, skip_special_tokens=True) == [caption.lower() for caption in GERMAN]


def test_nothing_new_changes_nothing() -> None:
    model = tiny_model()
    assert len(extend_vocabulary(model, tiny_tokenizer(), ENGLISH, min_frequency=1)) == model.config.vocab_size == 27


def test_new_words_of_frozen_word_vectors_need_a_source(tmp_path: Path) -> None:
    model = tiny_model(freeze_word_embeddings=True)
    with pytest.raises(ValueError, match="word vectors of the captioner are frozen"):
        extend_vocabulary(model, tiny_tokenizer(), GERMAN, min_frequency=1)
    assert model.config.vocab_size == len(model.lm_head.weight) == 27
    vectors = tmp_path / "vectors.txt"
    vectors.write_text("hund 1 2 3 4 5 6 7\nkinder 7 6 5 4 3 2 1\n", "utf-8")
    tokenizer = extend_vocabulary(model, tiny_tokenizer(), GERMAN, min_frequency=1, word_vectors=str(vectors))
    embedding = model.get_input_embeddings().weight
    assert embedding[tokenizer.get_vocab()["hund"]].tolist() == [1, 2, 3, 4, 5, 6, 7]
    assert not embedding.requires_grad
    vectors.write_text("hund 1 2 3\n", "utf-8")
    with pytest.raises(ValueError, match="of size 3, but the captioner needs 7"):
        extend_vocabulary(tiny_model(), tiny_tokenizer(), GERMAN, min_frequency=1, word_vectors=str(vectors))
