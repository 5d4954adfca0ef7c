"""The variants of a bundle on their runners, one after the other: what is opened is judged, what is refused is told."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager

from trueport.export.written import open_as_written
from trueport.runtime.bundle import Evaluation, Golden
from trueport.runtime.errors import BundleError, MissingError, PrecisionError, UsageError
from trueport.runtime.graph_facts import GraphFacts
from trueport.runtime.manifest import Variant
from trueport.runtime.runner import Runner, RunnerOptions, RunnerReport
from trueport.runtime.runners import RUNNERS
from trueport.runtime.runners.written import WRITTEN
from trueport.runtime.verdict import Verdict, not_run

from .deployment import Deployment
from .gates import OPENING, Answers, failed_opening, port_gates


class Clock:
    """Tells what is being done, and how long each part took."""

    def __init__(self, progress: Callable[[str], None]) -> None:
        self._progress = progress
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Around one part, which may be met several times."""
        self._progress(name)
        begun = time.perf_counter()
        yield
        self.seconds[name] = round(self.seconds.get(name, 0.0) + time.perf_counter() - begun, 3)


class Ports:
    """The gates of one variant on one runner after the other."""

    def __init__(
        self,
        deployment: Deployment,
        graphs: Mapping[str, GraphFacts],
        options: RunnerOptions,
        reference: Answers,
        golden: Golden,
        evaluation: Evaluation,
        clock: Clock,
    ) -> None:
        self._deployment, self._bundle, self._options, self._clock = deployment, deployment.bundle, options, clock
        self._graphs = graphs
        self._material = reference, golden, evaluation
        self.reports: list[RunnerReport] = []
        self.verdicts: list[Verdict] = []

    def judge_named(self, name: str, wanted: Sequence[Variant]) -> None:
        """Run the gates on a runner. Raises MissingError where it takes none of the variants, or not a wanted one."""
        variants = wanted or _made_for(name, self._bundle.manifest.variants)
        if not variants:
            raise UsageError(f"none of the bundle's variants was made for {name}: name one, or choose another runner")
        refused = self._judge(name, variants)
        if refused and (wanted or len(refused) == len(variants)):
            raise refused[0][1]
        self.verdicts += [not_run(OPENING, variant.name, name, self._said(error)) for variant, error in refused]

    def judge_all(self, names: Iterable[str], wanted: Sequence[Variant]) -> None:
        """Run the gates on those of the runners that can be opened. Raises MissingError where that is none at all."""
        first: MissingError | None = None
        for name in names:
            variants = _made_for(name, wanted or self._bundle.manifest.variants)
            refused = self._judge(name, variants)
            first = first or (refused[0][1] if refused else None)
            for error in dict.fromkeys(self._said(error) for _, error in refused):  # one reason is told once
                concerned = ", ".join(variant.name for variant, other in refused if self._said(other) == error)
                self.verdicts.append(not_run(OPENING, concerned, name, error))
        if first and all(verdict.gate == OPENING for verdict in self.verdicts):
            raise first

    def judge_written(self, wanted: Sequence[Variant]) -> None:
        """Judge the graphs of variants that no runner has taken as they are written: they may be wrong all the same."""
        opened = {verdict.variant for verdict in self.verdicts if verdict.gate != OPENING}
        for variant in wanted or self._bundle.manifest.variants:
            if variant.name in opened:
                continue
            if not any(variant.name in verdict.variant.split(", ") for verdict in self.verdicts):
                why = f"{variant.name} was made for a {variant.target.upper()}: name a runner there"
                self.verdicts.append(not_run(OPENING, variant.name, "-", why))
            for _, error in self._judge(WRITTEN, [variant]):
                self.verdicts.append(not_run(OPENING, variant.name, WRITTEN, self._said(error)))

    def _judge(self, name: str, variants: Iterable[Variant]) -> list[tuple[Variant, MissingError]]:
        """Those variants that the runner does not take, and why.

        One that was made for its kind of device and is computed in another precision there has failed: that is no
        other machine's business.
        """
        refused = []
        for variant in variants:
            with self._clock(f"{variant.name} on {name}"):
                try:
                    opened = self._open(name, variant)
                except (MissingError, BundleError) as error:
                    if isinstance(error, MissingError) and not _broken_promise(name, variant, error):
                        refused.append((variant, error))
                    else:
                        self.verdicts.append(failed_opening(variant, name, self._said(error)))
                    continue
                with closing(opened) as runner:
                    self.reports.append(runner.report())
                    self.verdicts += port_gates(
                        self._bundle.manifest, variant, self._graphs[variant.file], runner, name, *self._material
                    )
        return refused

    def _said(self, error: Exception) -> str:
        """Files of the bundle by their names in it: where it lies is no part of a report."""
        return str(error).replace(f"{self._bundle.path}/", "")

    def _open(self, name: str, variant: Variant) -> Runner:
        if name == WRITTEN:
            return open_as_written(self._bundle, variant, self._options)
        return self._deployment.open(self._bundle, name, variant.name, self._options)


def _broken_promise(runner: str, variant: Variant, error: MissingError) -> bool:
    """Whether a variant that was made for the very kind of device that the runner runs on is not what it says there."""
    device = RUNNERS[runner].target if runner in RUNNERS else None
    return isinstance(error, PrecisionError) and variant.target == device


def _made_for(runner: str, variants: Iterable[Variant]) -> list[Variant]:
    """Those that were made for the kind of device that a runner runs on; all can be judged as they are written."""
    device = RUNNERS[runner].target if runner in RUNNERS else None
    return [variant for variant in variants if device is None or variant.target in ("any", device)]
