"""The app: captions of photos in a browser. It needs gradio, the extra `app`."""

from .scored_captions import AppCaptioner, ScoredCaption, ScoredWord
from .server import check_gradio, serve

__all__ = ["AppCaptioner", "ScoredCaption", "ScoredWord", "check_gradio", "serve"]
