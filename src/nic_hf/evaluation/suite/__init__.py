"""The tables of *Show and Tell* for a checkpoint, and the report that shows them."""

from .captioner_evaluation import PARTS, evaluate_captioner

__all__ = ["PARTS", "evaluate_captioner"]
