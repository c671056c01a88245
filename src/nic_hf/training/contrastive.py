"""A contrastive loss: a caption should be more likely for its photo than for similar photos.

The loss is the noise-contrastive bound of the mutual information of photo and caption (van den Oord et al. 2018,
https://arxiv.org/abs/1807.03748), with the captioner's own likelihood as the score. It is trained to rank photos by
log p(caption | photo), as in Tables 4 and 5 of the 2015 paper.
"""

from typing import Any

import torch
from torch.nn import functional as F

from ..configuration_nic import IGNORED_LABEL
from .arguments import CaptioningTrainingArguments

NEGATIVES = 4  # similar photos that a caption is compared with


class ContrastiveLoss:
    """The contrastive loss of training, with its weight, and its mean for the log.

    Args:
        args: gives `contrastive_weight`.
    """

    def __init__(self, args: CaptioningTrainingArguments) -> None:
        self.args = args
        self._sum: torch.Tensor | None = None  # since the last log entry
        self._number = 0

    def __call__(
        self,
        model: Any,
        image_features: torch.Tensor,
        labels: torch.Tensor,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor:
        """The weighted loss; see [`contrastive_loss`].

        Args:
            model, image_features, labels: as for [`contrastive_loss`].
            num_items_in_batch: words of all batches of the step, if Trainer divides by them and not by the number of
                batches.
        """
        loss = contrastive_loss(model, image_features, labels)
        self._sum = loss.detach() if self._sum is None else self._sum + loss.detach()
        self._number += 1
        share: Any = 1.0
        if num_items_in_batch is not None:
            share = (labels != IGNORED_LABEL).sum() / num_items_in_batch
        return self.args.contrastive_weight * share * loss

    def mean(self) -> dict[str, float]:
        """The mean loss since the last call, as a log entry; empty if there was none."""
        if self._sum is None:
            return {}
        mean = self._sum.item() / self._number
        self._sum, self._number = None, 0
        return {"contrastive_loss": mean}


def contrastive_loss(
    model: Any, image_features: torch.Tensor, labels: torch.Tensor, negatives: int = NEGATIVES
) -> torch.Tensor:
    """-log of p(caption | its photo) over the sum of p(caption | photo) for its photo and similar ones of the batch.

    One caption of each photo is drawn at random.

    Args:
        model (`NICForConditionalGeneration`): the captioner.
        image_features (`torch.FloatTensor` of shape `(batch_size, feature_size)` or, with attention, of shape
            `(batch_size, num_regions, feature_size)`): features of the photos.
        labels (`torch.LongTensor` of shape `(batch_size, sequence_length)` or `(batch_size, num_captions,
            sequence_length)`): their captions, -100 at padding.
        negatives: how many of the most similar other photos, by the cosine of their features, to compare with.

    Returns:
        The mean over the captions, a scalar; 0 if no photo has a caption or another one to compare with.
    """
    labels = labels if labels.ndim == 3 else labels.unsqueeze(1)
    has_words = (labels != IGNORED_LABEL).any(-1)
    drawn = torch.where(has_words, torch.rand_like(has_words, dtype=torch.float), -1.0).argmax(1)
    captions = labels[torch.arange(len(labels), device=labels.device), drawn]  # shape: (batch_size, sequence_length)
    similarity = photo_similarity(model, image_features)
    similar = similarity.topk(min(negatives, len(labels) - 1), dim=1)
    photos = torch.cat([torch.arange(len(labels), device=labels.device).unsqueeze(1), similar.indices], dim=1)
    number = photos.shape[1]
    targets = captions.repeat_interleave(number, dim=0)
    logits = model(
        encoder_outputs=image_features[photos.flatten()],
        decoder_input_ids=model.prepare_decoder_input_ids_from_labels(targets),
        use_cache=False,
        return_dict=True,
    ).logits
    losses = F.cross_entropy(
        logits.float().transpose(1, 2), targets, ignore_index=IGNORED_LABEL, reduction="none"
    ).sum(dim=1)
    scores = -losses.unflatten(0, (len(labels), number))
    scores = torch.cat([scores[:, :1], scores[:, 1:].masked_fill(similar.values.isinf(), -torch.inf)], dim=1)
    each = -scores.log_softmax(dim=1)[:, 0]
    return (each * has_words.any(1)).sum() / has_words.any(1).sum().clamp_min(1)


@torch.no_grad()
def photo_similarity(model: Any, image_features: torch.Tensor) -> torch.Tensor:
    """Cosine of the standardised features of each two photos, -inf for the same photo, of shape `(batch_size,) * 2`.

    With attention it is that of the mean of the regions.
    """
    projection = model.image_projection
    features = ((image_features - projection.mean) / projection.std).float()
    if features.ndim == 3:
        features = features.mean(dim=1)
    names = features.unique(dim=0, return_inverse=True)[1]  # a photo may be there once for each caption
    directions = F.normalize(features, dim=1)
    return (directions @ directions.T).masked_fill(names.unsqueeze(0) == names.unsqueeze(1), -torch.inf)
