"""assert_faithful: a bundle, or what an application makes of it, judged by `check` inside anybody's test suite."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from trueport.export.original import Original, original_of
from trueport.runtime.bundle import Bundle
from trueport.runtime.errors import MissingError, TrustError, UsageError
from trueport.runtime.manifest import Preprocessing, TensorSpec
from trueport.runtime.runner import Runner, RunnerOptions, RunnerReport
from trueport.runtime.runners import DEFAULT

from .check import CheckReport, check_deployment
from .deployment import Deployment, Rebuild
from .outputs.told import told_text

if TYPE_CHECKING:
    from torch import nn

APPLICATION = "application"
"""The runner's name where the application runs the variant by itself."""
PROVIDER = "the application's own function"
Prepare = Callable[[bytes], NDArray[np.uint8]]
"""An encoded picture -> uint8 (H, W, C)."""
Infer = Callable[[NDArray[np.uint8]], NDArray[Any]]
"""uint8 (N, H, W, C) -> (N, K), the answers of one variant."""


def assert_faithful(
    bundle: Bundle | str | os.PathLike[str],
    *,
    variants: Sequence[str] = (),
    runners: Sequence[str] = (),
    prepare: Prepare | None = None,
    infer: Infer | None = None,
    labels: Sequence[str] | None = None,
    original: nn.Module | None = None,
    bounds: Mapping[str, float] | None = None,
    data: str | None = None,
    threads: int | None = None,
    trust_code: bool = False,
    explain: bool = False,
) -> CheckReport:
    """The report, where every gate that could be evaluated passed; else AssertionError, which tells what is wrong.

    variants, runners: names, as for `trueport check`; none: its defaults.
    prepare: the application's own preprocessing, in place of trueport's.
    infer: the application's own way of running one variant (the first, where none is named), in place of runners.
    labels: the application's own names of the classes, in its order.
    original: the trained module itself, in place of the one rebuilt from the bundle: float (B, C, H, W)
    normalised pictures -> (B, K) logits. It is put into eval mode.
    bounds: in place of derived ones, such as {"int8-cpu.max_drop": 2}. data: labelled pictures in place of the
    bundle's. trust_code: run the factory that the bundle's original is made by. explain: trace what fails to its
    stage, tensors and cause, which needs torch and goes without data.
    Raises UsageError for arguments that don't fit each other, and what `check` raises.
    """
    __tracebackhide__ = True
    if explain and data is not None:
        raise UsageError("explain finds stage and cause by the bundle's own pictures: expected no data beside it")
    opened = bundle if isinstance(bundle, Bundle) else Bundle.open(Path(bundle))
    deployment = Deployment(opened, labels=None if labels is None else tuple(labels))
    if original is not None:
        deployment = replace(deployment, original=_brought(original))
    if prepare is not None:
        deployment = replace(deployment, prepare=_prepared_by(prepare))
    if infer is not None:
        if runners or len(variants) > 1:
            raise UsageError(
                "infer stands for one variant and for its runner: expected no runners and at most one variant, "
                f"found runners {list(runners)} and variants {list(variants)}"
            )
        deployment = replace(deployment, open=_opened_as(infer), runners=(APPLICATION,))
        runners, variants = (APPLICATION,), tuple(variants) or (opened.variant().name,)
    report = check_deployment(
        deployment,
        variants=variants,
        runners=runners or (DEFAULT,),
        threads=threads,
        trust_code=trust_code,
        bounds=bounds,
        data=data,
    )
    if report:
        return report
    told, remark = _explained(deployment, report, threads, trust_code=trust_code) if explain else (report, "")
    raise AssertionError(told_text(told) + remark)


def _explained(
    deployment: Deployment, report: CheckReport, threads: int | None, *, trust_code: bool
) -> tuple[CheckReport, str]:
    """The report with what explains it, and why there is nothing of the kind."""
    try:
        from .explain import explain

        found = explain(deployment, report, threads=threads, trust_code=trust_code)
    except (ImportError, MissingError, TrustError) as error:  # what failed is to be told all the same
        return report, f"\nnot explained: {error}"
    return msgspec.structs.replace(report, explanations=found), ""


def _brought(module: nn.Module) -> Rebuild:
    def brought(bundle: Bundle, trust_code: bool) -> Original:  # noqa: ARG001
        return original_of(module, bundle.manifest)

    return brought


def _prepared_by(prepare: Prepare) -> Callable[[bytes, Preprocessing], NDArray[np.uint8]]:
    def prepared(encoded: bytes, parameters: Preprocessing) -> NDArray[np.uint8]:  # noqa: ARG001
        return prepare(encoded)

    return prepared


def _opened_as(infer: Infer) -> Callable[[Bundle, str, str, RunnerOptions], Runner]:
    def opened(bundle: Bundle, runner: str, variant: str, options: RunnerOptions) -> Runner:  # noqa: ARG001
        return _Application(infer, bundle.manifest.inputs, bundle.manifest.outputs)

    return opened


@dataclass(frozen=True, eq=False)
class _Application:
    """A function as a runner: what it runs on nobody but the application knows."""

    infer: Infer
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Its answers as floating point (N, K)."""
        answers = np.asarray(self.infer(feeds[self.inputs[0].name]))
        floating = answers if np.issubdtype(answers.dtype, np.floating) else answers.astype(np.float32)
        return {self.outputs[0].name: floating}

    def report(self) -> RunnerReport:
        """Nothing that could be read back."""
        return RunnerReport(name=APPLICATION, provider=PROVIDER, device="-", threads=0, versions={})

    def close(self) -> None:
        """Nothing is held."""
