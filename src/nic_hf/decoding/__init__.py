"""More from the captioners there are: ensembles, averaged weights, and captions that differ."""

from .diverse_beam import diverse_beam_search
from .ensemble import NICEnsemble, NICEnsembleCache
from .soup import average_checkpoints

__all__ = ["NICEnsemble", "NICEnsembleCache", "average_checkpoints", "diverse_beam_search"]
