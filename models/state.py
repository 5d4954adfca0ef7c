"""Tensors by name into a network, as files without torch's own notes hold them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping

from torch import Tensor, nn


def load_tensors(network: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Put every tensor in its place. Raises RuntimeError where names or shapes are not the network's.

    A state dict carries the version of each layer beside its tensors, safetensors does not: the layers' own are taken,
    since torchvision's MNASNet refuses to load without.
    """
    state = OrderedDict(tensors)
    state._metadata = network.state_dict()._metadata  # type: ignore[attr-defined]
    network.load_state_dict(state)
