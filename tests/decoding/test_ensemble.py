"""NICEnsemble: the mean of the members' probabilities, with all decoding methods."""

import itertools
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from plain import EOS, mean_next_scores, plain_diverse_beam, words_of
from tiny import save_tiny_checkpoint, tiny_features, tiny_labels, tiny_model, tiny_photos, tiny_pixels, tiny_processor
from transformers import TextStreamer, ViTConfig

from nic_hf import ImageToTextPipeline, NICForConditionalGeneration, NICProcessor
from nic_hf.data import PhotoDataset
from nic_hf.dataset_captions import generate_captions
from nic_hf.decoding import NICEnsemble, NICEnsembleCache
from nic_hf.tokenization import train_tokenizer

VIT = ViTConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, image_size=32)
MODES: dict[str, dict[str, Any]] = {
    "greedy": {"num_beams": 1},
    "sampling": {"num_beams": 1, "do_sample": True, "num_return_sequences": 2, "top_k": 0},
    "beam": {"num_beams": 4, "num_return_sequences": 3},
    "beam sampling": {"num_beams": 4, "do_sample": True, "num_return_sequences": 2, "top_k": 0},
}


def three_members() -> list[NICForConditionalGeneration]:
    """Models with different backbones and sizes; the first and the last share a backbone."""
    first, second = tiny_model(), tiny_model(seed=1, hidden_size=5, num_hidden_layers=2, backbone_config=VIT)
    third = tiny_model(seed=2, embedding_size=6)
    third.encoder.load_state_dict(first.encoder.state_dict())
    return [first, second, third]


@pytest.fixture(scope="module")
def members() -> list[NICForConditionalGeneration]:
    return three_members()


@pytest.fixture(scope="module")
def ensemble(members: list[NICForConditionalGeneration]) -> NICEnsemble:
    return NICEnsemble(members)


def features_of(members: list[NICForConditionalGeneration], pixel_values: torch.Tensor) -> list[torch.Tensor]:
    with torch.no_grad():
        return [member.get_image_features(pixel_values) for member in members]


def generate(model: Any, seed: int = 0, **settings: Any) -> Any:
    torch.manual_seed(seed)
    return model.generate(**{"max_new_tokens": 9, "return_dict_in_generate": True, "output_scores": True, **settings})


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("copies", [1, 3])
def test_an_ensemble_of_copies_is_the_model(copies: int, mode: str) -> None:
    settings = {**MODES[mode], "pixel_values": tiny_pixels(4)}
    expected = generate(tiny_model(), **settings)
    found = generate(NICEnsemble([tiny_model() for _ in range(copies)]), **settings)
    assert torch.equal(found.sequences, expected.sequences)
    for ours, theirs in zip(found.scores, expected.scores, strict=True):
        torch.testing.assert_close(ours.log_softmax(dim=-1), theirs.log_softmax(dim=-1), rtol=1e-5, atol=1e-5)
    if "beam" in mode:
        torch.testing.assert_close(found.sequences_scores, expected.sequences_scores)


def test_building_an_ensemble_leaves_the_members_as_they_were() -> None:
    model = tiny_model()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    settings = model.generation_config.to_dict()
    ensemble = NICEnsemble([model, tiny_model(seed=1, backbone_config=VIT)])
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert model.config.feature_size == 10
    assert ensemble.config.feature_size == 18
    assert ensemble.generation_config.to_dict() == settings
    assert not ensemble.training


def test_scores_are_the_log_of_the_mean_probability(
    ensemble: NICEnsemble, members: list[NICForConditionalGeneration]
) -> None:
    words = torch.tensor([[1, 5, 6, 7], [1, 9, 4, 4]])
    pixel_values = tiny_pixels(2)
    with torch.no_grad():
        found = ensemble(pixel_values=pixel_values, decoder_input_ids=words).logits
        logits = [member(pixel_values=pixel_values, decoder_input_ids=words).logits for member in members]
    expected = torch.stack([each.double().softmax(dim=-1) for each in logits]).mean(dim=0).log()
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-6)
    mean_of_logits = torch.stack(logits).mean(dim=0).log_softmax(dim=-1)
    assert (mean_of_logits - found).abs().max() > 0.1, "members agree so well that the test shows nothing"


def test_each_step_of_generate_sees_the_mean_of_probabilities(
    ensemble: NICEnsemble, members: list[NICForConditionalGeneration]
) -> None:
    pixel_values = tiny_pixels(3)
    found = generate(ensemble, pixel_values=pixel_values, num_beams=1, suppress_tokens=None)
    for row, features in enumerate(zip(*features_of(members, pixel_values), strict=True)):
        next_scores = mean_next_scores(members, features, suppressed=())
        words = words_of(found.sequences[row])
        for step, word in enumerate(words):
            expected = torch.tensor(next_scores(words[:step]))
            torch.testing.assert_close(found.scores[step][row], expected, rtol=0, atol=2e-6)
            assert word == expected.argmax()


@pytest.mark.parametrize(("width", "length_penalty"), [(1, 1.0), (3, 0.0), (4, 1.0)])
def test_a_beam_finds_what_a_plain_beam_over_mean_probabilities_finds(
    ensemble: NICEnsemble, members: list[NICForConditionalGeneration], width: int, length_penalty: float
) -> None:
    pixel_values = tiny_pixels(3)
    found = generate(ensemble, pixel_values=pixel_values, num_beams=width, length_penalty=length_penalty)
    expected = [
        plain_diverse_beam(mean_next_scores(members, features), width, 1, 0.0, length_penalty)[0]
        for features in zip(*features_of(members, pixel_values), strict=True)
    ]
    assert [words_of(row) for row in found.sequences] == [words for words, _ in expected]
    if width > 1:
        torch.testing.assert_close(found.sequences_scores, torch.tensor([score for _, score in expected]))


@pytest.mark.parametrize("length_penalty", [0.0, 1.0])
def test_a_beam_of_full_width_ranks_captions_as_exhaustive_search_does(length_penalty: float) -> None:
    members = [tiny_model(seed=seed, vocab_size=6, hidden_size=5 + seed) for seed in range(2)]
    features = [tiny_features(1, seed=seed) for seed in range(2)]
    next_scores = mean_next_scores(members, [feature[0] for feature in features])
    ended = [(*words, EOS) for length in range(4) for words in itertools.product((4, 5), repeat=length)]
    captions = ended + list(itertools.product((4, 5), repeat=4))
    totals = [sum(next_scores(words[:step])[word] for step, word in enumerate(words)) for words in captions]
    expected = sorted(
        ((total / len(words) ** length_penalty, words) for total, words in zip(totals, captions, strict=True)),
        reverse=True,
    )
    found = generate(
        NICEnsemble(members),
        encoder_outputs=torch.cat(features, dim=1),
        num_beams=len(captions),
        num_return_sequences=len(captions),
        length_penalty=length_penalty,
        max_new_tokens=4,
    )
    torch.testing.assert_close(found.sequences_scores, torch.tensor([score for score, _ in expected]))
    assert [words_of(row) for row in found.sequences] == [words for _, words in expected]


def test_transition_scores_add_up_to_the_captions_scores(ensemble: NICEnsemble) -> None:
    settings = {"num_beams": 4, "num_return_sequences": 2, "length_penalty": 0.0}
    found = generate(ensemble, pixel_values=tiny_pixels(3), **settings)
    transitions = ensemble.compute_transition_scores(found.sequences, found.scores, found.beam_indices)
    torch.testing.assert_close(transitions.sum(dim=1), found.sequences_scores)


@pytest.mark.parametrize("mode", MODES)
def test_the_order_of_members_does_not_matter(
    ensemble: NICEnsemble, members: list[NICForConditionalGeneration], mode: str
) -> None:
    settings = {**MODES[mode], "pixel_values": tiny_pixels(4)}
    expected = generate(ensemble, **settings)
    found = generate(NICEnsemble([members[2], members[1], members[0]]), **settings)
    assert torch.equal(found.sequences, expected.sequences)
    for ours, theirs in zip(found.scores, expected.scores, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


@pytest.mark.parametrize("mode", ["greedy", "beam"])
def test_a_batch_gives_what_single_photos_give(ensemble: NICEnsemble, mode: str) -> None:
    pixel_values = tiny_pixels(5)
    together = generate(ensemble, pixel_values=pixel_values, **MODES[mode])
    alone = [generate(ensemble, pixel_values=photo[None], **MODES[mode]).sequences for photo in pixel_values]
    assert [words_of(row) for row in together.sequences] == [words_of(row) for rows in alone for row in rows]


@pytest.mark.parametrize("mode", ["greedy", "beam"])
def test_without_caches_it_generates_the_same(ensemble: NICEnsemble, mode: str) -> None:
    settings = {**MODES[mode], "pixel_values": tiny_pixels(3)}
    assert torch.equal(
        generate(ensemble, **settings).sequences, generate(ensemble, use_cache=False, **settings).sequences
    )


@pytest.mark.parametrize("width", [1, 3])
def test_a_caption_goes_on_from_a_prefix(
    ensemble: NICEnsemble, members: list[NICForConditionalGeneration], width: int
) -> None:
    pixel_values, prefix = tiny_pixels(2), torch.tensor([[1, 5, 6], [1, 9, 10]])
    found = generate(ensemble, pixel_values=pixel_values, decoder_input_ids=prefix, num_beams=width).sequences
    assert torch.equal(found[:, :3], prefix)
    for row, features in enumerate(zip(*features_of(members, pixel_values), strict=True)):
        scores = mean_next_scores(members, features)
        start = tuple(prefix[row, 1:].tolist())
        best = plain_diverse_beam(lambda words, s=scores, p=start: s(p + words), width, 1, 0.0)[0]  # type: ignore[misc]
        assert words_of(found[row]) == start + best[0]


def test_a_streamer_prints_the_caption(ensemble: NICEnsemble, capsys: pytest.CaptureFixture[str]) -> None:
    tokenizer = tiny_processor().tokenizer
    streamer = TextStreamer(tokenizer, skip_special_tokens=True)
    found = ensemble.generate(pixel_values=tiny_pixels(1), num_beams=1, streamer=streamer)
    assert capsys.readouterr().out.strip() == tokenizer.decode(found[0], skip_special_tokens=True)


def test_features_are_those_of_each_distinct_backbone_side_by_side(
    ensemble: NICEnsemble, members: list[NICForConditionalGeneration]
) -> None:
    pixel_values = tiny_pixels(3)
    each = features_of(members, pixel_values)
    with torch.no_grad():
        features = ensemble.get_image_features(pixel_values)
    assert torch.equal(features, torch.cat(each[:2], dim=1))
    expected = ensemble.generate(pixel_values=pixel_values)
    for form in (features, features[:, None], (features,), {"last_hidden_state": features}):
        assert torch.equal(ensemble.generate(encoder_outputs=form), expected)
    sharing = NICEnsemble([members[0], members[2]])
    assert torch.equal(sharing.generate(encoder_outputs=each[0]), sharing.generate(pixel_values=pixel_values))


def test_a_backbone_that_members_share_runs_once() -> None:
    members = three_members()
    ensemble = NICEnsemble(members)
    runs = []
    for number, member in enumerate(members):
        member.encoder.backbone.register_forward_hook(lambda *_, number=number: runs.append(number))
    ensemble.generate(pixel_values=tiny_pixels(2))
    assert runs == [0, 1]


def test_backbones_with_the_same_settings_and_other_weights_both_run() -> None:
    members = [tiny_model(seed=0), tiny_model(seed=1)]
    assert NICEnsemble(members).config.feature_size == 20


def test_labels_give_the_loss_of_the_mean_probabilities(ensemble: NICEnsemble) -> None:
    labels = tiny_labels([3, 6])
    with torch.no_grad():
        output = ensemble(pixel_values=tiny_pixels(2), labels=labels, output_hidden_states=True)
    words = labels != -100
    expected = -output.logits[words].gather(1, labels[words][:, None]).mean()
    torch.testing.assert_close(output.loss, expected)
    assert [tuple(states.shape) for states in output.decoder_hidden_states] == [(2, 6, 9), (2, 6, 5), (2, 6, 9)]


def test_a_cache_does_to_all_members_what_it_is_told() -> None:
    members = three_members()
    ensemble = NICEnsemble(members)
    with torch.no_grad():
        cache = ensemble(pixel_values=tiny_pixels(3), decoder_input_ids=torch.tensor([[1, 5]] * 3)).cache
    assert isinstance(cache, NICEnsembleCache)
    assert (cache.get_seq_length(), cache.get_max_cache_shape()) == (2, -1)
    before = [state.hidden_state for state in cache.members]
    cache.batch_repeat_interleave(2)
    cache.reorder_cache(torch.tensor([5, 0, 3, 1]))
    cache.batch_select_indices(torch.tensor([0, 1]))
    for state, old in zip(cache.members, before, strict=True):
        assert torch.equal(state.hidden_state, old[:, [2, 0]])
    cache.reset()
    assert cache.get_seq_length() == 0


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folders = [tmp_path_factory.mktemp("run") for _ in range(2)]
    for seed, folder in enumerate(folders):
        save_tiny_checkpoint(folder, seed=seed, hidden_size=8 + seed)
    return folders


def test_checkpoints_load_as_an_ensemble(folders: list[Path]) -> None:
    loaded = NICEnsemble.from_pretrained(folders)
    expected = NICEnsemble([tiny_model(seed=seed, hidden_size=8 + seed) for seed in range(2)])
    pixel_values = tiny_pixels(3)
    assert torch.equal(loaded.generate(pixel_values=pixel_values), expected.generate(pixel_values=pixel_values))
    twice = NICEnsemble.from_pretrained([folders[0], folders[0]])
    assert twice.members[0].encoder is twice.members[1].encoder, "a shared backbone is in memory twice"
    half = NICEnsemble.from_pretrained(folders, dtype=torch.bfloat16)
    assert half.generate(pixel_values=pixel_values).shape[0] == 3
    assert {parameter.dtype for parameter in half.parameters()} == {torch.bfloat16}


def test_an_ensemble_captions_data_sets_and_photos(folders: list[Path]) -> None:
    ensemble, processor = NICEnsemble.from_pretrained(folders), NICProcessor.from_pretrained(folders[0])
    photos = tiny_photos(3)
    rows = datasets.Dataset.from_dict({"image": photos, "image_id": ["a", "b", "c"], "captions": [["a dog"]] * 3})
    rows = rows.cast_column("image", datasets.Image())
    found = generate_captions(ensemble, PhotoDataset(rows, processor), progress=False, batch_size=2)  # type: ignore[arg-type]
    ids = ensemble.generate(**processor(images=photos, return_tensors="pt"))
    assert list(found.values()) == processor.batch_decode(ids, skip_special_tokens=True)
    captioner = ImageToTextPipeline(model=ensemble, processor=processor)
    assert [answer[0]["generated_text"] for answer in captioner(photos)] == list(found.values())
    assert len(captioner(photos[0], num_beams=4, num_return_sequences=4)) == 4


def save_processor(folder: Path, **changes: Any) -> None:
    processor = tiny_processor()
    for name, value in changes.items():
        setattr(processor.image_processor, name, value)
    processor.save_pretrained(folder)


def test_checkpoints_that_do_not_fit_are_refused_by_name(folders: list[Path], tmp_path: Path) -> None:
    def refused(message: str) -> None:
        with pytest.raises(ValueError, match=message):
            NICEnsemble.from_pretrained([folders[0], tmp_path])

    save_tiny_checkpoint(tmp_path)
    save_processor(tmp_path, image_mean=[0.1, 0.1, 0.1])
    refused(f"{tmp_path}: the preprocessing differs from {folders[0]}: pixel values .* differ by up to")
    save_processor(tmp_path, size={"height": 64, "width": 32})
    refused(r"photos have shape \(3, 64, 32\), but \(3, 32, 32\) in ")
    words = tiny_processor().tokenizer.get_vocab()
    captions = [word for word in words if not word.startswith("<") and word != "snow"]
    train_tokenizer([" ".join(captions), "fog"], min_frequency=1).save_pretrained(tmp_path)
    refused(f"{tmp_path}: the vocabulary differs from {folders[0]}: word .* is '.*' instead of '.*'")
    (tmp_path / "tokenizer.json").unlink()
    save_processor(tmp_path)
    save_tiny_checkpoint(tmp_path, vocab_size=30)
    refused(f"{tmp_path}: `vocab_size` is 30, but 27 in {folders[0]}")
    tiny_model(pad_token_id=3, unk_token_id=0).save_pretrained(tmp_path)
    refused(f"{tmp_path}: `pad_token_id` is 3, but 0 in")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        NICEnsemble.from_pretrained([folders[0], tmp_path / "nowhere"])


def test_checkpoints_without_tokenizers_are_taken_at_their_word(folders: list[Path], tmp_path: Path) -> None:
    tiny_model().save_pretrained(tmp_path)
    assert len(NICEnsemble.from_pretrained([folders[0], tmp_path]).members) == 2


def test_errors_say_what_is_wrong(ensemble: NICEnsemble, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least one"):
        NICEnsemble([])
    with pytest.raises(ValueError, match="give a list"):
        NICEnsemble.from_pretrained("folder")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="model 2: `eos_token_id` is 3, but 2 in model 1"):
        NICEnsemble([tiny_model(), tiny_model(eos_token_id=3, unk_token_id=2)])
    with pytest.raises(ValueError, match="one device, got cpu, meta"):
        NICEnsemble([tiny_model(), tiny_model().to("meta")])
    with pytest.raises(ValueError, match="no image"):
        ensemble.generate()
    with pytest.raises(ValueError, match="no image"):
        ensemble(decoder_input_ids=torch.tensor([[1]]))
    with pytest.raises(ValueError, match="no words"):
        ensemble(pixel_values=tiny_pixels(1))
    with pytest.raises(ValueError, match=r"shape \(batch_size, 18\), got \(1, 1, 10\)"):
        ensemble.generate(encoder_outputs=tiny_features(1))
    with pytest.raises(NotImplementedError, match="save its `members`"):
        ensemble.save_pretrained(tmp_path)


def with_attention(seed: int = 5, **changes: Any) -> NICForConditionalGeneration:
    return tiny_model(seed=seed, attention="soft", **changes)


def mean_of_probabilities(logits: list[torch.Tensor]) -> torch.Tensor:
    return torch.stack([each.double().softmax(dim=-1) for each in logits]).mean(dim=0).log()


def test_members_with_attention_and_without_speak_together() -> None:
    members = [with_attention(), tiny_model(), with_attention(seed=6, feature_layers="all")]
    ensemble, words = NICEnsemble(members), torch.tensor([[1, 5, 6, 7], [1, 9, 4, 4]])
    with torch.no_grad():
        found = ensemble(pixel_values=tiny_pixels(2), decoder_input_ids=words).logits
        cached = ensemble(encoder_outputs=ensemble.get_image_features(tiny_pixels(2)), decoder_input_ids=words).logits
        each = [member(pixel_values=tiny_pixels(2), decoder_input_ids=words).logits for member in members]
    torch.testing.assert_close(found.double(), mean_of_probabilities(each), rtol=0, atol=1e-6)
    assert torch.equal(found, cached)


@pytest.mark.parametrize("mode", MODES)
def test_an_ensemble_of_copies_with_attention_is_the_model(mode: str) -> None:
    settings = {**MODES[mode], "pixel_values": tiny_pixels(4)}
    expected = generate(with_attention(), **settings)
    found = generate(NICEnsemble([with_attention(), with_attention()]), **settings)
    assert torch.equal(found.sequences, expected.sequences)


@pytest.mark.parametrize("attention", [None, "soft"])
def test_mirrored_photos_are_seen_as_by_members_of_their_own(attention: str | None) -> None:
    members = [tiny_model(attention=attention), tiny_model(seed=1)]
    ensemble, words = NICEnsemble(members, mirrored=True), torch.tensor([[1, 5, 6, 7], [1, 9, 4, 4]])
    pixels = tiny_pixels(2)
    with torch.no_grad():
        found = ensemble(pixel_values=pixels, decoder_input_ids=words).logits
        each = [
            member(pixel_values=view, decoder_input_ids=words).logits
            for view in (pixels, pixels.flip(-1))
            for member in members
        ]
    torch.testing.assert_close(found.double(), mean_of_probabilities(each), rtol=0, atol=1e-6)
    sequences = generate(ensemble, pixel_values=pixels, num_beams=3).sequences
    assert torch.equal(sequences, generate(ensemble, pixel_values=pixels.flip(-1), num_beams=3).sequences)


@pytest.mark.parametrize("size", [17, 10 + 10 * 7 + 1, 10])
def test_features_of_a_size_that_no_backbone_gives_are_refused(size: int) -> None:
    ensemble = NICEnsemble([with_attention(), tiny_model(seed=1)])
    with pytest.raises(ValueError, match="`encoder_outputs` must be features of shape"):
        ensemble(encoder_outputs=torch.zeros(2, size), decoder_input_ids=torch.tensor([[1], [1]]))
