"""Ranking by log p(caption | photo), in both directions: Tables 4 and 5 of the 2015 paper.

Every caption is scored for every photo. Pair by pair, 1,000 photos with 5,000 captions would be five million runs of
the LSTM. Here captions are sorted so that common prefixes are read once, all photos of a block are computed in one
step, and the input half of the LSTM's gates is computed once per word.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from ...configuration_nic import IGNORED_LABEL
from ...model.captioner import NICForConditionalGeneration
from ...progress_bar import progress_bar

# Limits on the states kept at a time, and on the (prefix, photo) pairs whose logits are computed at a time.
PHOTOS_A_BLOCK = 64
CAPTIONS_A_BLOCK = 128
PAIRS_A_STEP = 1024  # fits into the caches of a CPU
COLUMNS = 16


@dataclass
class RankingScores:
    """Recall and median rank of a ranking.

    Attributes:
        recall_1, recall_5, recall_10: share of queries with a correct item among the first 1, 5 or 10.
        median_rank: median over the queries of the rank of the best correct item, starting at 1.
    """

    recall_1: float
    recall_5: float
    recall_10: float
    median_rank: float


@torch.no_grad()
def caption_log_likelihoods(
    model: NICForConditionalGeneration,
    image_features: torch.Tensor,
    captions: Sequence[Sequence[int]],
    progress: bool = False,
) -> np.ndarray:
    """Compute log p(S | I), summed over words and `<eos>`, of every caption for every photo.

    Args:
        model: the captioner, in eval mode.
        image_features: features of the photos, of shape `(num_photos, feature_size)`, or of shape `(num_photos,
            num_regions, feature_size)` for a model with attention. With attention, captions cannot share steps: each
            pair is computed by itself, which is slow.
        captions: token ids of each caption, ending with `<eos>`.
        progress: show a progress bar.

    Returns:
        Array of shape `(num_photos, num_captions)`, float32.

    Raises:
        ValueError: if the model is in training mode, or a caption is empty.
    """
    if model.training:
        raise ValueError("the model is in training mode, in which dropout makes likelihoods random: call model.eval()")
    empty = [index for index, ids in enumerate(captions) if len(ids) == 0]
    if empty:
        raise ValueError(f"caption {empty[0]} has no tokens; give its ids, ending with <eos>")
    if model.config.attention is not None:
        return _scores_one_by_one(model, image_features, captions, progress)
    order = sorted(range(len(captions)), key=lambda index: tuple(captions[index]))
    blocks = [order[start : start + CAPTIONS_A_BLOCK] for start in range(0, len(order), CAPTIONS_A_BLOCK)]
    bos = cast(int, model.config.decoder_start_token_id)
    trees = [_levels([[int(word) for word in captions[index]] for index in block], bos) for block in blocks]
    scorer = _Scorer(model)
    scores = np.empty((len(image_features), len(captions)), dtype=np.float32)
    with _pairs_bar(scores.size, progress) as bar:
        for first in range(0, len(image_features), PHOTOS_A_BLOCK):
            photos = slice(first, first + PHOTOS_A_BLOCK)
            inputs = model.image_projection(image_features[photos].to(model.device)).unsqueeze(1)
            _, state, _ = model.decoder(inputs)
            for block, levels in zip(blocks, trees, strict=True):
                scores[photos, block] = scorer.score(state, levels, len(block)).cpu().numpy()
                bar.update(len(inputs) * len(block))
    return scores


def _scores_one_by_one(
    model: NICForConditionalGeneration,
    image_features: torch.Tensor,
    captions: Sequence[Sequence[int]],
    progress: bool,
) -> np.ndarray:
    """log p(S | I) by forward passes over captions of similar length for one photo at a time."""
    order = sorted(range(len(captions)), key=lambda index: len(captions[index]))
    blocks = [order[start : start + CAPTIONS_A_BLOCK] for start in range(0, len(order), CAPTIONS_A_BLOCK)]
    padded = [
        pad_sequence([torch.tensor(captions[index]) for index in block], batch_first=True, padding_value=IGNORED_LABEL)
        for block in blocks
    ]
    scores = np.empty((len(image_features), len(captions)), dtype=np.float32)
    with _pairs_bar(scores.size, progress) as bar:
        for photo in range(len(image_features)):
            regions = image_features[photo : photo + 1].to(model.device)
            for block, labels in zip(blocks, padded, strict=True):
                labels = labels.to(model.device)
                words = model.prepare_decoder_input_ids_from_labels(labels)
                inputs = {"encoder_outputs": regions, "decoder_input_ids": words}
                logits = model(**inputs, use_cache=False, return_dict=True).logits
                losses = F.cross_entropy(
                    logits.float().transpose(1, 2), labels, ignore_index=IGNORED_LABEL, reduction="none"
                )
                scores[photo, block] = -losses.sum(dim=1).cpu().numpy()
                bar.update(len(block))
    return scores


def normalise_by_marginal(scores: np.ndarray) -> np.ndarray:
    """log p(S | I) - log p(S), where p(S) is the mean of p(S | I) over the photos.

    The likelihood itself favours short and common captions, which are likely for any photo.

    Args:
        scores: scores of [`caption_log_likelihoods`], of shape `(num_photos, num_captions)`.
    """
    wide = scores.astype(np.float64)
    return wide - (np.logaddexp.reduce(wide, axis=0) - np.log(len(wide)))


def annotation_ranking(scores: np.ndarray, photo_of_caption: Sequence[int]) -> RankingScores:
    """Rank all captions for each photo, by the best of its own captions.

    Args:
        scores: scores of shape `(num_photos, num_captions)`.
        photo_of_caption: row of the photo that each caption belongs to.

    Raises:
        ValueError: if a photo has no caption, or a score is NaN.
    """
    owner = _check(scores, photo_of_caption)
    missing = sorted(set(range(len(scores))) - set(owner.tolist()))
    if missing:
        raise ValueError(f"photo {missing[0]} has no caption among those ranked")
    ranks = np.empty(len(scores), dtype=np.int64)
    for photo, row in enumerate(scores):
        # Ties count against the photo's own captions, so that a constant score ranks nothing.
        ranks[photo] = 1 + (row[owner != photo] >= row[owner == photo].max()).sum()
    return _summary(ranks)


def search_ranking(scores: np.ndarray, photo_of_caption: Sequence[int]) -> RankingScores:
    """Rank all photos for each caption, by its own photo. Arguments and errors as in [`annotation_ranking`]."""
    owner = _check(scores, photo_of_caption)
    own = scores[owner, np.arange(len(owner))]
    ranks = (scores >= own).sum(axis=0)  # includes the caption's own photo
    return _summary(ranks)


def _check(scores: np.ndarray, photo_of_caption: Sequence[int]) -> np.ndarray:
    owner = np.asarray(photo_of_caption)
    if owner.shape != (scores.shape[1],):
        raise ValueError(f"{scores.shape[1]} captions are scored, but photos are given for {owner.size}")
    if np.isnan(scores).any():
        photo, caption = np.argwhere(np.isnan(scores))[0]
        raise ValueError(f"the score of caption {caption} for photo {photo} is NaN")
    return owner


def _summary(ranks: np.ndarray) -> RankingScores:
    recall_1, recall_5, recall_10 = (float((ranks <= k).mean()) for k in (1, 5, 10))
    return RankingScores(recall_1, recall_5, recall_10, float(np.median(ranks)))


@dataclass
class _Level:
    """The distinct prefixes of one length of the captions of a block.

    Attributes:
        words: last word of each prefix, which the LSTM reads; `<bos>` at the first level.
        parents: index of each prefix without its last word among the prefixes of the previous level.
        parent_targets: index of each prefix among the targets of the previous level.
        target_prefixes, target_words: the next words, including `<eos>`, and the prefixes that they follow.
        ends: (caption, target) of the captions that end at this level.
    """

    words: list[int]
    parents: list[int]
    parent_targets: list[int]
    target_prefixes: list[int]
    target_words: list[int]
    ends: list[tuple[int, int]]


def _levels(captions: Sequence[Sequence[int]], bos: int) -> list[_Level]:
    """Levels of the prefix tree of the captions."""
    levels: list[_Level] = []
    words, parents, parent_targets = [bos], [0], [0]
    at = dict.fromkeys(range(len(captions)), 0)  # the current prefix of each caption
    while at:
        targets: dict[tuple[int, int], int] = {}
        target_of = {
            i: targets.setdefault((prefix, captions[i][len(levels)]), len(targets)) for i, prefix in at.items()
        }
        target_prefixes, target_words = [prefix for prefix, _ in targets], [word for _, word in targets]
        ends = [(i, target) for i, target in target_of.items() if len(captions[i]) == len(levels) + 1]
        levels.append(_Level(words, parents, parent_targets, target_prefixes, target_words, ends))
        for i, _ in ends:
            del target_of[i]
        parent_targets = sorted(set(target_of.values()))
        parents = [target_prefixes[target] for target in parent_targets]
        words = [target_words[target] for target in parent_targets]
        place = {target: position for position, target in enumerate(parent_targets)}
        at = {i: place[target] for i, target in target_of.items()}
    return levels


class _Scorer:
    """The decoder in eval mode, with the input half of the first layer's gates precomputed for every word."""

    def __init__(self, model: NICForConditionalGeneration) -> None:
        # MKL multiplies 2,544 columns in two thirds of the time of 2,540. Padding words get the score -inf.
        padding = -len(model.lm_head.weight) % COLUMNS
        self.head_weight = F.pad(model.lm_head.weight, (0, 0, 0, padding))
        self.head_bias = F.pad(model.lm_head.bias, (0, padding), value=-torch.inf)
        self.layers = [[_gates_in_order(part) for part in layer] for layer in model.decoder.lstm.all_weights]
        w_ih, _, b_ih, b_hh = self.layers[0]
        words = model.decoder.embed_tokens.weight
        self.word_gates = F.linear(words, w_ih, b_ih + b_hh)  # shape: (vocab_size, 4 * hidden_size)

    def score(self, state: tuple[torch.Tensor, torch.Tensor], levels: list[_Level], num_captions: int) -> torch.Tensor:
        """Compute log p of each caption of a block for each photo.

        Args:
            state: (h, c) after reading the photos, each of shape `(num_layers, num_photos, hidden_size)`.
            levels: the captions as levels of [`_levels`].
            num_captions: number of captions.

        Returns:
            Tensor of shape `(num_photos, num_captions)`.
        """
        h, c = (part.unsqueeze(1) for part in state)  # shape: (num_layers, prefixes, num_photos, hidden_size)
        num_photos = h.shape[2]
        scores = h.new_zeros(num_photos, num_captions, dtype=torch.float32)
        targets = scores.new_zeros(1, num_photos)  # log p so far, shape: (targets of the previous level, num_photos)
        step = max(1, PAIRS_A_STEP // num_photos)
        for level in levels:
            h, c = h[:, level.parents], c[:, level.parents]
            so_far = targets[level.parent_targets]
            prefixes = torch.tensor(level.target_prefixes, device=h.device)
            next_words = torch.tensor(level.target_words, device=h.device)
            targets = scores.new_empty(len(prefixes), num_photos)
            for start in range(0, len(level.words), step):
                part = slice(start, start + step)
                log_p = self._read(level.words[part], h[:, part], c[:, part])
                wanted = (prefixes >= start) & (prefixes < start + step)
                rows = prefixes[wanted]
                targets[wanted] = so_far[rows] + log_p[rows - start, :, next_words[wanted]]
            for caption, target in level.ends:
                scores[:, caption] = targets[target]
        return scores

    def _read(self, words: list[int], h: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
        """Read one more word of each prefix, and update `h` and `c` in place.

        Returns:
            log p of each next word, of shape `(prefixes, num_photos, vocab_size)`.
        """
        hidden_size = h.shape[-1]
        gates = F.linear(h[0], self.layers[0][1]).add_(self.word_gates[words].unsqueeze(1))
        for layer, (w_ih, w_hh, b_ih, b_hh) in enumerate(self.layers):
            if layer > 0:
                gates = F.linear(h[layer - 1], w_ih, b_ih).add_(F.linear(h[layer], w_hh, b_hh))
            i, f, o = gates[..., : 3 * hidden_size].sigmoid_().chunk(3, dim=-1)
            g = gates[..., 3 * hidden_size :].tanh_()
            c[layer].mul_(f).addcmul_(i, g)
            torch.mul(o, c[layer].tanh(), out=h[layer])
        return F.linear(h[-1], self.head_weight, self.head_bias).float().log_softmax(dim=-1)


def _pairs_bar(number: int, progress: bool) -> Any:
    return progress_bar(total=number, unit="pair", unit_scale=True, desc="Scoring captions", hidden=not progress)


def _gates_in_order(weights: torch.Tensor) -> torch.Tensor:
    """Reorder PyTorch's gates (input, forget, cell, output) to have the cell gate last, for one sigmoid call."""
    i, f, g, o = weights.chunk(4)
    return torch.cat([i, f, o, g])
