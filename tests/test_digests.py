"""Digests follow content, not where it came from."""

import hashlib
from copy import deepcopy
from pathlib import Path

import torch

from nic_hf.digests import compared_settings, digest_of, file_digest, settings_digest, weights_digest


def test_the_digest_of_a_file_is_what_sha256sum_prints(tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(b"dog")
    assert file_digest(tmp_path / "a.bin") == hashlib.sha256(b"dog").hexdigest()


def test_settings_are_compared_without_their_origin() -> None:
    here = {"hidden_size": 8, "_name_or_path": "runs/a", "transformers_version": "5.17.0", "dtype": torch.float32}
    there = {"hidden_size": 8, "_name_or_path": "runs/b"}
    assert compared_settings(here) == {"hidden_size": 8}
    assert settings_digest(here, "regions") == settings_digest(there, "regions")
    assert len({settings_digest(here), settings_digest({"hidden_size": 9}), settings_digest(here, "regions")}) == 3


def test_the_digest_of_weights_follows_names_values_and_dtype() -> None:
    model = torch.nn.Linear(2, 2)
    renamed = torch.nn.Sequential(model)
    changed = torch.nn.Linear(2, 2)
    found = {weights_digest(module) for module in (model, renamed, changed, deepcopy(model).half())}
    assert len(found) == 4
    assert weights_digest(renamed) == digest_of(
        part
        for name in ("0.bias", "0.weight")
        for part in (name.encode(), renamed.state_dict()[name].contiguous().view(torch.uint8).numpy().tobytes())
    )
