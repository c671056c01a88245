"""Digests of files, bytes, settings, weights and captioners: every comparison by content in the package uses these.

Digests are 128-bit BLAKE2b, in hexadecimal. Files that others may check have a SHA-256, as `sha256sum` prints it.

Settings that do not change the result are excluded everywhere: `NOT_COMPARED` lists where settings were loaded from,
which class or version wrote them, and the dtype, which the digest of the weights covers.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn
    from typing_extensions import Buffer

NOT_COMPARED = frozenset(
    {
        "_commit_hash",
        "_name_or_path",
        "auto_map",
        "custom_pipelines",
        "dtype",
        "processor_class",
        "torch_dtype",
        "transformers_version",
    }
)


def file_digest(file: str | os.PathLike[str]) -> str:
    """SHA-256 of a file."""
    with Path(file).open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def digest_of(parts: "Iterable[Buffer]") -> str:
    """Digest of bytes or buffers, joined."""
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        digest.update(part)
    return digest.hexdigest()


def raw_digest(content: "Buffer") -> bytes:
    """Digest of one piece of content as 16 bytes, for tables of millions of them."""
    return hashlib.blake2b(content, digest_size=16).digest()


def number_digest(name: str) -> int:
    """Digest of a name as a 64-bit number, for sets of names: two of 100 million share one with probability 0.0003."""
    return int.from_bytes(raw_digest(name.encode("utf-8", "surrogatepass"))[:8], "little")


def compared_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as plain JSON values, without those in `NOT_COMPARED`.

    >>> compared_settings({"hidden_size": 512, "_name_or_path": "runs/1"})
    {'hidden_size': 512}
    """
    kept = {name: value for name, value in settings.items() if name not in NOT_COMPARED}
    return json.loads(json.dumps(kept, default=str))


def settings_digest(*settings: Any) -> str:
    """Digest of values that JSON can hold (others as text); of mappings, without the settings in `NOT_COMPARED`."""
    compared = [compared_settings(each) if isinstance(each, Mapping) else each for each in settings]
    return digest_of([json.dumps(compared, sort_keys=True, default=str).encode()])


def weights_digest(module: "nn.Module") -> str:
    """Digest of a module's parameters and buffers."""
    import torch

    def parts() -> "Iterator[Buffer]":
        for name, tensor in sorted(module.state_dict().items()):
            yield name.encode()
            yield tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data

    return digest_of(parts())


def captioner_digest(model: Any, processor: Any) -> str:
    """Digest of everything that captions of a photo follow from: weights, words, preprocessing, generation settings.

    Args:
        model: a [`NICForConditionalGeneration`].
        processor: its [`NICProcessor`].
    """
    return settings_digest(
        weights_digest(model),
        json.loads(processor.tokenizer.backend_tokenizer.to_str())["model"],
        processor.image_processor.to_dict(),
        model.generation_config.to_diff_dict(),
    )
