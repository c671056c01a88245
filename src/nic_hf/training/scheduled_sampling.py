"""Scheduled sampling (Bengio et al. 2015, arXiv 1506.03099), as in the 2016 paper, in two passes."""

import torch

from ..configuration_nic import IGNORED_LABEL
from ..model.captioner import NICForConditionalGeneration


@torch.no_grad()
def mixed_inputs(
    model: NICForConditionalGeneration, inputs: dict[str, torch.Tensor], probability: float
) -> torch.Tensor:
    """Replace some input words of a caption by words sampled from the model.

    They are sampled in a first pass over the true caption (Mihaylova and Martins 2019, arXiv 1906.07651), at all steps
    at once instead of step by step. This pass without gradients makes a training step 1.6 times as long
    (`benchmarks/scheduled_sampling.py`).

    Args:
        model: the captioner.
        inputs: inputs of `forward`, with `labels` of shape `(..., sequence_length)`.
        probability: share of words, from 0 to 1, to sample from the model.

    Returns:
        `decoder_input_ids` with the shape of the labels.
    """
    labels = inputs["labels"]
    was_training = model.training
    model.eval()  # the BatchNorm of a backbone should count each photo once
    words = model.prepare_decoder_input_ids_from_labels(labels)
    logits = model(**inputs, return_dict=True).logits.view(*labels.shape, -1)
    model.train(was_training)
    # Tokens that generate() never generates.
    for word in (model.config.pad_token_id, model.config.bos_token_id, model.config.unk_token_id):
        logits[..., word] = -torch.inf  # one by one: indexing with a list waits for the GPU
    drawn = torch.distributions.Categorical(logits=logits.float(), validate_args=False).sample()
    sampled = torch.cat([words[..., :1], drawn[..., :-1]], dim=-1)  # the sampled word is the next input; <bos> stays
    replaced = torch.rand(labels.shape, device=labels.device) < probability
    replaced &= (labels != IGNORED_LABEL) & (sampled != model.config.eos_token_id)
    replaced[..., 0] = False
    return torch.where(replaced, sampled, words)
