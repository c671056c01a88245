"""average_checkpoints: the mean of all weights."""

from pathlib import Path

import pytest
import torch
from tiny import save_tiny_checkpoint, tiny_model, tiny_pixels
from transformers import ViTConfig

from nic_hf import NICForConditionalGeneration
from nic_hf.decoding import average_checkpoints


def state(model: NICForConditionalGeneration) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("weights", [None, [1.0, 1.0, 1.0], [3.0, 0.0, 1.0]])
def test_weights_are_the_plain_mean(weights: list[float] | None) -> None:
    models = [tiny_model(seed=seed) for seed in range(3)]
    before = [state(model) for model in models]
    averaged = average_checkpoints(models, weights)
    shares = [weight / sum(weights) for weight in weights] if weights else [1 / 3] * 3
    for name, tensor in averaged.state_dict().items():
        if tensor.is_floating_point():
            expected = sum(share * each[name].double() for share, each in zip(shares, before, strict=True))
            assert torch.equal(tensor, expected.to(tensor.dtype)), name  # type: ignore[union-attr]
        else:
            assert torch.equal(tensor, before[0][name]), name
    assert all(
        torch.equal(model.state_dict()[name], each[name])
        for model, each in zip(models, before, strict=True)
        for name in each
    )
    assert not averaged.training


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_average_of_one_model_is_that_model(dtype: torch.dtype) -> None:
    model = tiny_model().to(dtype)
    for models in ([model], [model, model, model]):
        averaged = average_checkpoints(models)
        assert averaged is not model
        assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in averaged.state_dict().items())
        assert {tensor.dtype for tensor in averaged.parameters()} == {dtype}
        assert torch.equal(averaged.generate(pixel_values=tiny_pixels(2)), model.generate(pixel_values=tiny_pixels(2)))


def test_buffers_of_the_backbone_and_the_features_are_averaged() -> None:
    models = [tiny_model(seed=seed) for seed in range(2)]
    averaged = average_checkpoints(models).state_dict()
    names = [
        name
        for name in averaged
        if name.endswith(("running_mean", "running_var", "projection.mean", "projection.std"))
    ]
    assert len(names) > 3
    for name in names:
        first, second = (model.state_dict()[name] for model in models)
        assert not torch.equal(first, second)
        torch.testing.assert_close(averaged[name], (first + second) / 2)


def test_checkpoints_and_models_mix_and_the_result_saves_and_loads(tmp_path: Path) -> None:
    first = save_tiny_checkpoint(tmp_path / "first", seed=0)
    second = tiny_model(seed=1)
    expected = state(average_checkpoints([first, second]))
    for sources in ([tmp_path / "first", second], [first, second], [str(tmp_path / "first"), second]):
        averaged = average_checkpoints(sources)
        assert all(torch.equal(tensor, expected[name]) for name, tensor in averaged.state_dict().items())
    averaged.save_pretrained(tmp_path / "averaged")
    loaded = NICForConditionalGeneration.from_pretrained(tmp_path / "averaged")
    assert all(torch.equal(tensor, expected[name]) for name, tensor in loaded.state_dict().items())
    frozen = [name for name, parameter in averaged.named_parameters() if not parameter.requires_grad]
    assert frozen == [name for name, parameter in loaded.named_parameters() if not parameter.requires_grad]


def test_the_largest_count_of_batches_is_kept_and_other_integers_must_agree() -> None:
    models = [tiny_model(), tiny_model()]
    name = next(name for name in models[0].state_dict() if name.endswith("num_batches_tracked"))
    models[1].state_dict()[name].fill_(7)
    assert average_checkpoints(models).state_dict()[name] == 7
    for number, model in enumerate(models):
        model.register_buffer("table", torch.tensor([1, 2 + number]))
    with pytest.raises(ValueError, match="model 2: the integers of `table` differ"):
        average_checkpoints(models)


def test_errors_name_the_tensor_that_does_not_fit(tmp_path: Path) -> None:
    save_tiny_checkpoint(tmp_path, hidden_size=8)
    with pytest.raises(
        ValueError, match=rf"{tmp_path}: `decoder.lstm.weight_ih_l0` has shape \(32, 7\), but \(36, 7\)"
    ):
        average_checkpoints([tiny_model(), tmp_path])
    with pytest.raises(ValueError, match=r"model 2: .* it has no tensor `decoder.lstm.bias_hh_l1`"):
        average_checkpoints([tiny_model(num_hidden_layers=2), tiny_model()])
    vit = ViTConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, image_size=32)
    with pytest.raises(ValueError, match="another architecture than the first"):
        average_checkpoints([tiny_model(), tiny_model(backbone_config=vit)])
    with pytest.raises(ValueError, match="`vocab_size` is 28, but 27"):
        average_checkpoints([tiny_model(), tiny_model(vocab_size=28)])


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([1.0], "got 1 weights for 2 captioners"),
        ([1.0, -1.0], "at least 0"),
        ([0.0, 0.0], "not all 0"),
        ([1.0, float("nan")], "at least 0"),
    ],
)
def test_weights_that_make_no_mean_are_refused(weights: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        average_checkpoints([tiny_model(), tiny_model()], weights)


def test_no_models_or_one_outside_a_list_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one"):
        average_checkpoints([])
    with pytest.raises(ValueError, match="give a list"):
        average_checkpoints(tiny_model())  # type: ignore[arg-type]
