"""What the activations' ranges say against a precision, layer by layer, before anybody deploys it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .activations import Activations
from .layers import layer_name, producers

if TYPE_CHECKING:
    import onnx

HALF_MAX = 65_504.0
"""The largest number of float16."""
HALF_SHARE = 0.25
"""Of it: pictures that were not looked at may reach four times as far."""
OUTLIERS = 8.0
"""So many times the 99.9th percentile: three of the 8 bits are then spent on a thousandth of the values."""
MOST = 20
"""Warnings of one variant; the worst come first."""


def half_warnings(model: onnx.ModelProto, activations: Activations) -> tuple[str, ...]:
    """Layers whose activations come near float16's end, or are beyond it."""
    reach = {name: seen.largest for name, seen in activations.items() if np.isfinite(seen.largest)}
    behind = producers(model)
    return _worst(
        {
            f"{layer_name(behind[name])} reaches {largest:,.0f}, "
            + ("beyond" if largest > HALF_MAX else f"{largest / HALF_MAX:.0%} of")
            + f" float16's {HALF_MAX:,.0f}: prefer bf16": largest
            for name, largest in reach.items()
            if largest > HALF_SHARE * HALF_MAX
        }
    )


def int8_warnings(model: onnx.ModelProto, activations: Activations) -> tuple[str, ...]:
    """Layers with a few values so large that the others share a fraction of the 256 levels."""
    behind = producers(model)
    told = {}
    for name, seen in activations.items():
        usual = max(-seen.quantile(0.0005), seen.quantile(0.9995)) if np.isfinite(seen.largest) else 0.0
        if usual > 0 and seen.largest > OUTLIERS * usual:
            ratio = seen.largest / usual
            text = f"{layer_name(behind[name])} reaches {seen.largest:.4g}, {ratio:.0f} times its 99.9th percentile"
            told[text] = ratio
    return _worst(told)


def _worst(told: dict[str, float]) -> tuple[str, ...]:
    texts = sorted(told, key=lambda text: -told[text])
    more = (f"and {len(texts) - MOST} more",) if len(texts) > MOST else ()
    return (*texts[:MOST], *more)
