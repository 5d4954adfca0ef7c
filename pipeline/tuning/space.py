"""What there is to choose from: every variant on every runner it was made for, with the options that matter there."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import product
from typing import Literal

import msgspec

from trueport.runtime.manifest import Variant
from trueport.runtime.runner import RunnerOptions
from trueport.runtime.runners import DEFAULT, RUNNERS
from trueport.runtime.tuned import described

BF16_SETS = {"avx512_bf16", "amx_bf16", "bf16"}
"""Instruction sets with which bfloat16 can be faster than float32."""
GraphLevel = Literal["basic", "extended", "all"]
FloatType = Literal["fp32", "bf16"]
_FASTEST_FIRST = ("int8", "bf16", "fp16", "fp32")


class Candidate(msgspec.Struct, frozen=True, kw_only=True):
    """One way to run a bundle, whatever the batch."""

    variant: str
    runner: str
    options: RunnerOptions

    @property
    def numerics(self) -> Candidate:
        """What the answers depend on. Threads only change the order of sums, for which the bounds leave room."""
        options = msgspec.structs.replace(self.options, threads=None, spinning=False)
        return msgspec.structs.replace(self, options=options)

    @property
    def spun(self) -> Candidate | None:
        """The same with threads that spin between their parts of a run; None where there are none to.

        Worth a try on the fastest, or the nearest to it, alone: it burns cores, so that it is taken only where it is
        faster beyond doubt.
        """
        if self.runner != "onnxruntime:cpu" or self.options.threads == 1 or self.options.spinning:
            return None
        return msgspec.structs.replace(self, options=msgspec.structs.replace(self.options, spinning=True))

    def __str__(self) -> str:
        return described(self.variant, self.runner, self.options)


class Arm(msgspec.Struct, frozen=True, kw_only=True):
    """A candidate at one batch: what can be timed."""

    candidate: Candidate
    batch: int

    def __str__(self) -> str:
        return f"{self.candidate}, batch {self.batch}"


def candidates(
    variants: Sequence[Variant], runners: Sequence[str], cores: int, instruction_sets: Collection[str]
) -> tuple[Candidate, ...]:
    """Every candidate for this machine, those first that are likely to be fastest: time may run out."""
    pairs = [(variant, name) for variant in variants for name in runners if fits(variant, name)]
    pairs.sort(key=lambda pair: (RUNNERS[pair[1]].target == "cpu", _FASTEST_FIRST.index(pair[0].precision)))
    return tuple(
        Candidate(variant=variant.name, runner=name, options=options)
        for variant, name in pairs
        for options in _options(variant, name, cores, instruction_sets)
    )


def baseline(variant: Variant, cores: int) -> Candidate:
    """What `load` takes without a tuned choice. variant: the bundle's first."""
    return Candidate(variant=variant.name, runner=DEFAULT, options=RunnerOptions(threads=cores))


def fits(variant: Variant, runner: str) -> bool:
    """Whether the variant was made for the kind of device that the runner uses."""
    return variant.target in ("any", RUNNERS[runner].target)


def thread_counts(cores: int) -> list[int]:
    """All cores, then half of them, down to one: on small models a second thread costs more than it brings."""
    counts = [cores]
    while counts[-1] > 1:
        counts.append(counts[-1] // 2)
    return counts


def _options(variant: Variant, runner: str, cores: int, instruction_sets: Collection[str]) -> list[RunnerOptions]:
    if RUNNERS[runner].target == "gpu":
        return [RunnerOptions()]
    counts = thread_counts(cores)
    if runner.startswith("onnxruntime:"):
        levels: tuple[GraphLevel, ...] = ("all", "extended")
        return [RunnerOptions(threads=count, graph_level=level) for level, count in product(levels, counts)]
    mixed = variant.precision == "int8" and not BF16_SETS.isdisjoint(instruction_sets)
    types: tuple[FloatType, ...] = ("fp32", "bf16") if mixed else ("fp32",)
    return [RunnerOptions(threads=count, float_type=kind) for kind, count in product(types, counts)]
