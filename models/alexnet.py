"""AlexNet on 224 x 224 pictures, in one piece, and the half of it that one of the paper's two GPUs held.

Krizhevsky, Sutskever, Hinton: ImageNet Classification with Deep Convolutional Neural Networks, NIPS 2012.
https://papers.nips.cc/paper/4824-imagenet-classification-with-deep-convolutional-neural-networks
"""

from __future__ import annotations

from torch import Tensor, nn

from .layers import classifier, response_norm, start_weights
from .registry import register

PAPER = "ImageNet Classification with Deep Convolutional Neural Networks (Krizhevsky et al., 2012)"
URL = "https://papers.nips.cc/paper/4824-imagenet-classification-with-deep-convolutional-neural-networks"
Maps = tuple[int, int, int, int, int]


class AlexNet(nn.Module):
    """Five convolutions and three linear layers; `maps` of each convolution, `width` of the two hidden linear layers.

    Other than in the paper: every map sees all maps before it (there were two GPUs with a half each), and convolutions
    start as He et al. have it, biases at 0.
    """

    def __init__(self, num_classes: int, channels: int, maps: Maps, width: int, dropout: float) -> None:
        super().__init__()
        first, second, third, fourth, fifth = maps
        self.features = nn.Sequential(
            # One row and column before the picture, two after it: 224 are 3 short of 55 steps of 4.
            nn.ZeroPad2d((1, 2, 1, 2)),
            nn.Conv2d(channels, first, 11, stride=4),  # 55 x 55
            nn.ReLU(inplace=True),
            response_norm(),
            nn.MaxPool2d(3, stride=2),  # 27 x 27
            nn.Conv2d(first, second, 5, padding=2),
            nn.ReLU(inplace=True),
            response_norm(),
            nn.MaxPool2d(3, stride=2),  # 13 x 13
            nn.Conv2d(second, third, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(third, fourth, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(fourth, fifth, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, stride=2),  # 6 x 6
        )
        self.classifier = classifier(fifth * 6 * 6, width, num_classes, dropout)
        start_weights(self)

    def forward(self, image: Tensor) -> Tensor:
        """Logits (B, K) of normalised pictures (B, C, 224, 224)."""
        logits: Tensor = self.classifier(self.features(image).flatten(1))
        return logits


@register(
    "alexnet",
    summary="AlexNet: 96, 256, 384, 384, 256 maps, linear layers of 2048",
    paper=PAPER,
    url=URL,
    size=224,
    channels=(1, 3),
    sizes=((224, 224),),
)
def alexnet(num_classes: int, channels: int = 3, width: int = 2048, dropout: float = 0.5) -> AlexNet:
    """AlexNet with the paper's maps and linear layers of 2048 in place of 4096."""
    return AlexNet(num_classes, channels, (96, 256, 384, 384, 256), width, dropout)


@register(
    "alexnet_half",
    summary="half of AlexNet, as one of the paper's two GPUs held it: 48, 128, 192, 192, 128 maps",
    paper=PAPER,
    url=URL,
    size=224,
    channels=(1, 3),
    sizes=((224, 224),),
)
def alexnet_half(num_classes: int, channels: int = 3, width: int = 2048, dropout: float = 0.5) -> AlexNet:
    """One GPU's half of the paper's maps and of its linear layers."""
    return AlexNet(num_classes, channels, (48, 128, 192, 192, 128), width, dropout)
