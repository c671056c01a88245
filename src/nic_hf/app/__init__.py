"""The app: a page on which people drop photos and see captions."""

from .explained import CaptionExplainer, ExplainedCaption, ExplainedWord, heat_map
from .interface import build_app, launch

__all__ = ["CaptionExplainer", "ExplainedCaption", "ExplainedWord", "build_app", "heat_map", "launch"]
