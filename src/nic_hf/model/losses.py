"""Losses of training that the paper does not have: words predicted from the image, even attention, distillation."""

import torch
from torch import nn
from torch.nn import functional as F

from ..configuration_nic import NICConfig

RARE = -6.0  # log-odds of a word in a caption before training: nearly all words are in none


def bag_of_words_loss(
    layer: nn.Linear, images: torch.Tensor, labels: torch.Tensor, is_word: torch.Tensor, config: NICConfig
) -> torch.Tensor:
    """Binary cross-entropy of the words of captions, predicted from projected images, summed over all words.

    Args:
        layer: from images to the vocabulary.
        images (`torch.FloatTensor` of shape `(batch_size, embedding_size)`): the projected images.
        labels (`torch.LongTensor` of shape `(num_captions, sequence_length)`): captions of an image are adjacent.
        is_word (`torch.BoolTensor` of shape `(num_captions, sequence_length)`): `False` at padding.
        config: gives `dropout`, `eos_token_id` and the factor `bag_of_words_loss`.
    """
    logits = layer(F.dropout(F.relu(images), config.dropout)).float()
    logits = logits.repeat_interleave(len(labels) // len(images), dim=0)
    is_word = is_word & (labels != config.eos_token_id)
    words = torch.zeros_like(logits).scatter_reduce_(1, labels.clamp_min(0), is_word.to(logits.dtype), reduce="amax")
    losses = F.binary_cross_entropy_with_logits(logits, words, reduction="none").sum(dim=1)
    return config.bag_of_words_loss * losses[is_word.any(dim=1)].sum()  # without captions that are all padding


def doubly_stochastic_penalty(weights: torch.Tensor, is_word: torch.Tensor) -> torch.Tensor:
    """sum_i (1 - sum_t alpha_ti)^2, summed over captions: the second term of equation 14, without its factor lambda.

    Source: Xu et al. 2015, Show, Attend and Tell, https://arxiv.org/abs/1502.03044.

    Args:
        weights (`torch.FloatTensor` of shape `(num_captions, sequence_length, num_regions)`): attention weights.
        is_word (`torch.BoolTensor` of shape `(num_captions, sequence_length)`): `False` at padding. Captions that are
            all padding are left out.
    """
    seen = (weights.float() * is_word.unsqueeze(-1)).sum(dim=1)  # shape: (num_captions, num_regions)
    return ((1 - seen).square().sum(dim=-1) * is_word.any(dim=-1)).sum()


def soft_cross_entropy(logits: torch.Tensor, words: torch.Tensor, probabilities: torch.Tensor) -> torch.Tensor:
    """-sum_w p(w) log q(w), the mean over positions: p are probabilities to learn, q those of the logits.

    Source: Hinton et al. 2015, Distilling the Knowledge in a Neural Network, https://arxiv.org/abs/1503.02531.

    Args:
        logits (`torch.FloatTensor` of shape `(num_words, vocab_size)`): predictions.
        words (`torch.LongTensor` of shape `(num_words, k)`): the words of p.
        probabilities (`torch.FloatTensor` of shape `(num_words, k)`): p, which sums to 1.
    """
    logits = logits.float()
    expected = (logits.gather(-1, words) * probabilities).sum(dim=-1)
    return (logits.logsumexp(dim=-1) - expected).mean()
