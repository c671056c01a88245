"""Web app that captions photos in the browser. It needs gradio (`nic_hf[app]`)."""

from typing import TYPE_CHECKING

from .._lazy import lazy_names

if TYPE_CHECKING:
    from .address import check_address
    from .scored_captions import AppCaptioner, ScoredCaption, ScoredWord
    from .server import check_gradio, serve

_MODULES = {
    "AppCaptioner": "scored_captions",
    "ScoredCaption": "scored_captions",
    "ScoredWord": "scored_captions",
    "check_address": "address",
    "check_gradio": "server",
    "serve": "server",
}

__all__ = ["AppCaptioner", "ScoredCaption", "ScoredWord", "check_address", "check_gradio", "serve"]

__getattr__, __dir__ = lazy_names(__name__, _MODULES)
