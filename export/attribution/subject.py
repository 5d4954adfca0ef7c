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
PIXELS = 2_000_000
"""Of all inputs together, so that a network for large pictures is asked a few dozen of them."""
FEWEST = 48
"""Inputs at the least, where the bundle has so many."""
CLOSE = 8
"""Inputs that every tensor of a network is looked at on."""


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
        golden = np.arange(len(self.golden.images))[-max(rows // 2, 3) :]  # the extremes come last
        held_out = len(self.evaluation.images[: rows - len(golden)])
        self.images: Rows = np.concatenate([self.golden.images[golden], self.evaluation.images[:held_out]])
        self.recorded: Logits = np.concatenate([self.golden.logits[golden], self.evaluation.logits[:held_out]])
        self.held_out = slice(len(golden), None)
        """Where the rows of the evaluation slice are among `images`."""
        self.truth: NDArray[Any] = self.evaluation.labels[:held_out]
        self.no_original = ""
        """Why there is no original, where there is none."""
        self.links: dict[str, Any] = {}
        """Stages that were asked, by name, as `chain` keeps them."""
        self._graphs: dict[str, onnx.ModelProto] = {}
        self._fresh: dict[str, onnx.ModelProto | str] = {}

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


def close_rows(found: Logits, expected: Logits) -> NDArray[np.int64]:
    """The rows that differ most, or are no numbers, in ascending order; at most `CLOSE`."""
    worst = np.nan_to_num(np.abs(found.astype(np.float64) - expected), nan=np.inf).max(axis=1)
    return np.sort(np.argsort(-worst, kind="stable")[:CLOSE])
