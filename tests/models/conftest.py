"""What tests of architectures share."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

OutputShapes = Callable[..., list[tuple[int, ...]]]


@pytest.fixture
def output_shapes() -> OutputShapes:
    """A function: the shapes, without the batch, of what layers of some kinds answer, in the order they run."""

    def watch(network: nn.Module, image: Tensor, *kinds: type[nn.Module]) -> list[tuple[int, ...]]:
        shapes = []
        hooks = [
            layer.register_forward_hook(lambda _, __, answer: shapes.append(tuple(answer.shape[1:])))
            for layer in network.modules()
            if isinstance(layer, kinds)
        ]
        with torch.no_grad():
            network(image)
        for hook in hooks:
            hook.remove()
        return shapes

    return watch


@pytest.fixture
def lively() -> Callable[[nn.Module], nn.Module]:
    """A function: eval mode, with running statistics and affine parameters in batch norms that are not 0 and 1."""

    def enliven(network: nn.Module) -> nn.Module:
        generator = torch.Generator().manual_seed(1)
        for layer in network.modules():
            if isinstance(layer, nn.BatchNorm2d):
                assert layer.running_mean is not None
                assert layer.running_var is not None
                layer.running_mean.normal_(0, 0.1, generator=generator)
                layer.running_var.uniform_(0.5, 1.5, generator=generator)
                nn.init.uniform_(layer.weight, 0.5, 1.0, generator=generator)
                nn.init.normal_(layer.bias, 0, 0.1, generator=generator)
        return network.eval()

    return enliven
