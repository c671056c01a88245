"""The loss, equation 10 of the paper, against sums written out."""

import pytest
import torch
from tiny import tiny_features, tiny_labels, tiny_model

LENGTHS = [3, 6, 2, 5]


def word_losses(logits: torch.Tensor, labels: torch.Tensor) -> list[torch.Tensor]:
    """-log p of every word, in order."""
    return [
        logits[row, position].logsumexp(dim=0) - logits[row, position, word]
        for row, caption in enumerate(labels.tolist())
        for position, word in enumerate(caption)
        if word != -100
    ]


def test_the_loss_is_the_mean_negative_log_likelihood_of_the_words() -> None:
    model, labels = tiny_model(), tiny_labels(LENGTHS)
    result = model(encoder_outputs=tiny_features(), labels=labels)
    losses = word_losses(result.logits, labels)
    assert len(losses) == sum(LENGTHS)  # the photo, at t = -1, predicts no word
    torch.testing.assert_close(result.loss, sum(losses) / len(losses))


def test_the_words_read_are_the_labels_one_later() -> None:
    model, labels = tiny_model(), tiny_labels([3, 5])
    words = torch.tensor([[1, *labels[0, :2].tolist(), 2, 0], [1, *labels[1, :4].tolist()]])
    assert torch.equal(model.prepare_decoder_input_ids_from_labels(labels), words)
    implied = model(encoder_outputs=tiny_features(2), labels=labels)
    given = model(encoder_outputs=tiny_features(2), labels=labels, decoder_input_ids=words)
    assert torch.equal(implied.logits, given.logits)
    assert torch.equal(implied.loss, given.loss)


@pytest.mark.parametrize("number", [16, torch.tensor(16), torch.tensor([16])])
def test_the_sum_of_losses_is_divided_by_the_number_of_words_given(number: int | torch.Tensor) -> None:
    model, labels = tiny_model(), tiny_labels(LENGTHS)
    result = model(encoder_outputs=tiny_features(), labels=labels, num_items_in_batch=number)
    torch.testing.assert_close(result.loss.squeeze(), sum(word_losses(result.logits, labels)) / 16)


def test_labels_are_smoothed_in_training_only() -> None:
    plain, smoothing = tiny_model(), tiny_model(label_smoothing=0.2)
    labels = tiny_labels(LENGTHS)
    inputs = {"encoder_outputs": tiny_features(), "labels": labels}
    assert torch.equal(smoothing(**inputs).loss, plain(**inputs).loss)

    result = smoothing.train()(**inputs)
    log_p = result.logits.log_softmax(dim=-1)[labels != -100]  # shape: (words, vocab_size)
    spread = -log_p.mean(dim=-1)
    expected = 0.8 * torch.stack(word_losses(result.logits, labels)) + 0.2 * spread
    torch.testing.assert_close(result.loss, expected.mean())


def test_the_loss_of_a_half_precision_model_is_taken_in_full_precision() -> None:
    model = tiny_model().to(torch.bfloat16)
    result = model(encoder_outputs=tiny_features().to(torch.bfloat16), labels=tiny_labels(LENGTHS))
    assert result.logits.dtype == torch.bfloat16
    assert result.loss.dtype == torch.float32
    losses = word_losses(result.logits.float(), tiny_labels(LENGTHS))
    torch.testing.assert_close(result.loss, sum(losses) / len(losses))


def test_scoring_captions_needs_no_cache_and_scoring_prefixes_gives_one() -> None:
    model = tiny_model()
    assert model(encoder_outputs=tiny_features(), labels=tiny_labels(LENGTHS)).cache is None
    words = torch.ones(4, 2, dtype=torch.long)
    assert model(encoder_outputs=tiny_features(), decoder_input_ids=words).cache.get_seq_length() == 2


def test_what_a_dataset_carries_beside_the_models_inputs_is_ignored() -> None:
    model = tiny_model()
    inputs = {"encoder_outputs": tiny_features(), "labels": tiny_labels(LENGTHS)}
    assert torch.equal(model(**inputs, image_id=torch.arange(4), attention_mask=None).loss, model(**inputs).loss)


def test_several_captions_of_a_photo_share_its_features_and_cost_what_they_cost_apart() -> None:
    model, features, labels = tiny_model(), tiny_features(2), tiny_labels(LENGTHS).unflatten(0, (2, 2))
    labels[1, 1] = -100  # a photo with fewer captions
    together = model(encoder_outputs=features, labels=labels)
    apart = model(encoder_outputs=features.repeat_interleave(2, dim=0), labels=labels.flatten(0, 1))
    torch.testing.assert_close(together.logits, apart.logits)
    torch.testing.assert_close(together.loss, apart.loss)
    assert together.image_features.shape == features.shape
