"""Tensors are put in place by name, and the versions that torch keeps beside them are not missed."""

from __future__ import annotations

import pytest
import torch

from trueport import models
from trueport.models.state import load_tensors


def test_a_network_that_asks_for_versions_is_loaded_from_bare_tensors() -> None:
    trained, other = (models.create("torchvision/mnasnet0_5", num_classes=3) for _ in range(2))
    tensors = dict(trained.state_dict())
    with pytest.raises(ValueError, match="version"):  # what torch makes of them
        other.load_state_dict(tensors)
    load_tensors(other, tensors)
    assert all(torch.equal(value, tensors[name]) for name, value in other.state_dict().items())


def test_other_names_and_shapes_are_refused() -> None:
    network = models.create("lenet", num_classes=3)
    with pytest.raises(RuntimeError, match="Missing key"):
        load_tensors(network, {})
    with pytest.raises(RuntimeError, match="size mismatch"):
        load_tensors(network, models.create("lenet", num_classes=4).state_dict())
