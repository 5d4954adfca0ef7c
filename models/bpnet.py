"""The back-propagation network that reads licence-plate digits: 25 shares of white, one hidden layer.

The picture is made grey, then black and white, inside the graph; the shares of white in 5 x 5 windows are what learns.
Rumelhart, Hinton, Williams: Learning representations by back-propagating errors, Nature 323 (1986).
https://doi.org/10.1038/323533a0
The threshold is Otsu's, where asked for: A Threshold Selection Method from Gray-Level Histograms, IEEE Transactions on
Systems, Man, and Cybernetics 9 (1979). https://doi.org/10.1109/TSMC.1979.4310076
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from .registry import ModelArgumentError, register

WINDOWS = 5
"""Windows across and down."""
ROWS, COLUMNS = 5, 3
"""Pixels of one window."""
WIDTHS = range(COLUMNS * (WINDOWS - 1) + 1, COLUMNS * WINDOWS + 1)
"""Pixels across a crop that five windows cover, the last of them perhaps in part."""
LUMA = (19595.0, 38470.0, 7471.0)
"""Red, green and blue in grey (ITU-R BT.601: 0.299, 0.587, 0.114) in 65,536ths, as Pillow's mode L has it."""
OVERFLOWS = ("pad", "narrow")


@register(
    "bpnet",
    summary="25 shares of white pixels, one sigmoid layer; digits of licence plates, cropped to 25 x 15",
    paper="Learning representations by back-propagating errors (Rumelhart et al., 1986)",
    url="https://doi.org/10.1038/323533a0",
    size=(WINDOWS * ROWS, WINDOWS * COLUMNS),
    channels=(1, 3),
    sizes=tuple((WINDOWS * ROWS, width) for width in reversed(WIDTHS)),
    mean=0.0,
    std=1.0,
    own_scale=True,
)
class BPNet(nn.Module):
    """Grey, black and white, share of white in 5 x 5 windows, sigmoid layer, logits. Pictures are on a scale of 0 to 1.

    hidden: units of the hidden layer. threshold: a pixel is white where its grey level, 0 to 255, is above it.
    otsu: Otsu's threshold over the training pictures takes its place before the first epoch.
    overflow: what the windows at the right edge of crops of 13 and 14 columns do: "pad" counts the missing columns as
    black, "narrow" takes the share of the columns that are there.

    White is what is counted, be it the digit (white on blue plates) or the ground (black on yellow ones): to the layer
    behind it, a share and its complement are the same. Only "pad" is not indifferent: it suits bright digits.
    What is before the hidden layer has no gradient and needs none.
    """

    threshold: Tensor

    def __init__(
        self,
        num_classes: int,
        channels: int = 3,
        hidden: int = 64,
        threshold: int = 127,
        otsu: bool = False,
        overflow: str = "pad",
    ) -> None:
        super().__init__()
        if hidden < 1:
            raise ModelArgumentError(f"bpnet needs at least one hidden unit, found hidden = {hidden}")
        if not 0 <= threshold < 255:
            raise ModelArgumentError(f"bpnet's threshold is a grey level of 0 to 254, found {threshold}")
        if overflow not in OVERFLOWS:
            raise ModelArgumentError(f"bpnet's overflow is {' or '.join(OVERFLOWS)}, found {overflow!r}")
        self.channels, self.otsu, self.overflow = channels, otsu, overflow
        self.threshold = nn.Buffer(torch.tensor(threshold))  # an integer stays itself in half precision
        self.hidden = nn.Linear(WINDOWS * WINDOWS, hidden)
        self.output = nn.Linear(hidden, num_classes)
        for layer in (self.hidden, self.output):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    def adapt(self, images: Tensor) -> None:
        """Put Otsu's threshold over pictures (N, C, H, W) in place, where that was asked for."""
        if self.otsu:
            self.threshold.fill_(otsu_threshold(histogram(images)))

    def forward(self, image: Tensor) -> Tensor:
        """Logits (B, K) of pictures (B, C, 25, W), W from 13 to 15. Raises ModelArgumentError for another size."""
        logits: Tensor = self.output(torch.sigmoid(self.hidden(self.shares(image))))
        return logits

    def shares(self, image: Tensor) -> Tensor:
        """Share of white, 0 to 1, in each window: (B, 25), row by row."""
        channels, height, width = image.shape[1:]
        if channels != self.channels or height != WINDOWS * ROWS or width not in WIDTHS:
            raise ModelArgumentError(
                f"bpnet was built for crops of {WINDOWS * ROWS} rows, {WIDTHS.start} to {WIDTHS.stop - 1} columns and "
                f"{self.channels} channels, found {height} x {width} and {channels} channels: set preprocessing.size"
            )
        missing = WINDOWS * COLUMNS - width
        white = (grey_levels(image) > self.threshold.float() + 0.5).to(image.dtype)
        windows = functional.pad(white, (0, missing)).reshape(-1, WINDOWS, ROWS, WINDOWS, COLUMNS)
        counts = windows.sum((2, 4))  # (B, 5, 5)
        columns = [COLUMNS] * WINDOWS
        if self.overflow == "narrow":
            columns[-1] -= missing
        shares: Tensor = counts / (ROWS * counts.new_tensor(columns))
        return shares.flatten(1)


def grey_levels(image: Tensor) -> Tensor:
    """Grey levels (B, H, W), whole numbers from 0 to 255, of pictures (B, C, H, W) on a scale of 0 to 1.

    All sums are of whole numbers below 2**24, which float32 holds exactly: every runtime, in any order, gets Pillow's
    level and so the same pixels above a threshold.
    """
    levels = (image.float() * 255).round()
    if image.shape[1] == 1:
        return levels[:, 0]
    weighted = levels * levels.new_tensor(LUMA).reshape(3, 1, 1)
    return ((weighted.sum(1) + 2**15) / 2**16).floor()


def histogram(images: Tensor) -> Tensor:
    """How many pixels of pictures (N, C, H, W) have each grey level: (256,), on the CPU."""
    counts = torch.zeros(256, dtype=torch.int64)
    for part in torch.split(images, 1024):
        counts += torch.bincount(grey_levels(part).long().flatten().cpu(), minlength=256)
    return counts


def otsu_threshold(counts: Tensor) -> int:
    """The grey level that parts pixels up to it from those above with the largest variance between the two.

    Where several do, as between two separate peaks, the middle of them: it is farthest from either.
    """
    pixels = counts.double()
    dark, mass = pixels.cumsum(0), (pixels * torch.arange(256)).cumsum(0)
    bright = dark[-1] - dark
    distance = (mass[-1] - mass) / bright - mass / dark
    between = (dark * bright * distance**2).nan_to_num(0.0)[:-1]
    best = (between == between.max()).nonzero()
    return int(best[0] + best[-1]) // 2
