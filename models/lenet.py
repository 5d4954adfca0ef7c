"""LeNet with ReLU and max-pooling on 32 x 32 pictures: 121,182 parameters for 3 channels and 10 classes.

LeCun, Bottou, Bengio, Haffner: Gradient-Based Learning Applied to Document Recognition, Proc. IEEE 86 (1998).
http://yann.lecun.com/exdb/publis/pdf/lecun-98.pdf
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from .registry import register


@register(
    "lenet",
    summary="two 5x5 convolutions, three linear layers; digits and other small pictures",
    paper="Gradient-Based Learning Applied to Document Recognition (LeCun et al., 1998)",
    url="http://yann.lecun.com/exdb/publis/pdf/lecun-98.pdf",
    size=32,
    channels=(1, 3),
    sizes=((32, 32),),
)
class LeNet(nn.Module):
    """LeNet-5 with 16 and 32 feature maps, ReLU for tanh and max-pooling for trainable subsampling."""

    def __init__(self, num_classes: int, channels: int = 3) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 16, 5)
        self.conv2 = nn.Conv2d(16, 32, 5)
        self.fc1 = nn.Linear(32 * 5 * 5, 120)
        self.fc2 = nn.Linear(120, 84)
        self.fc3 = nn.Linear(84, num_classes)

    def forward(self, image: Tensor) -> Tensor:
        """Logits (B, K) of normalised pictures (B, C, 32, 32)."""
        maps = functional.max_pool2d(functional.relu(self.conv1(image)), 2)  # (B, 16, 14, 14)
        maps = functional.max_pool2d(functional.relu(self.conv2(maps)), 2)  # (B, 32, 5, 5)
        hidden = functional.relu(self.fc1(maps.flatten(1)))  # (B, 120)
        hidden = functional.relu(self.fc2(hidden))  # (B, 84)
        logits: Tensor = self.fc3(hidden)  # (B, K)
        return logits
