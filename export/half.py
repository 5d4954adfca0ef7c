"""The original in 16 bits: what it answers, and so what a port in 16 bits may differ by.

Products are computed in float32 of 16-bit factors and rounded, which is what matrix units do; torch's own kernels for
the CPU are slow in 16 bits, not all there, and round elsewhere on each processor. Attention is taken apart into its
products and its softmax, as in the graph. Recurrent layers, which torch has as one kernel, are left to that.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from trueport.runtime.errors import ExportError
from trueport.runtime.manifest import Bounds
from trueport.runtime.runner import run_in_batches

from .golden import HEADROOM, bounds_of
from .original import Original, OriginalRunner
from .written import Rows

if TYPE_CHECKING:
    import torch

ADDING = ("addmm", "addmv", "addr", "addbmm", "baddbmm")
PRODUCTS = (*ADDING, "convolution", "mm", "bmm", "mv", "dot", "_trilinear")
"""Torch's operators that sum up products; those first add to a tensor, and can do so in place."""
ROWS = 32
"""Of the golden inputs, the extremes among them: the rounding of each is a sample of the same noise."""


def half_bounds(
    original: Original, images: Rows, exact: NDArray[Any], dtype: torch.dtype, max_drop: float | None
) -> Bounds:
    """What a port in `dtype` may differ by: the original in it against itself in float64.

    images: the golden inputs (N, H, W, C). exact: what the original answers to them in float64 (N, K).
    Raises ExportError where its numbers don't fit 16 bits.
    """
    rows = np.unique(np.linspace(len(images) - 1, 0, ROWS).round().astype(np.int64))
    name = str(dtype).removeprefix("torch.")
    logits = answers_in(original, images[rows], dtype)
    if not np.isfinite(logits).all():
        raise ExportError(
            f"the original's activations or weights overflow in {name}: export bf16 in place of fp16, or fp32 alone"
        )
    noise_from = (f"{name}, products in float32, {len(rows)} golden inputs",)
    deviation = logits.astype(np.float64) - exact[rows]
    return bounds_of([deviation], np.abs(exact).max(), HEADROOM, noise_from, max_drop)


def answers_in(original: Original, images: Rows, dtype: torch.dtype) -> NDArray[np.float32]:
    """Logits (N, K) of the original in 16 bits."""
    with _attention_in_parts(), _products_in_float32():
        return run_in_batches(OriginalRunner(original, dtype=dtype), images).astype(np.float32)


@contextmanager
def _attention_in_parts() -> Iterator[None]:
    """No kernel that computes it in one; torch has one setting for the whole process, which is put back."""
    from torch.backends import cuda, mha  # cuda's is that of the CPU too
    from torch.nn.attention import SDPBackend, sdpa_kernel

    fast, low = mha.get_fastpath_enabled(), cuda.fp16_bf16_reduction_math_sdp_allowed()  # type: ignore[no-untyped-call]
    mha.set_fastpath_enabled(False)
    cuda.allow_fp16_bf16_reduction_math_sdp(True)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        mha.set_fastpath_enabled(fast)
        cuda.allow_fp16_bf16_reduction_math_sdp(low)


def _products_in_float32() -> Any:
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_map_only

    aten = torch.ops.aten
    products = {getattr(aten, name).default for name in PRODUCTS}
    in_place = {getattr(aten, f"{name}_").default: getattr(aten, name).default for name in ADDING}

    def in_float32(function: Any, args: Any, options: Any) -> Any:
        kinds = set()

        def raised(tensor: torch.Tensor) -> torch.Tensor:
            kinds.add(tensor.dtype)
            return tensor.float() if tensor.dtype in {torch.float16, torch.bfloat16} else tensor

        args, options = tree_map_only(torch.Tensor, raised, (args, options))
        low = next(iter(kinds & {torch.float16, torch.bfloat16}), torch.float32)
        return tree_map_only(torch.Tensor, lambda tensor: tensor.to(low), function(*args, **options))

    class ProductsInFloat32(TorchDispatchMode):  # type: ignore[no-untyped-call]
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            kwargs = kwargs or {}
            if func in products:
                return in_float32(func, args, kwargs)
            if func in in_place:
                return args[0].copy_(in_float32(in_place[func], args, kwargs))
            with self:  # without autograd what consists of others, conv2d and linear too, arrives here whole
                result = func.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
            try:
                return func(*args, **kwargs)
            except NotImplementedError:  # torch has no such kernel for the CPU: local response norm in float16
                return in_float32(func, args, kwargs)

    return ProductsInFloat32()  # type: ignore[no-untyped-call]
