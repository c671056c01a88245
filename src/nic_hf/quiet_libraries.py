"""Silence warnings of other libraries about what is not wrong."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def errors_only(name: str | None = None) -> Iterator[None]:
    """Make a logger (by default the root logger) log only errors, and hide Python warnings."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
