"""ResNet for 32 x 32 pictures: 6 n + 2 layers in three stages of 16, 32 and 64 maps (section 4.2 of the paper).

He, Zhang, Ren, Sun: Deep Residual Learning for Image Recognition, CVPR 2016. https://arxiv.org/abs/1512.03385
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from .layers import GlobalAverage, start_weights
from .registry import ModelArgumentError, register
from .resnet import PAPER, URL, BasicBlock, projection, silence_blocks, stage

DEPTHS = (20, 32, 44, 56, 110, 1202)


class PaddedIdentity(nn.Module):
    """The paper's option A for a shortcut whose shape changes: every stride-th pixel, and further maps of zeros."""

    def __init__(self, channels: int, maps: int, stride: int) -> None:
        super().__init__()
        self.missing, self.stride = maps - channels, stride

    def forward(self, maps: Tensor) -> Tensor:
        """Maps (B, maps, H / stride, W / stride) of maps (B, channels, H, W)."""
        return functional.pad(maps[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.missing))


SHORTCUTS = {"pad": PaddedIdentity, "projection": projection}


class CifarResNet(nn.Module):
    """3x3 convolution, three stages of `blocks` basic blocks, mean, logits."""

    def __init__(self, blocks: int, num_classes: int, channels: int, shortcut: str) -> None:
        super().__init__()
        make = SHORTCUTS[shortcut]
        self.conv1 = nn.Conv2d(channels, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = stage(BasicBlock, make, blocks, 16, 16, 1)
        self.layer2 = stage(BasicBlock, make, blocks, 16, 32, 2)
        self.layer3 = stage(BasicBlock, make, blocks, 32, 64, 2)
        self.avgpool = GlobalAverage()
        self.fc = nn.Linear(64, num_classes)
        start_weights(self)

    def forward(self, image: Tensor) -> Tensor:
        """Logits (B, K) of normalised pictures (B, C, H, W)."""
        maps = functional.relu(self.bn1(self.conv1(image)), inplace=True)
        maps = self.layer3(self.layer2(self.layer1(maps)))  # 32, 16, 8
        logits: Tensor = self.fc(self.avgpool(maps))
        return logits


def add(layers: int) -> None:
    """Register one depth."""

    @register(
        f"resnet{layers}",
        summary=f"ResNet of {layers} layers for small pictures",
        paper=PAPER,
        url=URL,
        size=32,
        channels=(1, 3),
    )
    def build(num_classes: int, channels: int = 3, shortcut: str = "pad", zero_init: bool = False) -> CifarResNet:
        if shortcut not in SHORTCUTS:
            raise ModelArgumentError(f"resnet{layers}'s shortcut is {' or '.join(SHORTCUTS)}, found {shortcut!r}")
        network = CifarResNet((layers - 2) // 6, num_classes, channels, shortcut)
        if zero_init:
            silence_blocks(network)
        return network


for _layers in DEPTHS:
    add(_layers)
