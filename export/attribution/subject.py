"""What is looked at: a bundle's graphs, its recording, the original where it can be had, and inputs for all."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from trueport.runtime.bundle import Bundle
from trueport.runtime.errors import ExportError, MissingError, TrueportError, TrustError, missing_extra
from trueport.runtime.manifest import Variant

from ..original import Original, original_from_bundle

if TYPE_CHECKING:
    import onnx

Rows = NDArray[np.uint8]
Logits = NDArray[np.floating[Any]]
Order = NDArray[np.int64]
"""Rows, by index."""
NO_ORDER: Order = np.arange(0)
PIXELS = 2_000_000
"""Of all inputs together, so that a network for large pictures is asked a few dozen of them."""
FEWEST = 48
"""Inputs at the least, where the bundle has so many."""
CLOSE = 8
"""Inputs that a departure is looked at on."""
TENSOR_PIXELS = 150_000
"""Of the inputs whose every tensor is held, in several copies: VGG-16's of one picture of 224 x 224 take 120 MB."""
FEWEST_TENSORS = 2
"""Such inputs at the least, so that what rows of a batch do to each other is seen."""


class Subject:
    """A bundle under examination; what is asked for twice is made once.

    trust_code: as `original_from_bundle` has it. rebuild: what makes the original in its place.
    """

    def __init__(
        self,
        bundle: Bundle,
        threads: int | None = None,
        trust_code: bool = False,
        rebuild: Callable[[Bundle, bool], Original] = original_from_bundle,
    ) -> None:
        self.bundle, self.threads = bundle, threads
        self.brought = rebuild is not original_from_bundle
        """The original is an application's own, not rebuilt from the bundle."""
        self._rebuild = partial(rebuild, bundle, trust_code)
        self.golden, self.evaluation = bundle.golden(), bundle.evaluation()
        rows = max(FEWEST, PIXELS // (bundle.manifest.preprocessing.height * bundle.manifest.preprocessing.width))
        golden = min(max(rows // 2, 3), len(self.golden.images))
        self._counts = golden, min(rows - golden, len(self.evaluation.images))
        self.look_at()
        self.no_original = ""
        """Why there is no original, where there is none."""
        self.links: dict[str, Any] = {}
        """Stages that were asked, by name, as `chain` keeps them."""
        self._graphs: dict[str, onnx.ModelProto] = {}
        self._fresh: dict[str, onnx.ModelProto | str] = {}

    @property
    def chooses(self) -> bool:
        """Whether the bundle has more inputs than are looked at."""
        return sum(self._counts) < len(self.golden.images) + len(self.evaluation.images)

    def look_at(self, golden: Order = NO_ORDER, held_out: Order = NO_ORDER) -> None:
        """Take other inputs, the same number of them: half the first of each order, half what is usual.

        golden, held_out: rows of the golden set and of the evaluation slice, those first that matter most; the usual
        ones alone where there is no such order.
        """
        # The extremes come last in the golden set.
        parts = (
            *_parted(golden, np.arange(len(self.golden.images))[::-1], self._counts[0]),
            *_parted(held_out, np.arange(len(self.evaluation.images)), self._counts[1]),
        )
        ours, theirs = np.concatenate(parts[:2]), np.concatenate(parts[2:])
        self.images: Rows = np.concatenate([self.golden.images[ours], self.evaluation.images[theirs]])
        self.recorded: Logits = np.concatenate([self.golden.logits[ours], self.evaluation.logits[theirs]])
        self.held_out = slice(len(ours), None)
        """Where the rows of the evaluation slice are among `images`."""
        self.truth: NDArray[Any] = self.evaluation.labels[theirs]
        usual = [np.full(len(part), place % 2 == 1) for place, part in enumerate(parts)]
        self.usual: Order = np.flatnonzero(np.concatenate(usual))
        """Rows of `images` that no order has put there: what is averaged is averaged over these."""

    @cached_property
    def original(self) -> Original | None:
        """Rebuilt; None where that can't be done here, and `no_original` says why."""
        try:
            return self._rebuild()
        except (MissingError, TrustError) as error:
            self.no_original = str(error)
        return None

    @cached_property
    def no_onnx(self) -> str:
        """Why graphs can't be taken apart here; empty where they can."""
        try:
            import onnx  # noqa: F401
        except ImportError:
            return str(missing_extra("onnx", "train", "looking inside a graph"))
        return ""

    @property
    def base(self) -> Variant:
        """The fp32 variant."""
        return self.bundle.variant()

    def graph(self, variant: Variant) -> onnx.ModelProto:
        """A variant's graph, to be looked at and not changed. Needs onnx; raises ExportError for what is no graph."""
        import onnx

        if variant.name not in self._graphs:
            try:
                self._graphs[variant.name] = onnx.load_from_string(self.bundle.read(variant.file))
            except Exception as error:
                raise ExportError(f"{variant.file} is no ONNX graph: export the bundle again") from error
        return self._graphs[variant.name]

    def fresh(self, variant: Variant) -> onnx.ModelProto | str:
        """The graph that the original exports to here, in the variant's precision and opset; or why there is none.

        Not of int8: that would need the pictures it was calibrated on.
        """
        if variant.name not in self._fresh:
            self._fresh[variant.name] = self._exported(variant)
        return self._fresh[variant.name]

    def _exported(self, variant: Variant) -> onnx.ModelProto | str:
        if self.no_onnx or self.original is None:
            return self.no_onnx or self.no_original
        if variant.precision == "int8":
            return "an int8 graph can't be made anew without the pictures that it was calibrated on"
        try:
            import torch

            from ..graph import onnx_from_original

            dtype = {"fp32": None, "fp16": torch.float16, "bf16": torch.bfloat16}[variant.precision]
            return onnx_from_original(self.original, self._opset(variant), dtype)
        except TrueportError as error:
            return str(error)

    def _opset(self, variant: Variant) -> int:
        """That it was written in: what the graph carries beside it, which a later conversion leaves as it was."""
        graph = self.graph(variant)
        stated = {prop.key: prop.value for prop in graph.metadata_props}.get("trueport.opset", "")
        return int(stated) if stated.isdigit() else {entry.domain: entry.version for entry in graph.opset_import}[""]


def _parted(order: Order, usual: Order, count: int) -> tuple[Order, Order]:
    """The first of `order`, as many as half of `count`, and in ascending order what fills up from `usual`."""
    chosen = order[: count // 2]
    return chosen, np.sort(usual[~np.isin(usual, chosen)][: count - len(chosen)])


def farthest(found: Logits, expected: Logits) -> Order:
    """Rows by their largest difference, those that are no numbers first; of equal ones the first comes first."""
    with np.errstate(invalid="ignore", over="ignore"):
        away = np.nan_to_num(np.abs(found.astype(np.float64) - expected), nan=np.inf).max(axis=1)
    return np.argsort(-away, kind="stable")


def close_rows(found: Logits, expected: Logits, count: int = CLOSE) -> Order:
    """The rows that differ most, or are no numbers, in ascending order; at most `count`."""
    return np.sort(farthest(found, expected)[:count])


def tensor_rows(images: Rows) -> int:
    """How many of such pictures all tensors of a network may be held for: `CLOSE`, of large ones fewer."""
    height, width = images.shape[1:3]
    return min(CLOSE, max(FEWEST_TENSORS, TENSOR_PIXELS // (int(height) * int(width))))
