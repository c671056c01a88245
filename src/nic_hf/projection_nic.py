"""From the backbone's feature to what the LSTM reads first, and to the words of the caption."""

import torch
from torch import nn
from torch.nn import functional as F

from .configuration_nic import NICConfig

RARE = -6.0  # log-odds, before training, of a word in a caption: nearly all words are in none


class NICImageProjection(nn.Module):
    """Feature to the LSTM's first input, x(-1) = CNN(I) in equation 7, by way of standardisation and a linear layer.

    `mean` and `std`, of the features of the training photos, travel with the weights. They start as 0 and 1; pooled
    features of a CNN are far from zero mean, and an LSTM learns several times faster when they are standardised.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, feature_size: int, embedding_size: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(feature_size))
        self.register_buffer("std", torch.ones(feature_size))
        self.linear = nn.Linear(feature_size, embedding_size)

    def forward(self, image_features: torch.Tensor) -> torch.Tensor:
        """Project features of shape `(..., feature_size)` to `(..., embedding_size)`."""
        standardised = (image_features.to(self.linear.weight.dtype) - self.mean) / self.std
        return self.linear(standardised)


class NICBagOfWords(nn.Linear):
    """Which words a caption has, told by the projected image alone; a help in training."""

    def __init__(self, config: NICConfig) -> None:
        super().__init__(config.embedding_size, config.vocab_size)
        self.factor = config.bag_of_words_loss
        self.eos_token_id = config.eos_token_id
        self.dropout = nn.Dropout(config.dropout)

    def loss(self, images: torch.Tensor, labels: torch.Tensor, is_word: torch.Tensor) -> torch.Tensor:
        """Binary cross-entropy, summed over the vocabulary and the captions, times the configuration's factor.

        Args:
            images (`torch.FloatTensor` of shape `(batch_size, embedding_size)`): the projected images.
            labels (`torch.LongTensor` of shape `(num_captions, sequence_length)`): those of an image lie together.
            is_word (`torch.BoolTensor` of that shape): false where padded.
        """
        logits = self(self.dropout(F.relu(images))).float()
        logits = logits.repeat_interleave(len(labels) // len(images), dim=0)
        is_word = is_word & (labels != self.eos_token_id)
        words = torch.zeros_like(logits).scatter_reduce_(
            1, labels.clamp_min(0), is_word.to(logits.dtype), reduce="amax"
        )
        losses = F.binary_cross_entropy_with_logits(logits, words, reduction="none").sum(dim=1)
        return self.factor * losses[is_word.any(dim=1)].sum()  # without rows that are all padding
