"""Decoding over lists of words, written from its definition, to compare with."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from nic_hf import NICForConditionalGeneration

BOS, EOS = 1, 2
NEVER = [0, 1, 3]  # what the checkpoint's generation configuration suppresses

NextScores = Callable[[tuple[int, ...]], list[float]]
Caption = tuple[float, float, tuple[int, ...]]  # score with penalties, score without, words


def mean_next_scores(
    models: Sequence[NICForConditionalGeneration], features: Sequence[torch.Tensor], suppressed: Sequence[int] = NEVER
) -> NextScores:
    """log of the mean probability of each next word; `features` of one photo are one tensor per model."""
    known: dict[tuple[int, ...], list[float]] = {}

    @torch.no_grad()
    def next_scores(words: tuple[int, ...]) -> list[float]:
        if words not in known:
            ids = torch.tensor([[BOS, *words]])
            pairs = zip(models, features, strict=True)
            logits = [
                model(encoder_outputs=feature[None], decoder_input_ids=ids, use_cache=False)
                for model, feature in pairs
            ]
            mean = torch.stack([output.logits[0, -1].double().softmax(dim=-1) for output in logits]).mean(dim=0)
            scores = mean.log()
            scores[list(suppressed)] = -torch.inf
            known[words] = scores.tolist()
        return known[words]

    return next_scores


def words_of(row: torch.Tensor) -> tuple[int, ...]:
    """The generated words up to `<eos>`, without `<bos>` and padding."""
    words = row[1:].tolist()
    return tuple(words[: words.index(EOS) + 1] if EOS in words else words)


@dataclass
class Group:
    running: list[Caption] = field(default_factory=lambda: [(0.0, 0.0, ())])
    finished: list[Caption] = field(default_factory=list)
    is_open: bool = True


def plain_diverse_beam(
    next_scores: NextScores,
    num_beams: int,
    num_groups: int,
    penalty: float,
    length_penalty: float = 1.0,
    max_words: int = 9,
    number: int = 1,
    early_stopping: bool = False,
) -> list[tuple[tuple[int, ...], float]]:
    """The captions of a photo and their scores, best first."""
    width = num_beams // num_groups
    groups = [Group() for _ in range(num_groups)]
    for length in range(1, max_words + 1):
        chosen: Counter[int] = Counter()
        for position, group in enumerate(groups):
            if not group.is_open:
                continue
            candidates = [
                (steered + score - penalty * chosen[word], plain + score, (*words, word))
                for steered, plain, words in group.running
                for word, score in enumerate(next_scores(words))
            ]
            candidates.sort(key=lambda caption: -caption[0])
            taken = {words for earlier in groups[:position] for _, _, words in earlier.finished}
            top = [caption for caption in candidates if caption[2] not in taken][:width]
            ended = [caption for caption in top if caption[2][-1] == EOS or length == max_words]
            normal = length**length_penalty
            group.finished += [(steered / normal, plain / normal, words) for steered, plain, words in ended]
            group.finished = sorted(group.finished, key=lambda caption: -caption[0])[:width]
            if length < max_words:
                group.running = [caption for caption in candidates if caption[2][-1] != EOS][:width]
                chosen.update(words[-1] for _, _, words in group.running)
                full = len(group.finished) == width
                hopeless = full and group.running[0][0] / normal <= group.finished[-1][0]
                group.is_open = not hopeless and not (early_stopping and full)
    in_turn = [group.finished[rank] for rank in range(width) for group in groups if rank < len(group.finished)]
    best = sorted(in_turn[:number], key=lambda caption: -caption[1])
    return [(words, plain) for _, plain, words in best]
