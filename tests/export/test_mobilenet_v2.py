"""MobileNetV2 on real photos: features of all layers and soft attention to regions, as in PyTorch."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import set_seed

from nic_hf import NICForConditionalGeneration, NICProcessor
from nic_hf.data import load_captions
from nic_hf.export import NICOnnxCaptioner, export_onnx, quantize_onnx
from nic_hf.model.processor import load_image_processor, squeeze_to
from nic_hf.tokenization import train_tokenizer

NUM_PHOTOS = 24
CONFIGS: dict[str, dict[str, Any]] = {
    "features of all layers": {"feature_layers": "all"},
    "attention": {"attention": "soft", "num_hidden_layers": 2},
}


class Exported:
    """A captioner that has memorized a caption of each photo, in PyTorch and ONNX, and the photos."""

    def __init__(self, backbone: Path, photos: list[Any], captions: list[str], folder: Path, **config: Any) -> None:
        set_seed(0)
        self.photos, tokenizer = photos, train_tokenizer(captions, min_frequency=1)
        self.processor = NICProcessor(squeeze_to(load_image_processor(backbone), 128), tokenizer)
        batch = self.processor(images=photos, text_target=captions, return_tensors="pt")
        self.pixels = batch["pixel_values"]
        self.model = NICForConditionalGeneration.from_backbone_pretrained(
            backbone, tokenizer=tokenizer, hidden_size=96, embedding_size=64, dropout=0.0, **config
        )
        with torch.no_grad():
            self.features = self.model.eval().get_image_features(self.pixels)  # of PyTorch
        vectors = self.features.flatten(0, -2)
        self.model.set_feature_statistics(vectors.mean(dim=0), vectors.std(dim=0))
        optimiser = torch.optim.Adam([weight for weight in self.model.parameters() if weight.requires_grad], lr=1e-2)
        for _ in range(50):
            self.model(encoder_outputs=self.features, labels=batch["labels"]).loss.backward()
            optimiser.step()
            optimiser.zero_grad()
        self.onnx = export_onnx(self.model, folder, processor=self.processor)


@pytest.fixture(scope="module", params=CONFIGS, ids=str)
def exported(
    request: pytest.FixtureRequest, test_data: Path, flickr8k: Path, tmp_path_factory: pytest.TempPathFactory
) -> Exported:
    rows = load_captions(flickr8k, "dev").select(range(NUM_PHOTOS))
    captions = [first for first, *_ in rows["captions"]]
    folder = tmp_path_factory.mktemp("mobilenet-v2") / "onnx"
    backbone = test_data / "backbones" / "mobilenet-v2"
    return Exported(backbone, list(rows["image"]), captions, folder, **CONFIGS[request.param])


@torch.no_grad()
def test_features_and_logits_are_those_of_pytorch(exported: Exported) -> None:
    features = exported.onnx.get_image_features(exported.pixels)
    np.testing.assert_allclose(features, exported.features, rtol=1e-4, atol=1e-4)
    words = torch.randint(
        exported.model.config.vocab_size, (NUM_PHOTOS, 8), generator=torch.Generator().manual_seed(0)
    )
    expected = exported.model(encoder_outputs=exported.features, decoder_input_ids=words).logits
    reader = exported.onnx.reader(features)
    found = np.concatenate([reader.read(words[:, at : at + 1].numpy()) for at in range(8)], axis=1)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("num_beams", [1, 3])
@torch.no_grad()
def test_captions_are_those_of_pytorch(exported: Exported, num_beams: int) -> None:
    ids = exported.model.generate(encoder_outputs=exported.features, num_beams=num_beams)
    expected = exported.processor.batch_decode(ids, skip_special_tokens=True)
    assert len(set(expected)) > NUM_PHOTOS / 2
    assert exported.onnx.caption(exported.photos, num_beams=num_beams, batch_size=10) == expected


@torch.no_grad()
def test_a_seed_draws_what_pytorch_would_with_the_same_noise(exported: Exported) -> None:
    model, config = exported.model, exported.model.config
    for number in range(6):
        features = exported.features[number : number + 1]
        random, ids = np.random.default_rng(number), [config.bos_token_id]
        while len(ids) < 11 and ids[-1] != config.eos_token_id:
            # shape: (vocab_size,)
            scores = model(encoder_outputs=features, decoder_input_ids=torch.tensor([ids])).logits[0, -1] / 1.5
            scores[model.generation_config.suppress_tokens] = -torch.inf
            scores[scores < scores.topk(30).values[-1]] = -torch.inf
            ids.append(int(np.argmax(scores.numpy() + random.gumbel(size=(1, len(scores)))[0])))
        sampling = {"do_sample": True, "num_beams": 1, "temperature": 1.5, "top_k": 30, "max_new_tokens": 10}
        found = exported.onnx.generate(encoder_outputs=features, **sampling, seed=number)
        assert found[0].tolist() == ids


@pytest.mark.parametrize("precision", ["int8, dynamic", "int8, static"])
def test_in_8_bits_it_is_a_third_as_large_and_reads_and_says_much_the_same(
    exported: Exported, tmp_path: Path, precision: str
) -> None:
    calibration = exported.photos[:12] if precision == "int8, static" else None
    rounded = quantize_onnx(exported.onnx.folder, tmp_path / "int8", calibration)
    assert isinstance(rounded, NICOnnxCaptioner) and rounded.manifest["precision"] == precision
    encoder = "encoder.onnx"
    assert (rounded.folder / encoder).stat().st_size < (exported.onnx.folder / encoder).stat().st_size / 3
    pixels = exported.onnx.preprocess(exported.photos)
    exact, features = exported.onnx.get_image_features(pixels), rounded.get_image_features(pixels)
    # The weights of this backbone come from 8 bits, so only activations lose precision.
    assert np.linalg.norm(features - exact) / np.linalg.norm(exact) < (0.2 if precision == "int8, static" else 1e-5)
    words = exported.onnx.generate(encoder_outputs=exact, num_beams=1)
    theirs, ours = (
        np.concatenate([reader.read(words[:, at : at + 1]) for at in range(words.shape[1] - 1)], axis=1).argmax(-1)
        for reader in (exported.onnx.reader(exact), rounded.reader(features))
    )
    assert np.mean(ours == theirs) > 0.95, "next words after those of the captions learned by heart"
