"""The module was exported in another state than it was trained and measured in.

Planted into the original, which is then exported again.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ..deployment import Deployment
from .catalogue import DoesNotApplyError, Healthy, fault

if TYPE_CHECKING:
    from torch import Tensor, nn


def _norms(module: nn.Module) -> list[tuple[str, nn.BatchNorm2d]]:
    from torch import nn

    found = [(name, part) for name, part in module.named_modules() if isinstance(part, nn.BatchNorm2d)]
    if not found:
        raise DoesNotApplyError("the model has no batch norm")
    return found


def _change_norms(healthy: Healthy, change: Callable[[nn.BatchNorm2d], None]) -> Deployment:
    original = healthy.original()
    for _, norm in _norms(original.module):
        change(norm)
    return healthy.with_exported(original)


@fault("training batch norm", "batch norm normalises by the batch, as in training", "onnx")
def leave_batch_norm_in_training(healthy: Healthy) -> Deployment:
    """model.eval() was forgotten before the export."""
    import torch
    from torch import nn

    original = healthy.original()

    class ByTheBatch(nn.Module):
        def __init__(self, norm: nn.BatchNorm2d) -> None:
            super().__init__()
            count = norm.num_features
            self.weight = nn.Parameter(norm.weight if norm.affine else torch.ones(count))
            self.bias = nn.Parameter(norm.bias if norm.affine else torch.zeros(count))
            self.eps = norm.eps

        def forward(self, maps: Tensor) -> Tensor:
            mean = maps.mean((0, 2, 3), keepdim=True)
            spread = ((maps - mean) ** 2).mean((0, 2, 3), keepdim=True)
            scale = self.weight.reshape(1, -1, 1, 1) / (spread + self.eps).sqrt()
            return (maps - mean) * scale + self.bias.reshape(1, -1, 1, 1)

    for name, norm in _norms(original.module):
        original.module.set_submodule(name, ByTheBatch(norm))
    return healthy.with_exported(original)


@fault("reset batch norm", "batch norm's statistics are those of an untrained network", "onnx")
def lose_the_statistics(healthy: Healthy) -> Deployment:
    """Buffers are no parameters: a checkpoint of parameters alone loses them, and strict=False hides it."""
    return _change_norms(healthy, lambda norm: norm.reset_running_stats())


@fault("batch norm epsilon", "batch norm has another epsilon", "onnx")
def change_epsilon(healthy: Healthy) -> Deployment:
    """1e-5 in torch, 1e-3 in Keras and in several reimplementations of one network."""

    def change(norm: nn.BatchNorm2d) -> None:
        norm.eps = 1e-3 if norm.eps < 1e-3 else 1e-5

    return _change_norms(healthy, change)


@fault("dropout", "dropout still drops", "onnx")
def leave_dropout_on(healthy: Healthy) -> Deployment:
    """The model was exported in training mode, or a functional dropout does not look at the mode."""
    import torch
    from torch import nn

    original = healthy.original()

    class Dropping(nn.Module):
        def __init__(self, share: float) -> None:
            super().__init__()
            self.share = share

        def forward(self, values: Tensor) -> Tensor:
            return values * (torch.rand_like(values) > self.share) / (1 - self.share)

    found = [(name, part) for name, part in original.module.named_modules() if isinstance(part, nn.Dropout)]
    if not found:
        raise DoesNotApplyError("the model has no dropout")
    for name, part in found:
        original.module.set_submodule(name, Dropping(part.p))
    return healthy.with_exported(original)


@fault("auxiliary head", "an auxiliary classifier was exported", "onnx")
def export_an_auxiliary_head(healthy: Healthy) -> Deployment:
    """In training mode several networks answer a tuple, and an exporter or a converter takes the wrong part of it."""
    import torch
    from torch import nn

    original = healthy.original()
    network = copy.deepcopy(original.module)
    network.training = True  # of the network alone: its layers stay in eval mode

    class Auxiliary(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def train(self, mode: bool = True) -> Auxiliary:
            """Stay as it is, whoever asks."""
            del mode
            return self

        def forward(self, image: Tensor) -> Any:
            return self.network(image)[1]

    height, width, channels = original.preprocessing.shape
    with torch.no_grad():
        answer = network(torch.zeros(2, channels, height, width))
    if not isinstance(answer, tuple) or len(answer) < 2:
        raise DoesNotApplyError("the model has no auxiliary classifier")
    return healthy.with_exported(replace(original, module=Auxiliary()))
