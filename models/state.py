"""A network's tensors by name, as files without torch's own notes hold them: out of it and into it."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping

import torch
from torch import Tensor, nn


def load_tensors(network: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Put every tensor in its place. Raises RuntimeError where names or shapes are not the network's.

    A state dict carries the version of each layer beside its tensors, safetensors does not: the layers' own are taken,
    since torchvision's MNASNet refuses to load without.
    """
    state = OrderedDict(tensors)
    state._metadata = network.state_dict()._metadata  # type: ignore[attr-defined]
    network.load_state_dict(state)


def stored(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies on the CPU that share no memory: safetensors refuses tensors that do, as some networks' are."""
    return {
        name: value.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
        for name, value in tensors.items()
    }
