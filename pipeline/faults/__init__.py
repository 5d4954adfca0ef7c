"""Planted deployment faults: what `trueport check --self-test` shows its gates, a kind of fault a file."""

from . import (  # noqa: F401 -- each registers its faults, in this order
    preprocessing,
    labels,
    evidence,
    normalisation,
    network,
    graph,
    weights,
    precision,
    runners,
    int8_kernels,
    engines,
)
from .catalogue import FAULTS, DoesNotApplyError, Fault, Healthy

__all__ = ["FAULTS", "DoesNotApplyError", "Fault", "Healthy"]
