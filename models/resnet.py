"""ResNet for 224 x 224 pictures, of basic blocks and of bottlenecks; parameters are named as torchvision names them.

He, Zhang, Ren, Sun: Deep Residual Learning for Image Recognition, CVPR 2016. https://arxiv.org/abs/1512.03385
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn
from torch.nn import functional

from .layers import GlobalAverage, start_weights
from .registry import ModelArgumentError, register

PAPER = "Deep Residual Learning for Image Recognition (He et al., 2015)"
URL = "https://arxiv.org/abs/1512.03385"
STRIDES_IN = ("3x3", "1x1")


class BasicBlock(nn.Module):
    """Two 3x3 convolutions around which the input goes; `shortcut` is what it passes there, None: nothing."""

    def __init__(self, channels: int, maps: int, stride: int = 1, shortcut: nn.Module | None = None) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, maps, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(maps)
        self.conv2 = nn.Conv2d(maps, maps, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(maps)
        self.downsample = shortcut

    @property
    def last_norm(self) -> nn.BatchNorm2d:
        """The norm before the sum."""
        return self.bn2

    def forward(self, maps: Tensor) -> Tensor:
        """Maps (B, maps, H / stride, W / stride) of maps (B, channels, H, W)."""
        residual = functional.relu(self.bn1(self.conv1(maps)), inplace=True)
        residual = self.bn2(self.conv2(residual))
        passed = maps if self.downsample is None else self.downsample(maps)
        return functional.relu(residual + passed, inplace=True)


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions, the last with `maps` maps and the others with a quarter of them.

    stride_in: the convolution that has the stride; the paper's is the first 1x1.
    """

    def __init__(
        self, channels: int, maps: int, stride: int = 1, shortcut: nn.Module | None = None, stride_in: str = "3x3"
    ) -> None:
        super().__init__()
        first, second = (1, stride) if stride_in == "3x3" else (stride, 1)
        self.conv1 = nn.Conv2d(channels, maps // 4, 1, first, bias=False)
        self.bn1 = nn.BatchNorm2d(maps // 4)
        self.conv2 = nn.Conv2d(maps // 4, maps // 4, 3, second, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(maps // 4)
        self.conv3 = nn.Conv2d(maps // 4, maps, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(maps)
        self.downsample = shortcut

    @property
    def last_norm(self) -> nn.BatchNorm2d:
        """The norm before the sum."""
        return self.bn3

    def forward(self, maps: Tensor) -> Tensor:
        """Maps (B, maps, H / stride, W / stride) of maps (B, channels, H, W)."""
        residual = functional.relu(self.bn1(self.conv1(maps)), inplace=True)
        residual = functional.relu(self.bn2(self.conv2(residual)), inplace=True)
        residual = self.bn3(self.conv3(residual))
        passed = maps if self.downsample is None else self.downsample(maps)
        return functional.relu(residual + passed, inplace=True)


Block = BasicBlock | Bottleneck
MakeBlock = Callable[[int, int, int, nn.Module | None], Block]
MakeShortcut = Callable[[int, int, int], nn.Module]


class ResNet(nn.Module):
    """7x7 convolution, pool, four stages of `blocks` blocks with `maps` maps, then twice as many each, mean, logits."""

    def __init__(
        self, make: MakeBlock, blocks: tuple[int, int, int, int], maps: int, num_classes: int, channels: int
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 64, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        self.layer1 = stage(make, projection, blocks[0], 64, maps, 1)
        self.layer2 = stage(make, projection, blocks[1], maps, maps * 2, 2)
        self.layer3 = stage(make, projection, blocks[2], maps * 2, maps * 4, 2)
        self.layer4 = stage(make, projection, blocks[3], maps * 4, maps * 8, 2)
        self.avgpool = GlobalAverage()
        self.fc = nn.Linear(maps * 8, num_classes)
        start_weights(self)

    def forward(self, image: Tensor) -> Tensor:
        """Logits (B, K) of normalised pictures (B, C, H, W)."""
        maps = self.maxpool(functional.relu(self.bn1(self.conv1(image)), inplace=True))  # 224 -> 56
        maps = self.layer4(self.layer3(self.layer2(self.layer1(maps))))  # 56, 28, 14, 7
        logits: Tensor = self.fc(self.avgpool(maps))
        return logits


def projection(channels: int, maps: int, stride: int) -> nn.Sequential:
    """The paper's option B for a shortcut whose shape changes: a 1x1 convolution."""
    return nn.Sequential(nn.Conv2d(channels, maps, 1, stride, bias=False), nn.BatchNorm2d(maps))


def stage(make: MakeBlock, shortcut: MakeShortcut, blocks: int, channels: int, maps: int, stride: int) -> nn.Sequential:
    """Blocks of equal shape; the first of them changes it, and then needs a shortcut of its own."""
    changed = stride != 1 or channels != maps
    first = make(channels, maps, stride, shortcut(channels, maps, stride) if changed else None)
    return nn.Sequential(first, *(make(maps, maps, 1, None) for _ in range(blocks - 1)))


def silence_blocks(network: nn.Module) -> None:
    """Start the last norm of every block at zero, so that the block passes its input on (Goyal et al., 2017).

    https://arxiv.org/abs/1706.02677, section 5.1
    """
    for block in network.modules():
        if isinstance(block, Block):
            nn.init.zeros_(block.last_norm.weight)


def add_basic(layers: int, blocks: tuple[int, int, int, int]) -> None:
    """Register a ResNet of basic blocks."""

    @register(
        f"resnet{layers}",
        summary=f"ResNet of {layers} layers in basic blocks",
        paper=PAPER,
        url=URL,
        size=224,
        channels=(1, 3),
        imagenet=f"resnet{layers}",
    )
    def build(num_classes: int, channels: int = 3, zero_init: bool = False) -> ResNet:
        network = ResNet(BasicBlock, blocks, 64, num_classes, channels)
        if zero_init:
            silence_blocks(network)
        return network


def add_bottleneck(layers: int, blocks: tuple[int, int, int, int]) -> None:
    """Register a ResNet of bottlenecks."""

    @register(
        f"resnet{layers}",
        summary=f"ResNet of {layers} layers in bottlenecks",
        paper=PAPER,
        url=URL,
        size=224,
        channels=(1, 3),
        imagenet=f"resnet{layers}",
    )
    def build(num_classes: int, channels: int = 3, stride_in: str = "3x3", zero_init: bool = False) -> ResNet:
        if stride_in not in STRIDES_IN:
            raise ModelArgumentError(f"resnet{layers}'s stride_in is {' or '.join(STRIDES_IN)}, found {stride_in!r}")

        def make(channels: int, maps: int, stride: int, shortcut: nn.Module | None) -> Bottleneck:
            return Bottleneck(channels, maps, stride, shortcut, stride_in)

        network = ResNet(make, blocks, 256, num_classes, channels)
        if zero_init:
            silence_blocks(network)
        return network


add_basic(18, (2, 2, 2, 2))
add_basic(34, (3, 4, 6, 3))
add_bottleneck(50, (3, 4, 6, 3))
add_bottleneck(101, (3, 4, 23, 3))
add_bottleneck(152, (3, 8, 36, 3))
