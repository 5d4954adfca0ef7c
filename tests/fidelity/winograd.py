"""A faithful port at its worst: the original with its convolutions computed as fast as float32 allows.

Lavin and Gray's F(4x4, 3x3) (Fast Algorithms for Convolutional Neural Networks, CVPR 2016) multiplies a quarter as
often as the definition says and is less exact, which libraries take into the bargain. No bound for float32 may fail it;
how near it comes is what the bounds' headroom is for.
"""

from __future__ import annotations

import copy
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from trueport.export.original import Original, OriginalRunner, original_from_bundle
from trueport.pipeline.deployment import Deployment
from trueport.runtime.bundle import Bundle
from trueport.runtime.runner import Runner, RunnerOptions

WINOGRAD = "winograd"
"""The runner's name."""
_INPUT = (
    (4, 0, -5, 0, 1, 0),
    (0, -4, -4, 1, 1, 0),
    (0, 4, -4, -1, 1, 0),
    (0, -2, -1, 2, 1, 0),
    (0, 2, -1, -2, 1, 0),
    (0, 4, 0, -5, 0, 1),
)
_WEIGHT = (
    (1 / 4, 0, 0),
    (-1 / 6, -1 / 6, -1 / 6),
    (-1 / 6, 1 / 6, -1 / 6),
    (1 / 24, 1 / 12, 1 / 6),
    (1 / 24, -1 / 12, 1 / 6),
    (0, 0, 1),
)
_OUTPUT = ((1, 1, 1, 1, 1, 0), (0, 1, -1, 2, -2, 0), (0, 1, 1, 4, 4, 0), (0, 1, -1, 8, -8, 1))


class WinogradConv(nn.Module):
    """A 3x3 convolution of stride 1, in tiles of 4x4: (N, C, H, W) -> (N, K, H', W')."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.conv, self.padding = conv, tuple(int(size) for size in conv.padding)
        self.before, self.after = (nn.Buffer(torch.tensor(rows, dtype=torch.float32)) for rows in (_INPUT, _OUTPUT))
        spread = torch.tensor(_WEIGHT, dtype=torch.float32)
        self.weight = nn.Buffer((spread @ conv.weight.detach() @ spread.T).permute(2, 3, 1, 0).contiguous())

    def forward(self, maps: Tensor) -> Tensor:
        """Transform, multiply by place in the tile, transform back."""
        high, wide = (size + 2 * pad - 2 for size, pad in zip(maps.shape[2:], self.padding, strict=True))
        down, across = -(-high // 4), -(-wide // 4)
        (top, left), (bottom, right) = self.padding, (4 * down - high, 4 * across - wide)
        maps = functional.pad(maps, (left, left + right, top, top + bottom))
        tiles = maps.unfold(2, 6, 4).unfold(3, 6, 4).permute(4, 5, 0, 2, 3, 1)  # (6, 6, N, down, across, C)
        products = _on_both_sides(self.before, tiles).flatten(2, 4) @ self.weight  # (6, 6, N * down * across, K)
        made = _on_both_sides(self.after, products)  # (4, 4, N * down * across, K)
        whole = made.reshape(4, 4, len(maps), down, across, -1).permute(2, 5, 3, 0, 4, 1)
        answer = whole.reshape(len(maps), -1, 4 * down, 4 * across)[:, :, :high, :wide]
        return answer if self.conv.bias is None else answer + self.conv.bias.reshape(-1, 1, 1)


def _on_both_sides(matrix: Tensor, tiles: Tensor) -> Tensor:
    """The matrix times each tile times its transpose: (i, j), (j, j, ...) -> (i, i, ...)."""
    for _ in range(2):
        tiles = (matrix @ tiles.flatten(1)).reshape(len(matrix), *tiles.shape[1:]).transpose(0, 1)
    return tiles


def served_by_winograd(bundle: Bundle) -> Deployment | None:
    """The bundle's original as such a port of it; None where it has no convolution of the kind."""
    original = original_from_bundle(bundle)
    fast = _fast(original)
    if fast is None:
        return None

    def opened(_: Bundle, runner: str, variant: str, options: RunnerOptions) -> Runner:
        return OriginalRunner(fast, options.threads)

    return Deployment(bundle, open=opened, runners=(WINOGRAD,))


def _fast(original: Original) -> Original | None:
    module = copy.deepcopy(original.module)
    found = [(name, part) for name, part in module.named_modules() if isinstance(part, nn.Conv2d) and _fits(part)]
    for name, part in found:
        module.set_submodule(name, WinogradConv(part))
    return replace(original, module=module) if found else None


def _fits(conv: nn.Conv2d) -> bool:
    return (
        (conv.kernel_size, conv.stride, conv.dilation, conv.groups) == ((3, 3), (1, 1), (1, 1), 1)
        and conv.padding_mode == "zeros"
        and not isinstance(conv.padding, str)
    )
