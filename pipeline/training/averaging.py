"""The exponential moving average of a network's weights: what is validated, kept and exported in place of them.

Polyak, Juditsky: Acceleration of Stochastic Approximation by Averaging, SIAM J. Control Optim. 30 (1992).
https://doi.org/10.1137/0330046
"""

from __future__ import annotations

import copy
from collections.abc import Iterable

import torch
from torch import Tensor, nn


class Average:
    """A copy of a module that follows it, parameters and statistics of batch norms alike; counters are copied."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.module = copy.deepcopy(module).eval().requires_grad_(False)
        self._decay = decay
        pairs = list(zip(_tensors(self.module), _tensors(module), strict=True))
        followed = [pair for pair in pairs if pair[0].is_floating_point()]
        self._copied = [pair for pair in pairs if not pair[0].is_floating_point()]
        self._own = [own for own, _ in followed]
        self._others = [other.detach() for _, other in followed]

    def update(self, step: int) -> None:
        """Follow after a step of the whole training, counted from 1.

        The decay begins small, so that the first weights, which are random, are soon forgotten.
        """
        decay = min(self._decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self._own, self._others, 1 - decay)
        for own, other in self._copied:
            own.copy_(other)


def _tensors(module: nn.Module) -> Iterable[Tensor]:
    yield from module.parameters()
    yield from module.buffers()
