"""Warnings about photos, with the names of the photos: Pillow does not say which of many it warns of."""

import logging
import sys
import warnings
from typing import Any

logger = logging.getLogger(__name__)

_MOST = 10_000  # warnings that are remembered, so that memory does not grow with the number of photos


def name_photos_in_warnings() -> None:
    """Log what Python warns of while [`nic_hf.images.load_photo`] reads a photo, each thing once a photo.

    This is for whole processes: other warnings are shown as before. What libtiff writes on standard error by itself
    cannot be told apart by thread, and has no name.
    """
    shown = warnings.showwarning
    if getattr(shown, "names_photos", False):
        return
    logged: set[tuple[str, str]] = set()

    def show(message: Any, category: Any, filename: str, lineno: int, file: Any = None, line: Any = None) -> None:
        images = sys.modules.get("nic_hf.images")  # not imported: commands that read no photo need not wait for it
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
    # Python would show each of Pillow's warnings for the first photo only. Other rules, such as -W's, go first.
    warnings.filterwarnings("always", module=r"PIL\.", append=True)
