"""VGG, configurations A to E with and without batch norm; parameters are named as torchvision names them.

Simonyan, Zisserman: Very Deep Convolutional Networks for Large-Scale Image Recognition, ICLR 2015.
https://arxiv.org/abs/1409.1556
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from .layers import classifier, response_norm, start_weights
from .registry import register

MAPS = (64, 128, 256, 512, 512)
"""Maps in each of the five stages; a pool halves the picture after each."""


@dataclass(frozen=True)
class Configuration:
    """A column of the paper's table 1."""

    kernels: tuple[tuple[int, ...], ...]
    """Of the convolutions of each stage, in pixels."""
    response_norm: bool = False
    """Whether AlexNet's normalisation follows the first convolution."""
    torchvision: str | None = None
    """torchvision's name for it."""

    @property
    def layers(self) -> int:
        """Layers with weights."""
        return sum(len(stage) for stage in self.kernels) + 3


A = ((3,), (3,), (3, 3), (3, 3), (3, 3))
CONFIGURATIONS = {
    "a": Configuration(A, torchvision="vgg11"),
    "a_lrn": Configuration(A, response_norm=True),
    "b": Configuration(((3, 3), (3, 3), (3, 3), (3, 3), (3, 3)), torchvision="vgg13"),
    "c": Configuration(((3, 3), (3, 3), (3, 3, 1), (3, 3, 1), (3, 3, 1))),
    "d": Configuration(((3, 3), (3, 3), (3, 3, 3), (3, 3, 3), (3, 3, 3)), torchvision="vgg16"),
    "e": Configuration(((3, 3), (3, 3), (3, 3, 3, 3), (3, 3, 3, 3), (3, 3, 3, 3)), torchvision="vgg19"),
}


class VGG(nn.Module):
    """Stages of small convolutions, brought to 7 x 7, and three linear layers, `width` units in the hidden two.

    Pictures of 224 x 224 arrive at 7 x 7 by themselves; others are averaged or repeated there, as in torchvision.
    """

    def __init__(
        self,
        configuration: Configuration,
        batch_norm: bool,
        num_classes: int,
        channels: int,
        width: int,
        dropout: float,
    ) -> None:
        super().__init__()
        self.features = features(configuration, channels, batch_norm)
        self.avgpool = nn.AdaptiveAvgPool2d((7, 7))
        self.classifier = classifier(MAPS[-1] * 7 * 7, width, num_classes, dropout)
        start_weights(self)

    def forward(self, image: Tensor) -> Tensor:
        """Logits (B, K) of normalised pictures (B, C, H, W) of at least 32 x 32."""
        logits: Tensor = self.classifier(self.avgpool(self.features(image)).flatten(1))
        return logits


def features(configuration: Configuration, channels: int, batch_norm: bool) -> nn.Sequential:
    """The convolutions, each with its ReLU, and the pools."""
    layers: list[nn.Module] = []
    for maps, kernels in zip(MAPS, configuration.kernels, strict=True):
        for kernel in kernels:
            layers.append(nn.Conv2d(channels, maps, kernel, padding=kernel // 2))
            if batch_norm:
                layers.append(nn.BatchNorm2d(maps))
            layers.append(nn.ReLU(inplace=True))
            if configuration.response_norm and len(layers) <= 3:
                layers.append(response_norm())
            channels = maps
        layers.append(nn.MaxPool2d(2, stride=2))
    return nn.Sequential(*layers)


def add(letter: str, configuration: Configuration, batch_norm: bool) -> None:
    """Register one configuration."""
    suffix = "_bn" if batch_norm else ""
    title = letter.upper().replace("_", "-")
    imagenet = configuration.torchvision and configuration.torchvision + suffix

    @register(
        f"vgg_{letter}{suffix}",
        summary=f"VGG, configuration {title}: {configuration.layers} layers" + ", batch norm" * batch_norm,
        paper="Very Deep Convolutional Networks for Large-Scale Image Recognition (Simonyan & Zisserman, 2014)",
        url="https://arxiv.org/abs/1409.1556",
        size=224,
        channels=(1, 3),
        minimum=32,
        imagenet=imagenet,
        aliases=(imagenet,) if imagenet else (),
    )
    def build(num_classes: int, channels: int = 3, width: int = 4096, dropout: float = 0.5) -> VGG:
        return VGG(configuration, batch_norm, num_classes, channels, width, dropout)


for _letter, _configuration in CONFIGURATIONS.items():
    for _batch_norm in (False, True):
        add(_letter, _configuration, _batch_norm)
