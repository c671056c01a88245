"""`nic export onnx`, its output folder, and incomplete folders."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from tiny import CAPTIONS, save_tiny_checkpoint, tiny_features, tiny_model, tiny_photos, tiny_processor
from typer.testing import CliRunner

from nic_hf import NICProcessor
from nic_hf.captioning.about import terms_of_weights
from nic_hf.cli import app
from nic_hf.data import load_captions
from nic_hf.export import NICOnnxCaptioner, export_onnx, exporter, quantize_onnx
from nic_hf.export.onnx_folder import FILES, MANIFEST
from nic_hf.tokenization import train_tokenizer


def nic_export(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["export", "onnx", *map(str, arguments)])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Output of `nic export onnx`; tests must not change it."""
    folder = tmp_path_factory.mktemp("files")
    save_tiny_checkpoint(folder / "checkpoint")
    done = nic_export(folder / "checkpoint", folder / "onnx")
    assert done.exit_code == 0, done.output
    assert f"{folder / 'onnx'}: float32, opset 18, 0.2 MB" in done.stdout
    return folder / "onnx"


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    shutil.copytree(folder, tmp_path / "copy")
    return tmp_path / "copy"


def test_the_folder_holds_all_and_nothing_else(folder: Path) -> None:
    assert sorted(file.name for file in folder.iterdir()) == sorted([*FILES, MANIFEST])
    manifest = json.loads((folder / MANIFEST).read_text())
    assert manifest["opset"] == 18
    assert manifest["image_shape"] == [3, 32, 32]
    assert {"torch", "transformers", "onnxruntime", "nic_hf"} == set(manifest["versions"])
    for name in ("encoder", "first_step", "decoder_step"):
        model = onnx.load(folder / f"{name}.onnx")
        onnx.checker.check_model(model, full_check=True)
        assert [entry.version for entry in model.opset_import if not entry.domain] == [18]
        assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch_size"
    text = "".join((folder / name).read_text() for name in FILES if name.endswith(".json"))
    assert "auto_map" not in text and "_nic." not in text, "it names code that is not there"
    assert str(folder.parent) not in text, "it says where the checkpoint lay"


def test_its_processor_loads_with_transformers_too(folder: Path) -> None:
    photos = tiny_photos(2)
    found = NICProcessor.from_pretrained(folder)(images=photos, text=["a dog", "a man"], return_tensors="np")
    expected = tiny_processor()(images=photos, text=["a dog", "a man"], return_tensors="np")
    for name, values in expected.items():
        np.testing.assert_array_equal(found[name], values)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(copy: Path, name: str) -> None:
    (copy / name).unlink()
    with pytest.raises(FileNotFoundError, match=f"missing {name}; copy the whole folder"):
        NICOnnxCaptioner.from_pretrained(copy)


def test_a_file_of_another_checkpoint_is_found(copy: Path) -> None:
    encoder = onnx.load(copy / "encoder.onnx")
    weight = max(encoder.graph.initializer, key=lambda tensor: len(tensor.raw_data))
    other = numpy_helper.from_array(numpy_helper.to_array(weight) * np.float32(1.01), weight.name)
    weight.CopyFrom(other)
    onnx.save(encoder, copy / "encoder.onnx")
    with pytest.raises(ValueError, match=r"encoder\.onnx: not the file that nic_onnx\.json lists"):
        NICOnnxCaptioner.from_pretrained(copy)


@pytest.mark.parametrize("name", ["decoder_step.onnx", "tokenizer.json", "config.json"])
def test_a_file_cut_off_is_found(copy: Path, name: str) -> None:
    content = (copy / name).read_bytes()
    (copy / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=f"{name}: not the file that nic_onnx.json lists"):
        NICOnnxCaptioner.from_pretrained(copy)


def test_generation_settings_may_be_edited(copy: Path) -> None:
    file, features = copy / "generation_config.json", tiny_features(3).numpy()
    before = NICOnnxCaptioner.from_pretrained(copy).generate(encoder_outputs=features, num_beams=5, max_new_tokens=4)
    settings = json.loads(file.read_text())
    file.write_text(json.dumps({**settings, "num_beams": 5, "max_new_tokens": 4}))
    np.testing.assert_array_equal(NICOnnxCaptioner.from_pretrained(copy).generate(encoder_outputs=features), before)
    file.write_text(json.dumps({**settings, "penalty_alpha": 0.5}))
    with pytest.raises(ValueError, match="does not support `penalty_alpha`"):
        NICOnnxCaptioner.from_pretrained(copy)
    file.write_text("{")
    with pytest.raises(ValueError, match=r"generation_config\.json: not a JSON file"):
        NICOnnxCaptioner.from_pretrained(copy)


def test_folders_of_another_kind_are_refused(folder: Path, copy: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="it is a PyTorch checkpoint, which `nic export onnx"):
        NICOnnxCaptioner.from_pretrained(folder.parent / "checkpoint")
    with pytest.raises(FileNotFoundError, match=f"it has no {MANIFEST}"):
        NICOnnxCaptioner.from_pretrained(tmp_path)
    with pytest.raises(FileNotFoundError, match="no such folder"):
        NICOnnxCaptioner.from_pretrained(tmp_path / "nowhere")
    with pytest.raises(NotADirectoryError, match="is a file"):
        NICOnnxCaptioner.from_pretrained(folder / "encoder.onnx")
    manifest = json.loads((copy / MANIFEST).read_text())
    (copy / MANIFEST).write_text(json.dumps({**manifest, "format": 99}))
    with pytest.raises(ValueError, match="reads format 1, not 99"):
        NICOnnxCaptioner.from_pretrained(copy)


def test_providers_that_are_not_there_are_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"has no TpuExecutionProvider; it has .*CPUExecutionProvider"):
        NICOnnxCaptioner.from_pretrained(folder, providers=["TpuExecutionProvider", "CPUExecutionProvider"])
    with pytest.raises(ValueError, match="has no requested provider"):
        NICOnnxCaptioner.from_pretrained(folder, providers=[])
    captioner = NICOnnxCaptioner.from_pretrained(folder, providers=[("CPUExecutionProvider", {})], num_threads=1)
    assert "CPUExecutionProvider" in repr(captioner)


def test_a_copy_captions_as_the_original(folder: Path, tmp_path: Path) -> None:
    captioner = NICOnnxCaptioner.from_pretrained(folder.parent, subfolder="onnx")
    captioner.save_pretrained(tmp_path / "saved")
    photos = tiny_photos(3)
    assert NICOnnxCaptioner.from_pretrained(tmp_path / "saved").caption(photos) == captioner.caption(photos)


def test_a_bar_names_the_step_at_hand(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NIC_HF_PROGRESS_SECONDS", raising=False)  # as a command that ran in this process set it
    export_onnx(tiny_model(), tmp_path / "out", processor=tiny_processor(), int8=True, progress=True)
    shown = capfd.readouterr().err
    places = [shown.index(step) for step in ("loading", "writing graphs", "comparing with", "quantizing to 8 bits")]
    assert places == sorted(places)


def test_graphs_of_other_weights_are_found_before_they_are_put_in_place(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def copy_graphs(model: Any, pixel_values: Any, target: Path) -> None:
        for file in folder.glob("*.onnx"):
            shutil.copyfile(file, target / file.name)

    def contents() -> dict[str, bytes]:
        return {file.name: file.read_bytes() for file in (tmp_path / "out").iterdir()}

    monkeypatch.setattr(exporter, "export_graphs", copy_graphs)
    export_onnx(tiny_model(), tmp_path / "out", processor=tiny_processor())
    before = contents()
    for change, message in (
        (lambda model: model.lm_head.bias.add_(1e-3), r"logits of the ONNX captioner differ from PyTorch's by 0\.001"),
        (lambda model: model.decoder.lstm.weight_hh_l0.mul_(1.001), "logits of the ONNX captioner differ"),
        (lambda model: model.encoder.backbone.embedder.embedder.convolution.weight.mul_(1.001), "image features of"),
    ):
        model = tiny_model()
        with torch.no_grad():
            change(model)
        with pytest.raises(ValueError, match=message):
            export_onnx(model, tmp_path / "out", processor=tiny_processor())
        assert contents() == before


def test_what_cannot_be_exported_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="contains a PyTorch checkpoint"):
        export_onnx(folder.parent / "checkpoint", folder.parent / "checkpoint")
    with pytest.raises(ValueError, match="give the model's `processor` too"):
        export_onnx(tiny_model(), tmp_path / "out")
    with pytest.raises(ValueError, match="only a NICForConditionalGeneration or its checkpoint can"):
        export_onnx(torch.nn.Linear(1, 1), tmp_path / "out", processor=tiny_processor())  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="need int8=True"):
        export_onnx(tiny_model(), tmp_path / "out", processor=tiny_processor(), calibration_photos=tiny_photos(2))
    model = tiny_model()
    model.generation_config.penalty_alpha = 0.5
    with pytest.raises(ValueError, match="does not support `penalty_alpha`"):
        export_onnx(model, tmp_path / "out", processor=tiny_processor())
    with pytest.raises(ValueError, match="optimized for inference cannot be exported"):
        export_onnx(tiny_model().optimize_for_inference(), tmp_path / "out", processor=tiny_processor())
    processor = tiny_processor()
    processor.tokenizer = train_tokenizer(CAPTIONS[:2], min_frequency=1)
    with pytest.raises(ValueError, match="the processor: the tokenizer has 17 words and the model 27"):
        export_onnx(tiny_model(), tmp_path / "out", processor=processor)


@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize("name", [*FILES, "README.md"])
def test_files_that_are_of_no_export_are_not_replaced(folder: Path, tmp_path: Path, name: str, int8: bool) -> None:
    (tmp_path / name).write_text("mine")
    message = f"{tmp_path} is not an export (it has no {MANIFEST}) and contains {name}, which"
    done = nic_export(folder.parent / "checkpoint", tmp_path, *(["--int8"] if int8 else []))
    assert done.exit_code == 2 and message in done.output
    with pytest.raises(ValueError, match=re.escape(message)):
        export_onnx(folder.parent / "checkpoint", tmp_path, int8=int8)
    with pytest.raises(ValueError, match=re.escape(message)):
        quantize_onnx(folder, tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == [name] and (tmp_path / name).read_text() == "mine"


@pytest.mark.parametrize("int8", [False, True])
def test_the_card_comes_with_the_export(folder: Path, tmp_path: Path, int8: bool) -> None:
    """So that the terms of the weights can be read."""
    checkpoint = shutil.copytree(folder.parent / "checkpoint", tmp_path / "checkpoint")
    (checkpoint / "README.md").write_text("# Mine\n\n**Terms of the weights**: for research.\n")
    out = tmp_path / "out"
    export_onnx(checkpoint, out, int8=int8).save_pretrained(tmp_path / "copy")
    assert terms_of_weights(str(out)) == terms_of_weights(str(tmp_path / "copy")) == "for research."
    export_onnx(folder.parent / "checkpoint", out, int8=int8)  # another captioner, without a card
    assert terms_of_weights(str(out)) == "not stated; it has no card"


def test_8_bits_are_made_of_float32_with_photos(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="`calibration_photos` is empty"):
        quantize_onnx(folder, tmp_path / "static", [])
    quantize_onnx(folder, tmp_path / "dynamic")
    with pytest.raises(ValueError, match="is in int8, dynamic; only float32"):
        quantize_onnx(tmp_path / "dynamic", tmp_path / "again")


def test_the_command_names_what_is_wrong(folder: Path, tmp_path: Path) -> None:
    for arguments, message in (
        ((tmp_path / "nowhere", tmp_path / "out"), "nowhere: no such folder"),
        ((folder.parent / "checkpoint", tmp_path / "out", "--calibration", "x"), "--calibration needs --int8"),
        ((folder.parent / "checkpoint", tmp_path / "out", "--int8", "--calibration", tmp_path / "no"), "no"),
        ((folder.parent / "checkpoint", folder / "config.json"), "is a file; give a folder"),
    ):
        done = nic_export(*arguments)
        assert done.exit_code == 2
        assert message in done.stderr, done.stderr
        assert len(done.stderr.splitlines()) == 1 and done.stderr.startswith("nic export onnx: ")


def test_the_command_calibrates_on_a_split(folder: Path, flickr8k: Path, tmp_path: Path) -> None:
    done = nic_export(
        *(folder.parent / "checkpoint", tmp_path / "int8", "--int8"),
        *("--calibration", flickr8k, "--calibration-number", 6),
    )
    assert done.exit_code == 0, done.output
    assert "int8, static, opset 18" in done.stdout and "of next words as in float32" in done.stdout
    captioner = NICOnnxCaptioner.from_pretrained(tmp_path / "int8")
    assert captioner.manifest["calibration_photos"] == 6
    assert len(captioner.caption(load_captions(flickr8k, "dev").select(range(3))["image"][:3])) == 3
