"""The precision that a runner reached: its layers by the type they compute in, held against what was asked for."""

from __future__ import annotations

from collections.abc import Mapping

from ..errors import PrecisionError
from ..manifest import Variant


def require_reached(variant: Variant, layers: Mapping[str, int], by: str) -> None:
    """Raise PrecisionError where layers that compute do so in another type than the variant's.

    layers: by type, as the runner itself tells them; a network without any has nothing to miss.
    by: who computes. Of an int8 variant layers may stay in float, as long as one is computed in integers.
    """
    if not layers or is_reached(variant, layers):
        return
    found = " and ".join(sorted(kind for kind in layers if kind != variant.precision))
    raise PrecisionError(
        f"expected {variant.name} to be computed in {variant.precision}, {by} computes it in {found} "
        f"({shown(layers)}): run it where {variant.precision} is computed, or the fp32 variant here"
    )


def is_reached(variant: Variant, layers: Mapping[str, int]) -> bool:
    """Whether layers by type are what the variant asks for."""
    if variant.precision == "int8":
        return "int8" in layers
    return layers.keys() <= {variant.precision, *variant.reached}  # a graph may keep some in another type


def shown(layers: Mapping[str, int]) -> str:
    """Such as `20 layers in int8, 1 in fp32`, the most first."""
    counts = sorted(layers.items(), key=lambda item: (-item[1], item[0]))
    if not counts:
        return "no layers that compute"
    (kind, count), *others = counts
    first = f"{count} layer{'s' if count != 1 else ''} in {kind}"
    return ", ".join((first, *(f"{count} in {kind}" for kind, count in others)))
