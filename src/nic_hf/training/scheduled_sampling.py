"""Scheduled sampling (Bengio et al. 2015, arXiv 1506.03099), which the 2016 paper trains with, in two passes."""

import torch

from ..configuration_nic import IGNORED_LABEL
from ..model.captioner import NICForConditionalGeneration


@torch.no_grad()
def mixed_inputs(
    model: NICForConditionalGeneration, inputs: dict[str, torch.Tensor], probability: float
) -> torch.Tensor:
    """Words to read in training: the caption's own, some replaced by what the model would have said there.

    The words said come from a first pass over the true caption (Mihaylova and Martins 2019, arXiv 1906.07651), all
    steps at once, and not from a loop step by step. That costs one pass without gradients, so that a training step
    takes 1.6 times as long (`benchmarks/scheduled_sampling.py`).

    Args:
        model: the captioner.
        inputs: of `forward`, with `labels` of shape `(..., sequence_length)`.
        probability: share of words, from 0 to 1, that are drawn from the model's distribution.

    Returns:
        `decoder_input_ids` of the shape of the labels.
    """
    labels = inputs["labels"]
    was_training = model.training
    model.eval()  # a backbone's BatchNorm should count each photo once
    words = model.prepare_decoder_input_ids_from_labels(labels)
    logits = model(**inputs, return_dict=True).logits.view(*labels.shape, -1)
    model.train(was_training)
    # Never what generate() never says.
    for word in (model.config.pad_token_id, model.config.bos_token_id, model.config.unk_token_id):
        logits[..., word] = -torch.inf  # one by one: a list of them would be copied to the GPU, which waits
    drawn = torch.distributions.Categorical(logits=logits.float(), validate_args=False).sample()
    said = torch.cat([words[..., :1], drawn[..., :-1]], dim=-1)  # what was said last is read next; <bos> stays
    replaced = torch.rand(labels.shape, device=labels.device) < probability
    replaced &= (labels != IGNORED_LABEL) & (said != model.config.eos_token_id)
    replaced[..., 0] = False
    return torch.where(replaced, said, words)
