"""Planted deployment faults: what `trueport check --self-test` shows its gates, a kind of fault a file."""

from . import (  # noqa: F401 -- each registers its faults
    engines,
    evidence,
    exporting,
    graph,
    int8_kernels,
    labels,
    network,
    normalisation,
    optimising,
    precision,
    preprocessing,
    runners,
    weights,
)
from .catalogue import FAULTS, DoesNotApplyError, Fault, Healthy

__all__ = ["FAULTS", "DoesNotApplyError", "Fault", "Healthy"]
