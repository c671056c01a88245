"""MobileNetV2 on real photos: one feature of all its layers, and soft attention to its regions, as in PyTorch."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import set_seed

from nic_hf import NICForConditionalGeneration, NICProcessor
from nic_hf.data import load_captions
from nic_hf.export import NICOnnxCaptioner, export_onnx, quantize_onnx
from nic_hf.processing_nic import load_image_processor
from nic_hf.tokenization import train_tokenizer

NUM_PHOTOS = 36
CONFIGS: dict[str, dict[str, Any]] = {
    "features of all layers": {"feature_layers": "all"},
    "attention": {"attention": "soft", "num_hidden_layers": 2},
}


@pytest.fixture(scope="module")
def photos(flickr8k: Path) -> list[Path]:
    names = (flickr8k / "Flickr_8k.devImages.txt").read_text("utf-8").split()[:NUM_PHOTOS]
    return [flickr8k / "Images" / name for name in names]


class Exported:
    """A captioner, its processor, the photos as pixels, and the same captioner in ONNX."""

    def __init__(self, backbone: Path, captions: list[str], photos: list[Path], folder: Path, **config: Any) -> None:
        set_seed(0)
        tokenizer = train_tokenizer(captions, min_frequency=2)
        self.processor = NICProcessor(load_image_processor(backbone), tokenizer)
        self.pixels = self.processor(images=photos, return_tensors="pt")["pixel_values"]
        self.model = NICForConditionalGeneration.from_backbone_pretrained(
            backbone, tokenizer=tokenizer, hidden_size=96, embedding_size=64, initializer_range=0.4, **config
        ).eval()
        with torch.no_grad():
            features = self.model.get_image_features(self.pixels).flatten(0, -2)
        self.model.set_feature_statistics(features.mean(dim=0), features.std(dim=0))
        self.onnx = export_onnx(self.model, folder, processor=self.processor)


@pytest.fixture(scope="module", params=CONFIGS, ids=str)
def exported(
    request: pytest.FixtureRequest,
    test_data: Path,
    flickr8k: Path,
    photos: list[Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Exported:
    captions = [caption for row in load_captions(flickr8k, "dev").select(range(200)) for caption in row["captions"]]
    folder = tmp_path_factory.mktemp("mobilenet-v2") / "onnx"
    return Exported(test_data / "backbones" / "mobilenet-v2", captions, photos, folder, **CONFIGS[request.param])


@torch.no_grad()
def test_features_and_logits_are_those_of_pytorch(exported: Exported) -> None:
    expected = exported.model.get_image_features(exported.pixels)
    features = exported.onnx.get_image_features(exported.pixels)
    np.testing.assert_allclose(features, expected, rtol=1e-4, atol=1e-4)
    words = torch.randint(exported.model.config.vocab_size, (NUM_PHOTOS, 8), generator=torch.Generator().manual_seed(0))
    expected = exported.model(pixel_values=exported.pixels, decoder_input_ids=words).logits
    reader = exported.onnx.reader(features)
    found = np.concatenate([reader.read(words[:, at : at + 1].numpy()) for at in range(8)], axis=1)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("num_beams", [1, 3])
@torch.no_grad()
def test_captions_are_those_of_pytorch(exported: Exported, photos: list[Path], num_beams: int) -> None:
    ids = exported.model.generate(pixel_values=exported.pixels, num_beams=num_beams)
    expected = exported.processor.batch_decode(ids, skip_special_tokens=True)
    assert len(set(expected)) > NUM_PHOTOS / 2
    assert exported.onnx.caption(photos, num_beams=num_beams, batch_size=10) == expected


@torch.no_grad()
def test_a_seed_draws_what_pytorch_would_with_the_same_noise(exported: Exported) -> None:
    model, config = exported.model, exported.model.config
    for number in range(8):
        features = model.get_image_features(exported.pixels[number : number + 1])
        random, ids = np.random.default_rng(number), [config.bos_token_id]
        while len(ids) < 13 and ids[-1] != config.eos_token_id:
            # shape: (vocab_size,)
            scores = model(encoder_outputs=features, decoder_input_ids=torch.tensor([ids])).logits[0, -1] / 1.5
            scores[model.generation_config.suppress_tokens] = -torch.inf
            scores[scores < scores.topk(30).values[-1]] = -torch.inf
            ids.append(int(np.argmax(scores.numpy() + random.gumbel(size=(1, len(scores)))[0])))
        found = exported.onnx.generate(
            encoder_outputs=features,
            do_sample=True,
            num_beams=1,
            temperature=1.5,
            top_k=30,
            max_new_tokens=12,
            seed=number,
        )
        assert found[0].tolist() == ids


@pytest.mark.parametrize("precision", ["int8, dynamic", "int8, static"])
def test_in_8_bits_it_is_a_third_as_large_and_not_broken(
    exported: Exported, photos: list[Path], tmp_path: Path, precision: str
) -> None:
    calibration = photos[:12] if precision == "int8, static" else None
    rounded = quantize_onnx(exported.onnx.folder, tmp_path / "int8", calibration)
    assert rounded.manifest["precision"] == precision
    size = (rounded.folder / "encoder.onnx").stat().st_size
    assert size < (exported.onnx.folder / "encoder.onnx").stat().st_size / 3
    features, expected = (model.get_image_features(exported.pixels) for model in (rounded, exported.onnx))
    deviation = expected.std()
    assert 0 < np.abs(features - expected).mean() < 0.2 * deviation
    assert isinstance(rounded, NICOnnxCaptioner) and all(rounded.caption(photos[:3]))
