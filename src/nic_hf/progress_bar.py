"""Progress bars that the program or the environment variable `TQDM_DISABLE` can hide."""

from typing import Any

from tqdm.auto import tqdm


def progress_bar(*args: Any, hidden: bool = False, **kwargs: Any) -> tqdm:
    """Return a tqdm bar. `disable` is only passed to hide it: `disable=False` would override `TQDM_DISABLE`."""
    return tqdm(*args, **kwargs, **({"disable": True} if hidden else {}))
