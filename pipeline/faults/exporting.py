"""The module is right as it runs, and what torch.export makes of it is another."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from ..deployment import Deployment
from .catalogue import DoesNotApplyError, Healthy, fault

if TYPE_CHECKING:
    from torch import Tensor, nn

    from trueport.export.original import Original
    from trueport.runtime.bundle import Bundle


@fault("export branch", "the module takes another branch while it is exported", "export")
def branch_while_exporting(healthy: Healthy) -> Deployment:
    """A forward that asks whether it is being exported and then goes a simpler way, left behind when the other changed.

    The deployment brings the original as its application has it: what runs is right, and all that is exported is not.
    """
    original = _branching(healthy.original())
    rebuild = healthy.deployment.original

    def brought(bundle: Bundle, trust_code: bool) -> Original:
        return _branching(rebuild(bundle, trust_code))

    return replace(healthy.with_exported(original), original=brought)


def _branching(original: Original) -> Original:
    """The same, its first layer with a bias without it while it is exported. Raises DoesNotApplyError without one."""
    import torch
    from torch import nn

    class Branching(nn.Module):
        def __init__(self, layer: nn.Conv2d | nn.Linear) -> None:
            super().__init__()
            self.layer = layer

        def forward(self, maps: Tensor) -> Tensor:
            answer: Tensor = self.layer(maps)
            if not torch.compiler.is_exporting() or self.layer.bias is None:
                return answer
            return answer - self.layer.bias.reshape(-1, *[1] * (answer.dim() - 2))

    for name, layer in original.module.named_modules():
        if isinstance(layer, nn.Conv2d | nn.Linear) and layer.bias is not None:
            original.module.set_submodule(name, Branching(layer))
            return original
    raise DoesNotApplyError("no convolution or linear layer has a bias")
