"""Progress bars that a program, or its user by `TQDM_DISABLE`, can turn off."""

from typing import Any

from tqdm.auto import tqdm


def progress_bar(*args: Any, hidden: bool = False, **kwargs: Any) -> tqdm:
    """tqdm's bar; hidden where either the caller or `TQDM_DISABLE` wants that: `disable=False` would overrule it."""
    return tqdm(*args, **kwargs, **({"disable": True} if hidden else {}))
