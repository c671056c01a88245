"""Add the name of the photo to warnings that are raised while a photo is read."""

import logging
import sys
import warnings
from typing import Any

logger = logging.getLogger(__name__)

_MOST = 10_000  # remembered warnings, to bound memory


def name_photos_in_warnings() -> None:
    """Log warnings raised while [`nic_hf.images.load_photo`] reads a photo, each once per photo.

    Replaces `warnings.showwarning` for the process; other warnings are shown as before. Messages that libtiff writes
    to standard error itself cannot be attributed to a photo.
    """
    shown = warnings.showwarning
    if getattr(shown, "names_photos", False):
        return
    logged: set[tuple[str, str]] = set()

    def show(message: Any, category: Any, filename: str, lineno: int, file: Any = None, line: Any = None) -> None:
        images = sys.modules.get("nic_hf.images")  # not imported by commands that read no photos
        name = getattr(images and images.reading, "name", None)
        if name is None:
            shown(message, category, filename, lineno, file, line)
        elif (name, str(message)) not in logged:
            if len(logged) >= _MOST:
                logged.clear()
            logged.add((name, str(message)))
            logger.warning("%s: %s", name, str(message).strip())

    show.names_photos = True  # type: ignore[attr-defined]
    warnings.showwarning = show
    # Python shows each warning of Pillow for the first photo only. Other rules, such as -W, take precedence.
    warnings.filterwarnings("always", module=r"PIL\.", append=True)
