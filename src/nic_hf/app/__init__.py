"""Web app that captions photos in the browser. It needs gradio (`nic_hf[app]`)."""

from .scored_captions import AppCaptioner, ScoredCaption, ScoredWord
from .server import check_gradio, serve

__all__ = ["AppCaptioner", "ScoredCaption", "ScoredWord", "check_gradio", "serve"]
