"""The captioners that come with the package: a folder each, without code."""

import os
from pathlib import Path

from ..lookup import holds_captioner

__all__ = ["DEFAULT", "captioner_names", "captioner_path", "example_photos"]

DEFAULT = "flickr8k"


def captioner_names() -> list[str]:
    """Names of the captioners that come with the package."""
    return sorted(file.parent.name for file in Path(__file__).parent.glob("*/config.json"))


def captioner_path(name_or_path: str | os.PathLike[str] | None = None) -> str:
    """Resolve the name of a captioner that comes with the package.

    Args:
        name_or_path: such a name, or any folder or Hub id, which is returned unchanged. A captioner of that name in
            the working directory comes first. Without a name: [`DEFAULT`].

    Returns:
        The folder of the captioner, or `name_or_path`.
    """
    name = DEFAULT if name_or_path is None else os.fspath(name_or_path)
    is_own = name_or_path is not None and holds_captioner(Path(name))
    return name if is_own or name not in captioner_names() else str(Path(__file__).parent / name)


def example_photos() -> list[Path]:
    """Photos that come with the package, free of copyright; `SOURCES.md` in their folder names where they are from."""
    return sorted(Path(__file__).parent.glob("photos/*.jpg"))
