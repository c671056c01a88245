"""The reward of self-critical training, compared with the scores of captions."""

import pytest
from tiny import CAPTIONS, tiny_tokenizer

from nic_hf.data import load_captions
from nic_hf.evaluation import DocumentFrequencies, score_captions
from nic_hf.tokenization import train_tokenizer
from nic_hf.training.rewards import CaptionReward


def test_rewards_are_the_scores_of_captions_that_end_in_a_word_more(flickr8k) -> None:
    photos = load_captions(flickr8k, "validation").select(range(60))["captions"][:]
    tokenizer = train_tokenizer([caption for own in photos for caption in own], min_frequency=1)
    ids = [tokenizer(own).input_ids for own in photos]
    texts = [[" ".join(map(str, caption)) for caption in own] for own in ids]
    # Two captions of the next photo, one of the same photo, one reversed, and one word.
    predictions = [[*ids[n - 1][:2], ids[n][0], ids[n][1][::-1], ids[n][2][:1]] for n in range(len(ids))]

    reward = CaptionReward(ids)(predictions, ids)
    bleu = CaptionReward(ids, cider_weight=0, bleu_weight=2)(predictions, ids)
    frequencies = DocumentFrequencies(texts, tokenize=str.split)
    for column in range(5):
        scores = score_captions(
            {n: " ".join(map(str, own[column])) for n, own in enumerate(predictions)},
            dict(enumerate(texts)),
            ["bleu", "cider"],
            per_image=True,
            document_frequencies=frequencies,
            tokenize=str.split,
        )["per_image"]
        assert reward[:, column] == pytest.approx([scores[n]["cider"] for n in range(len(ids))], abs=1e-9)
        assert bleu[:, column] == pytest.approx([2 * scores[n]["bleu_4"] for n in range(len(ids))], abs=1e-9)
    assert reward[:, 2].min() > 0.5


def test_a_caption_that_stops_early_earns_less() -> None:
    tokenizer = tiny_tokenizer()
    references = [[tokenizer(caption).input_ids] for caption in CAPTIONS]
    whole = references[0][0]
    assert whole[-1] == tokenizer.eos_token_id
    ((full, cut, unended),) = CaptionReward(references)(
        [[whole, [*whole[:-3], whole[-1]], whole[:-1]]], references[:1]
    )
    assert full > cut > 0 and full > unended > 0
    assert full == pytest.approx(10)


def test_a_reward_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="the reward needs a weight"):
        CaptionReward([[[1, 2]]], cider_weight=0)
    with pytest.raises(ValueError, match="at least one photo"):
        CaptionReward([])
