"""What several architectures share: AlexNet's normalisation and classifier, the mean of a map, how weights start."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from .registry import ModelArgumentError


def response_norm(neighbours: int = 5, alpha: float = 1e-4, beta: float = 0.75, k: float = 2.0) -> nn.LocalResponseNorm:
    """AlexNet's section 3.3: a / (k + alpha * sum of a² over the neighbouring maps) ** beta.

    torch multiplies alpha with the mean over the neighbours, the paper with the sum.
    """
    return nn.LocalResponseNorm(neighbours, alpha=alpha * neighbours, beta=beta, k=k)


class GlobalAverage(nn.Module):
    """The mean of every map, whatever its size: (B, C) of (B, C, H, W).

    AdaptiveAvgPool2d(1) does the same, but maps in channels_last make it restride its answer.
    """

    def forward(self, maps: Tensor) -> Tensor:
        """Means (B, C) of maps (B, C, H, W)."""
        return maps.mean((2, 3))


def classifier(inputs: int, width: int, num_classes: int, dropout: float) -> nn.Sequential:
    """AlexNet's and VGG's: two hidden linear layers of `width` units, dropout behind each, and the logits."""
    if width < 1:
        raise ModelArgumentError(f"the hidden linear layers need at least one unit, found width = {width}")
    return nn.Sequential(
        nn.Linear(inputs, width),
        nn.ReLU(inplace=True),
        nn.Dropout(dropout),
        nn.Linear(width, width),
        nn.ReLU(inplace=True),
        nn.Dropout(dropout),
        nn.Linear(width, num_classes),
    )


def start_weights(network: nn.Module, fan: Literal["fan_in", "fan_out"] = "fan_out") -> None:
    """Convolutions as He et al. (2015) have it, linear layers from N(0, 0.01²) as in AlexNet; every bias 0.

    fan: "fan_out" keeps the gradient's variance from layer to layer, "fan_in" that of the maps.
    Delving Deep into Rectifiers: https://arxiv.org/abs/1502.01852
    """
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode=fan, nonlinearity="relu")
        elif isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, 0.0, 0.01)
        if isinstance(layer, nn.Conv2d | nn.Linear) and layer.bias is not None:
            nn.init.zeros_(layer.bias)
