"""GoogLeNet: nine inceptions with real 5x5 branches, and two auxiliary classifiers that only training sees.

Szegedy et al.: Going Deeper with Convolutions, CVPR 2015. https://arxiv.org/abs/1409.4842
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from .layers import GlobalAverage, response_norm, start_weights
from .registry import register

PAPER = "Going Deeper with Convolutions (Szegedy et al., 2014)"
URL = "https://arxiv.org/abs/1409.4842"


def convolution(channels: int, maps: int, kernel: int, batch_norm: bool, stride: int = 1) -> nn.Sequential:
    """A convolution that keeps the size (but for its stride) and a ReLU, with batch norm between them or without."""
    layers: list[nn.Module] = [nn.Conv2d(channels, maps, kernel, stride, kernel // 2, bias=not batch_norm)]
    if batch_norm:
        layers.append(nn.BatchNorm2d(maps))
    return nn.Sequential(*layers, nn.ReLU(inplace=True))


class Inception(nn.Module):
    """1x1, 3x3 and 5x5 convolutions and a pool side by side; the larger ones behind 1x1 convolutions with fewer maps.

    Maps are named as in the paper's table 1: #1x1, #3x3 reduce, #3x3, #5x5 reduce, #5x5, pool proj.
    """

    def __init__(
        self,
        channels: int,
        one: int,
        three_reduce: int,
        three: int,
        five_reduce: int,
        five: int,
        pool: int,
        batch_norm: bool,
    ) -> None:
        super().__init__()
        self.maps = one + three + five + pool
        self.one = convolution(channels, one, 1, batch_norm)
        self.three = nn.Sequential(
            convolution(channels, three_reduce, 1, batch_norm), convolution(three_reduce, three, 3, batch_norm)
        )
        self.five = nn.Sequential(
            convolution(channels, five_reduce, 1, batch_norm), convolution(five_reduce, five, 5, batch_norm)
        )
        self.pool = nn.Sequential(nn.MaxPool2d(3, stride=1, padding=1), convolution(channels, pool, 1, batch_norm))

    def forward(self, maps: Tensor) -> Tensor:
        """Maps (B, self.maps, H, W) of maps (B, channels, H, W)."""
        return torch.cat([self.one(maps), self.three(maps), self.five(maps), self.pool(maps)], 1)


class Auxiliary(nn.Module):
    """A classifier on maps half-way: pool, 128 1x1 convolutions, 1024 units, 70 % dropout, logits."""

    def __init__(self, channels: int, num_classes: int, batch_norm: bool) -> None:
        super().__init__()
        self.conv = convolution(channels, 128, 1, batch_norm)
        self.fc1 = nn.Linear(128 * 4 * 4, 1024)
        self.dropout = nn.Dropout(0.7)
        self.fc2 = nn.Linear(1024, num_classes)

    def forward(self, maps: Tensor) -> Tensor:
        """Logits (B, K) of maps (B, channels, H, W); 14 x 14 where pictures are 224 x 224."""
        if min(maps.shape[-2:]) >= 5:
            maps = functional.avg_pool2d(maps, 5, stride=3)  # the paper's: 14 x 14 -> 4 x 4
        maps = self.conv(functional.adaptive_avg_pool2d(maps, 4))
        hidden = self.dropout(functional.relu(self.fc1(maps.flatten(1))))
        logits: Tensor = self.fc2(hidden)
        return logits


class GoogLeNet(nn.Module):
    """Pools round sizes up, so that 224 goes 112, 56, 28, 14, 7; the last 7 x 7 are averaged whatever their size.

    Without batch norm, AlexNet's response normalisation is where the paper's figure 3 has it; the paper does not tell
    its constants nor how weights start. Pictures of other sizes reach the auxiliary classifiers' 4 x 4 by averaging.
    """

    def __init__(
        self, num_classes: int, channels: int, batch_norm: bool, auxiliaries: bool = True, dropout: float = 0.4
    ) -> None:
        super().__init__()
        norm = nn.Identity if batch_norm else response_norm
        self.stem = nn.Sequential(
            convolution(channels, 64, 7, batch_norm, stride=2),  # 112 x 112
            shrink(),  # 56 x 56
            norm(),
            convolution(64, 64, 1, batch_norm),
            convolution(64, 192, 3, batch_norm),
            norm(),
            shrink(),  # 28 x 28
        )
        self.inception3a = Inception(192, 64, 96, 128, 16, 32, 32, batch_norm)
        self.inception3b = Inception(256, 128, 128, 192, 32, 96, 64, batch_norm)
        self.pool3 = shrink()  # 14 x 14
        self.inception4a = Inception(480, 192, 96, 208, 16, 48, 64, batch_norm)
        self.inception4b = Inception(512, 160, 112, 224, 24, 64, 64, batch_norm)
        self.inception4c = Inception(512, 128, 128, 256, 24, 64, 64, batch_norm)
        self.inception4d = Inception(512, 112, 144, 288, 32, 64, 64, batch_norm)
        self.inception4e = Inception(528, 256, 160, 320, 32, 128, 128, batch_norm)
        self.pool4 = shrink()  # 7 x 7
        self.inception5a = Inception(832, 256, 160, 320, 32, 128, 128, batch_norm)
        self.inception5b = Inception(832, 384, 192, 384, 48, 128, 128, batch_norm)
        self.avgpool = GlobalAverage()
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(1024, num_classes)
        self.aux1 = Auxiliary(512, num_classes, batch_norm) if auxiliaries else None
        self.aux2 = Auxiliary(528, num_classes, batch_norm) if auxiliaries else None
        start_weights(self, "fan_in")

    def forward(self, image: Tensor) -> Tensor | tuple[Tensor, Tensor, Tensor]:
        """Logits (B, K) of normalised pictures (B, C, H, W); in training the auxiliary classifiers' after them."""
        maps = self.pool3(self.inception3b(self.inception3a(self.stem(image))))
        first = self.inception4a(maps)
        second = self.inception4d(self.inception4c(self.inception4b(first)))
        maps = self.pool4(self.inception4e(second))
        means = self.avgpool(self.inception5b(self.inception5a(maps)))
        logits: Tensor = self.fc(self.dropout(means))
        if self.training and self.aux1 is not None and self.aux2 is not None:
            return logits, self.aux1(first), self.aux2(second)
        return logits


def shrink() -> nn.MaxPool2d:
    """The pool between stages: half the size, rounded up."""
    return nn.MaxPool2d(3, stride=2, ceil_mode=True)


@register(
    "googlenet",
    summary="GoogLeNet: nine inceptions, two auxiliary classifiers in training",
    paper=PAPER,
    url=URL,
    size=224,
    channels=(1, 3),
    minimum=31,
)
def googlenet(num_classes: int, channels: int = 3, auxiliaries: bool = True, dropout: float = 0.4) -> GoogLeNet:
    """GoogLeNet as in the paper, with response normalisation."""
    return GoogLeNet(num_classes, channels, False, auxiliaries, dropout)


@register(
    "googlenet_bn",
    summary="GoogLeNet with batch norm behind every convolution, two auxiliary classifiers in training",
    paper=PAPER,
    url=URL,
    size=224,
    channels=(1, 3),
    minimum=31,
)
def googlenet_bn(num_classes: int, channels: int = 3, auxiliaries: bool = True, dropout: float = 0.4) -> GoogLeNet:
    """GoogLeNet with batch norm in place of response normalisation."""
    return GoogLeNet(num_classes, channels, True, auxiliaries, dropout)
