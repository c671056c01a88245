"""Ensembles, averaged checkpoints, diverse beam search and consensus decoding."""

from .checkpoint_averaging import average_checkpoints
from .consensus import CaptionSimilarity, ConsensusDecoding
from .diverse_beam import diverse_beam_search
from .ensemble import NICEnsemble, NICEnsembleCache

__all__ = [
    "CaptionSimilarity",
    "ConsensusDecoding",
    "NICEnsemble",
    "NICEnsembleCache",
    "average_checkpoints",
    "diverse_beam_search",
]
