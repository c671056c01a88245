"""Published results, shown next to ours in the report.

All are from Vinyals et al. 2015, Show and Tell (arXiv 1411.4555), except the re-implementation with a frozen VGG-16.
"""

from typing import Any

# Flickr8k test split, in percent as published.
GENERATION: list[dict[str, Any]] = [
    {"system": "the paper: GoogLeNet, beam 20, ensemble", "bleu_1": 63, "bleu_2": 41, "bleu_3": 27},
    {
        "system": "re-implemented: frozen VGG-16, beam 3",
        "bleu_1": 60.8,
        "bleu_2": 42.4,
        "bleu_3": 29.0,
        "bleu_4": 19.8,
        "meteor": 19.1,
        "rouge_l": 44.7,
        "cider": 47.8,
    },
]

# R@1 and R@10 in percent, and the median rank.
RANKING: list[dict[str, Any]] = [
    {"system": "the paper, Flickr8k", "direction": "annotation", "recall_1": 20, "recall_10": 61, "median_rank": 6},
    {"system": "the paper, Flickr8k", "direction": "search", "recall_1": 19, "recall_10": 64, "median_rank": 5},
    {"system": "the paper, Flickr30k", "direction": "annotation", "recall_1": 17, "recall_10": 56, "median_rank": 7},
    {"system": "the paper, Flickr30k", "direction": "search", "recall_1": 17, "recall_10": 57, "median_rank": 7},
]

# Share of the best captions that are in the training set, and share of the 15 best that are not.
BEST_IN_TRAINING = 0.80
NOVEL_OF_15_BEST = 0.5

TRANSFER = "Flickr30k to Flickr8k: 4 BLEU points above the Flickr8k model; COCO to Flickr8k: 10 points below"

# Words whose nearest neighbours the paper prints.
NEIGHBOUR_WORDS = ("car", "boy", "street", "horse", "computer")
