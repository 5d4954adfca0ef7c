"""LeNet-5 in its own sizes, with tanh and average pooling: 61,706 parameters for 1 channel and 10 classes.

LeCun, Bottou, Bengio, Haffner: Gradient-Based Learning Applied to Document Recognition, Proc. IEEE 86 (1998).
http://yann.lecun.com/exdb/publis/pdf/lecun-98.pdf
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from .registry import ModelArgumentError, register

TABLE = (
    *((0, 1, 2), (1, 2, 3), (2, 3, 4), (3, 4, 5), (0, 4, 5), (0, 1, 5)),
    *((0, 1, 2, 3), (1, 2, 3, 4), (2, 3, 4, 5), (0, 3, 4, 5), (0, 1, 4, 5), (0, 1, 2, 5)),
    *((0, 1, 3, 4), (1, 2, 4, 5), (0, 2, 3, 5), (0, 1, 2, 3, 4, 5)),
)
"""The maps of S2 that each map of C3 sees: the paper's table I."""
CONNECTIONS = ("full", "table")


class TableConv2d(nn.Conv2d):
    """A convolution whose every map sees the maps that a table lists, and whose other weights count for nothing."""

    seen: Tensor

    def __init__(self, table: tuple[tuple[int, ...], ...], channels: int, kernel_size: int) -> None:
        super().__init__(channels, len(table), kernel_size)
        seen = torch.tensor([[float(source in row) for source in range(channels)] for row in table])
        self.seen = nn.Buffer(seen[:, :, None, None], persistent=False)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 — Conv2d's name for it
        """Maps (B, len(table), H', W') of maps (B, channels, H, W)."""
        return functional.conv2d(input, self.weight * self.seen, self.bias)


@register(
    "lenet5",
    summary="LeNet-5 with 6 and 16 maps, tanh and average pooling; digits",
    paper="Gradient-Based Learning Applied to Document Recognition (LeCun et al., 1998)",
    url="http://yann.lecun.com/exdb/publis/pdf/lecun-98.pdf",
    size=32,
    channels=(1, 3),
    sizes=((32, 32),),
)
class LeNet5(nn.Module):
    """C1, S2, C3, S4, C5, F6 and the output, each with the paper's sizes.

    connections: of C3; "full": every map sees all six, "table": those of the paper's table I (1,516 parameters count).

    Other than in 1998: tanh is plain, not scaled; subsampling is the mean alone, without a coefficient, a bias and a
    tanh of its own; the output is linear, not distances to drawn characters; weights start as Glorot and Bengio (2010)
    have it.
    """

    def __init__(self, num_classes: int, channels: int = 3, connections: str = "full") -> None:
        super().__init__()
        if connections not in CONNECTIONS:
            raise ModelArgumentError(f"lenet5's connections are {' or '.join(CONNECTIONS)}, found {connections!r}")
        self.c1 = nn.Conv2d(channels, 6, 5)
        self.s2 = nn.AvgPool2d(2)
        self.c3 = TableConv2d(TABLE, 6, 5) if connections == "table" else nn.Conv2d(6, 16, 5)
        self.s4 = nn.AvgPool2d(2)
        self.c5 = nn.Conv2d(16, 120, 5)
        self.f6 = nn.Linear(120, 84)
        self.output = nn.Linear(84, num_classes)
        for name, parameter in self.named_parameters():
            if name.endswith("weight"):
                nn.init.xavier_uniform_(parameter)
            else:
                nn.init.zeros_(parameter)

    def forward(self, image: Tensor) -> Tensor:
        """Logits (B, K) of normalised pictures (B, C, 32, 32)."""
        maps = self.s2(torch.tanh(self.c1(image)))  # (B, 6, 14, 14)
        maps = self.s4(torch.tanh(self.c3(maps)))  # (B, 16, 5, 5)
        hidden = torch.tanh(self.c5(maps)).flatten(1)  # (B, 120)
        hidden = torch.tanh(self.f6(hidden))  # (B, 84)
        logits: Tensor = self.output(hidden)  # (B, K)
        return logits
