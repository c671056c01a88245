"""Checkpoints that were damaged or made up: they load as what they are, or are refused with the reason."""

import ast
import hashlib
import json
import pickle
import random
import shutil
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import save_tiny_checkpoint, tiny_model, tiny_pixels

import nic_hf
from nic_hf import NICForConditionalGeneration, NICProcessor
from nic_hf.doctor.checkpoint import check_digests, load_checkpoint
from nic_hf.doctor.findings import Status

PACKAGE = Path(nic_hf.__file__).parent
REFUSALS = (OSError, ValueError)


@torch.no_grad()
def logits(model: NICForConditionalGeneration) -> torch.Tensor:
    return model(pixel_values=tiny_pixels(), decoder_input_ids=torch.tensor([[1, 5, 6]] * 4)).logits


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, torch.Tensor]:
    folder = tmp_path_factory.mktemp("sound")
    return folder, logits(save_tiny_checkpoint(folder))


@pytest.fixture
def checkpoint(sound: tuple[Path, torch.Tensor], tmp_path: Path) -> Path:
    return Path(shutil.copytree(sound[0], tmp_path / "checkpoint"))


def edit_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> dict[str, torch.Tensor]:
    """Weights that are changed on purpose, as the digest beside them is taken away."""
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "weights.sha256").unlink()
    return weights


def edit_config(folder: Path, change: Callable[[dict], None]) -> None:
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize("digest", [True, False], ids=["with its digest", "alone"])
def test_bits_flipped_in_the_header_are_refused_or_do_nothing(
    digest: bool, sound: tuple[Path, torch.Tensor], checkpoint: Path
) -> None:
    """What the header says of the tensors; the length before it too."""
    file = checkpoint / "model.safetensors"
    if not digest:
        (checkpoint / "weights.sha256").unlink()
    content = file.read_bytes()
    end = 8 + struct.unpack("<Q", content[:8])[0]
    generator = random.Random(7)
    places = [*range(8), *(generator.randrange(8, end) for _ in range(32))]
    outcomes = {"refused": 0, "same": 0}
    for place in places:
        damaged = bytearray(content)
        damaged[place] ^= 1 << generator.randrange(8)
        file.write_bytes(damaged)
        try:
            model = NICForConditionalGeneration.from_pretrained(checkpoint)
        except REFUSALS as error:
            assert str(checkpoint) in str(error) or "NICConfig" in str(error), error
            outcomes["refused"] += 1
        else:
            outcomes["same"] += torch.equal(logits(model), sound[1])
    assert outcomes["refused"] == len(places) if digest else outcomes["refused"] > 30, outcomes


def test_no_bit_flipped_in_the_weights_is_loaded(checkpoint: Path) -> None:
    """safetensors itself sees none of them."""
    file = checkpoint / "model.safetensors"
    content = file.read_bytes()
    generator = random.Random(8)
    assert check_digests(checkpoint).status == Status.OK
    for _ in range(20):
        damaged = bytearray(content)
        damaged[generator.randrange(8 + struct.unpack("<Q", content[:8])[0], len(content))] ^= (
            1 << generator.randrange(8)
        )
        file.write_bytes(damaged)
        with pytest.raises(OSError, match=f"{checkpoint}: model.safetensors: changed .* in weights.sha256"):
            NICForConditionalGeneration.from_pretrained(checkpoint)
    finding = check_digests(checkpoint)
    assert finding.status == Status.PROBLEM and "model.safetensors: changed since it was saved" in finding.message
    findings = load_checkpoint(str(checkpoint))[2]
    assert [each for each in findings if each.status == Status.PROBLEM] == [finding], "said once"


def test_a_flipped_bit_of_a_shard_or_a_variant_is_found_where_it_is_loaded(tmp_path: Path) -> None:
    tiny_model(seed=1).save_pretrained(tmp_path, max_shard_size="4KB")
    tiny_model(seed=3).save_pretrained(tmp_path, variant="ema")
    shard = sorted(tmp_path.glob("model-*-of-*.safetensors"))[1]
    for file, options in ((shard, {}), (tmp_path / "model.ema.safetensors", {"variant": "ema"})):
        content = bytearray(file.read_bytes())
        content[-1] ^= 1
        file.write_bytes(content)
        with pytest.raises(OSError, match=f"{file.name}: changed since it was saved"):
            NICForConditionalGeneration.from_pretrained(tmp_path, **options)
        content[-1] ^= 1
        file.write_bytes(content)
        NICForConditionalGeneration.from_pretrained(tmp_path, **options)


def test_digests_are_those_of_any_other_program_and_follow_each_save(tmp_path: Path) -> None:
    tiny_model(seed=1).save_pretrained(tmp_path, max_shard_size="4KB")
    tiny_model(seed=2).save_pretrained(tmp_path)
    tiny_model(seed=3).save_pretrained(tmp_path, variant="ema")
    lines = dict(reversed(line.split("  ")) for line in (tmp_path / "weights.sha256").read_text().splitlines())
    assert lines.keys() == {"model.safetensors", "model.ema.safetensors"}
    for name, digest in lines.items():
        assert hashlib.sha256((tmp_path / name).read_bytes()).hexdigest() == digest
    (tmp_path / "weights.sha256").unlink()
    assert check_digests(tmp_path).status == Status.SKIPPED


@pytest.mark.parametrize("percent", range(0, 100, 5))
def test_weights_cut_short_are_refused(percent: int, checkpoint: Path) -> None:
    file = checkpoint / "model.safetensors"
    file.write_bytes(file.read_bytes()[: file.stat().st_size * percent // 100])
    with pytest.raises(OSError, match=f"{checkpoint}: the weights cannot be read"):
        NICForConditionalGeneration.from_pretrained(checkpoint)


@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int8, torch.bool, torch.complex64]
)
def test_weights_of_another_type(dtype: torch.dtype, checkpoint: Path) -> None:
    weights = edit_weights(
        checkpoint, lambda weights: weights.update({"lm_head.weight": weights["lm_head.weight"].to(dtype)})
    )
    try:
        model = NICForConditionalGeneration.from_pretrained(checkpoint)
    except REFUSALS as error:
        assert str(checkpoint) in str(error) and "lm_head.weight" in str(error)
        assert not dtype.is_floating_point
    else:
        assert dtype.is_floating_point, "numbers that are no weights were taken for some"
        assert torch.equal(model.lm_head.weight, weights["lm_head.weight"].to(model.dtype))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_found_by_the_doctor(value: float, checkpoint: Path) -> None:
    edit_weights(checkpoint, lambda weights: weights["decoder.lstm.weight_hh_l0"][0, 0].fill_(value))
    problems = [finding.message for finding in load_checkpoint(str(checkpoint))[2] if finding.status == Status.PROBLEM]
    assert any("decoder.lstm.weight_hh_l0" in message for message in problems), problems


ABSURD: list[tuple[str, Any]] = [
    ("vocab_size", 10**12),
    ("vocab_size", -1),
    ("vocab_size", "27"),
    ("vocab_size", 27.0),
    ("vocab_size", True),
    ("vocab_size", [27]),
    ("hidden_size", 10**9),
    ("hidden_size", 0),
    ("embedding_size", 10**9),
    ("embedding_size", {"a": 1}),
    ("num_hidden_layers", 10**6),
    ("num_hidden_layers", 2),
    ("dropout", "much"),
    ("dropout", 7),
    ("dropout", float("nan")),
    ("attention", "hard"),
    ("attention", 7),
    ("feature_layers", "some"),
    ("pad_token_id", 10**9),
    ("eos_token_id", "x"),
    ("eos_token_id", 1),
    ("initializer_range", "wide"),
    ("backbone_config", 7),
    ("backbone_config", "resnet"),
    ("backbone_config", []),
    ("backbone_config", {}),
    ("backbone_config", {"model_type": "no-such-model"}),
    ("backbone_config", {"model_type": "bert"}),
    ("backbone_config", {"model_type": "resnet", "hidden_sizes": "many", "depths": [1, 1]}),
    ("backbone_config", {"model_type": "resnet", "embedding_size": 6, "hidden_sizes": [6, 10**7], "depths": [1, 1]}),
]


@pytest.mark.parametrize(("name", "value"), ABSURD, ids=lambda value: str(value)[:40])
def test_absurd_values_of_the_configuration_are_refused_by_name(name: str, value: Any, checkpoint: Path) -> None:
    edit_config(checkpoint, lambda config: config.update({name: value}))
    with pytest.raises(REFUSALS) as raised:
        NICForConditionalGeneration.from_pretrained(checkpoint)
    message = str(raised.value)
    assert name in message or str(checkpoint) in message, message


def test_layers_that_the_backbone_lacks_are_refused_when_they_are_needed(checkpoint: Path) -> None:
    edit_config(checkpoint, lambda config: config.update(feature_layers=[99]))
    with pytest.raises(ValueError, match="`feature_layers` has 99, but the backbone has"):
        logits(NICForConditionalGeneration.from_pretrained(checkpoint))


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "7", '"x"', "\0" * 99, "[" * 20000])
def test_a_configuration_that_is_none_is_refused(text: str, checkpoint: Path) -> None:
    (checkpoint / "config.json").write_text(text)
    with pytest.raises(REFUSALS):
        NICForConditionalGeneration.from_pretrained(checkpoint)


def test_fields_of_a_later_version_change_nothing(sound: tuple[Path, torch.Tensor], checkpoint: Path) -> None:
    edit_config(checkpoint, lambda config: config.update(from_the_future={"a": [1]}, attention_heads=8))
    assert torch.equal(logits(NICForConditionalGeneration.from_pretrained(checkpoint)), sound[1])


def test_a_tokenizer_whose_special_tokens_are_swapped_is_refused(checkpoint: Path) -> None:
    tokenizer = json.loads((checkpoint / "tokenizer.json").read_text())
    tokenizer["model"]["vocab"]["<eos>"] = 1
    tokenizer["model"]["vocab"]["<bos>"] = 2
    for token in tokenizer["added_tokens"]:
        token["id"] = {"<bos>": 2, "<eos>": 1}.get(token["content"], token["id"])
    (checkpoint / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(REFUSALS, match="bos_token_id"):
        NICProcessor.from_pretrained(checkpoint)


@pytest.mark.parametrize(
    "kind", ["../outside.safetensors", "absolute", "pickle.bin", "sub/model.safetensors", 7, None]
)
def test_a_list_of_shards_names_files_of_weights_beside_it_only(kind: Any, tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint"
    tiny_model().save_pretrained(folder, max_shard_size="4KB")
    index = folder / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    moved = sorted(set(content["weight_map"].values()))[0]
    name = str(tmp_path / "outside.safetensors") if kind == "absolute" else kind
    content["weight_map"] = {
        weight: name if shard == moved else shard for weight, shard in content["weight_map"].items()
    }
    index.write_text(json.dumps(content))
    if isinstance(name, str):
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.move(folder / moved, folder / name)
    with pytest.raises(OSError, match=f"{index}: .* is no file of weights next to it"):
        NICForConditionalGeneration.from_pretrained(folder)


@pytest.mark.parametrize("text", ["", "[]", '{"weight_map": 7}', "{}"])
def test_a_list_of_shards_that_is_none_is_refused(text: str, tmp_path: Path) -> None:
    tiny_model().save_pretrained(tmp_path, max_shard_size="4KB")
    (tmp_path / "model.safetensors.index.json").write_text(text)
    with pytest.raises(OSError, match=r"model\.safetensors\.index\.json: "):
        NICForConditionalGeneration.from_pretrained(tmp_path)


class Trap:
    def __reduce__(self) -> tuple:
        return exit, ("a pickle was read",)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.safetensors"])
def test_a_pickle_is_not_read(name: str, checkpoint: Path) -> None:
    (checkpoint / "model.safetensors").unlink()
    (checkpoint / name).write_bytes(pickle.dumps(Trap()))
    with pytest.raises(REFUSALS):
        NICForConditionalGeneration.from_pretrained(checkpoint)


def calls(tree: ast.AST) -> Iterator[tuple[str, ast.Call]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


UNSAFE_MODULES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}


def unsafe(source: str) -> list[str]:
    """What a module does that may run code of a file that it reads."""
    tree, found = ast.parse(source), []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names if alias.name.split(".")[0] in UNSAFE_MODULES]
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in UNSAFE_MODULES:
            found.append(f"from {node.module}")
        if isinstance(node, ast.ImportFrom) and node.module == "torch":
            found += [f"from torch import {alias.name}" for alias in node.names if alias.name == "load"]
    for name, call in calls(tree):
        options = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
        if name == "torch.load" and options.get("weights_only") != "True":
            found.append(ast.unparse(call))
        if name in ("eval", "exec", "yaml.load", "yaml.unsafe_load", "os.system"):
            found.append(ast.unparse(call))
        if options.get("allow_pickle") == "True" or options.get("shell") == "True":
            found.append(ast.unparse(call))
    return found


def test_no_module_reads_pickles_or_runs_text() -> None:
    files = sorted(PACKAGE.rglob("*.py"))
    assert len(files) > 80
    found = {str(file.relative_to(PACKAGE)): unsafe(file.read_text("utf-8")) for file in files}
    assert {name: lines for name, lines in found.items() if lines} == {}


@pytest.mark.parametrize(
    "line",
    [
        "import pickle",
        "from pickle import loads",
        "torch.load(file)",
        "torch.load(file, weights_only=False)",
        "np.load(file, allow_pickle=True)",
        "yaml.load(text)",
    ],
)
def test_that_test_can_fail(line: str) -> None:
    assert unsafe(line)


def test_loading_a_captioner_unpickles_nothing(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("a pickle was read")

    monkeypatch.setattr(torch, "load", forbidden)
    for name in ("load", "loads", "Unpickler"):
        monkeypatch.setattr(pickle, name, forbidden)
    model = NICForConditionalGeneration.from_pretrained(checkpoint)
    NICProcessor.from_pretrained(checkpoint)
    model.save_pretrained(checkpoint)
