"""A small part of Flickr8k with the features of a real backbone, and trainers on it."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from one_thread import one_thread as one_thread
from subset import make_subset
from workshop import Workshop


@pytest.fixture(scope="session")
def subset(flickr8k: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Flickr8k folder of 16 photos for training, 5 for evaluation and 3 for the test."""
    return make_subset(flickr8k, tmp_path_factory.mktemp("flickr") / "subset", train=16, dev=5, test=3)


@pytest.fixture(scope="session")
def workshop(test_data: Path, subset: Path, tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    """What many tests of training start from; they must not change it."""
    return Workshop(test_data, subset, tmp_path_factory.mktemp("workshop"))


@pytest.fixture(scope="session")
def weights() -> Callable[[torch.nn.Module], dict[str, torch.Tensor]]:
    """A copy of all that a model learned."""
    return lambda model: {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
