"""check --self-test: can these gates, on this machine, see what goes wrong with this bundle?

Faults of every stage are planted into copies of it, one after the other. Each is first shown to do harm, by a
measurement that no gate has a part in; then `check` has to see it, and `explain` to name its stage.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec

from trueport.runtime.bundle import Bundle
from trueport.runtime.errors import MissingError, TrueportError, unknown_name
from trueport.runtime.explanation import STAGES, Explanation, Stage
from trueport.runtime.machine import Machine, describe_machine
from trueport.runtime.manifest import Precision, Variant
from trueport.runtime.runner import RunnerOptions
from trueport.runtime.runners import RUNNERS
from trueport.runtime.runners.written import WRITTEN
from trueport.runtime.verdict import Verdict

from .check import CheckReport, References, check_deployment
from .console import Table
from .deployment import Deployment
from .faults import FAULTS, DoesNotApplyError, Fault, Healthy
from .faults.harm import Unharmed, harm, unharmed

Progress = Callable[[str], None]


class PlantedFault(msgspec.Struct, frozen=True, kw_only=True):
    """What became of one fault."""

    name: str
    title: str
    stage: Stage
    """Where it is."""
    status: Literal["caught", "missed", "does not apply"]
    reason: str = ""
    """Why it does not apply, in one sentence."""
    harm: str = ""
    """What it does to those who use the deployment."""
    variant: str = ""
    runner: str = ""
    gates: tuple[str, ...] = ()
    """That failed, or that the healthy bundle passed and that are undecided now."""
    refusal: str = ""
    """The sentence by which the deployment was refused before any gate could judge it."""
    named: Stage | None = None
    """The stage that the explanation named; None where there was none."""
    cause: str = ""
    """As the explanation has it."""
    confirmed: bool = False
    """Whether the explanation showed the cause."""
    seconds: float

    @property
    def named_right(self) -> bool:
        """Whether the explanation named the stage that the fault is in."""
        return self.named == self.stage


class SelfTestReport(msgspec.Struct, frozen=True, kw_only=True):
    """What the gates see of what goes wrong. Truthy where all that was planted was caught."""

    bundle: str
    version: str
    machine: Machine
    runner: str
    control: tuple[Verdict, ...]
    """Of the unharmed bundle, those that did not pass; where one failed nothing was planted."""
    healthy: bool
    """Whether the unharmed bundle failed no gate."""
    faults: tuple[PlantedFault, ...] = ()
    planted: int = 0
    """Faults that apply: that change what somebody gets."""
    caught: int = 0
    refused: int = 0
    """Of those caught, deployments that were refused with a sentence before any gate could judge them."""
    traced: int = 0
    """Of those caught, how many an explanation traced to a stage."""
    named_right: int = 0
    """Of those traced, how many to the stage that they are in."""
    seconds: float = 0.0

    def __bool__(self) -> bool:
        """Whether the unharmed bundle was healthy, and all that was planted was caught."""
        return self.healthy and 0 < self.planted == self.caught


def self_test(
    path: Path,
    *,
    runner: str = "onnxruntime:cpu",
    only: Sequence[str] = (),
    threads: int | None = None,
    trust_code: bool = False,
    explained: bool = True,
    progress: Progress = lambda _: None,
) -> SelfTestReport:
    """Plant every fault into copies of a bundle, and see which of them `check` catches.

    runner: that the variants are judged on; those that it does not take are judged as they are written.
    only: names of faults; none: all. trust_code: as `check` has it. explained: trace each to its stage, which takes
    most of the time. progress is told each fault as it is planted.
    Raises UsageError for an unknown runner or fault, BundleError for a bundle that is not to be trusted, MissingError
    where the runner can't be had here.
    """
    faults = [_named(name) for name in only] or sorted(FAULTS.values(), key=lambda one: list(STAGES).index(one.stage))
    if runner not in RUNNERS:
        raise unknown_name("runner", runner, RUNNERS)
    deployment, begun = Deployment(Bundle.open(path)), time.perf_counter()
    bench = _Bench(deployment, runner, RunnerOptions(threads=threads), trust_code, explained, progress)
    progress("the unharmed bundle")
    control = bench.check(deployment, (), (runner,))
    bench.doubtful = {(verdict.gate, verdict.variant) for verdict in control.undecided}
    planted = () if control.failed else tuple(bench.try_out(fault) for fault in faults)
    caught = [one for one in planted if one.status == "caught"]
    return SelfTestReport(
        bundle=deployment.bundle.manifest.name,
        version=deployment.bundle.manifest.version,
        machine=describe_machine(),
        runner=runner,
        control=tuple(verdict for verdict in control.verdicts if not verdict),
        healthy=not control.failed,
        faults=planted,
        planted=sum(one.status != "does not apply" for one in planted),
        caught=len(caught),
        refused=sum(bool(one.refusal) for one in caught),
        traced=sum(one.named is not None for one in caught),
        named_right=sum(one.named_right for one in caught),
        seconds=round(time.perf_counter() - begun, 3),
    )


def _named(name: str) -> Fault:
    if name not in FAULTS:
        raise unknown_name("fault", name, FAULTS)
    return FAULTS[name]


@dataclass(eq=False)
class _Bench:
    """Where faults are planted and looked for; it keeps what the healthy deployment answers."""

    deployment: Deployment
    runner: str
    options: RunnerOptions
    trust_code: bool
    explained: bool
    progress: Progress

    def __post_init__(self) -> None:
        self.doubtful: set[tuple[str, str]] = set()
        """Gates, by variant, that the healthy bundle can't decide: they prove nothing."""
        self._references: References = {}
        self._unharmed: dict[tuple[str, str], Unharmed] = {}
        self._places: dict[Precision, tuple[Variant, str] | str] = {}

    def check(self, deployment: Deployment, variants: Sequence[str], runners: Sequence[str]) -> CheckReport:
        """As a user would, with the original's answers remembered."""
        return check_deployment(
            deployment,
            variants=variants,
            runners=runners,
            threads=self.options.threads,
            trust_code=self.trust_code,
            references=self._references,
        )

    def try_out(self, fault: Fault) -> PlantedFault:
        """Plant one, and look for it."""
        self.progress(fault.title)
        begun = time.perf_counter()
        with tempfile.TemporaryDirectory(prefix="trueport-") as folder:
            found = self._look_for(fault, Path(folder))
        return msgspec.structs.replace(found, seconds=round(time.perf_counter() - begun, 3))

    def _look_for(self, fault: Fault, scratch: Path) -> PlantedFault:
        result = PlantedFault(
            name=fault.name, title=fault.title, stage=fault.stage, status="does not apply", seconds=0.0
        )
        try:
            healthy = self._healthy(fault, scratch)
            faulty = fault.plant(healthy)
        except DoesNotApplyError as reason:
            return msgspec.structs.replace(result, reason=str(reason))
        what = harm(fault, faulty, healthy, self._before(healthy))
        if not what:
            return msgspec.structs.replace(result, reason="it changes nothing on this model beyond the noise")
        runner = fault.runner or healthy.runner
        result = msgspec.structs.replace(result, harm=what, variant=healthy.variant.name, runner=runner)
        try:
            report = self.check(faulty, (healthy.variant.name,), (runner,))
        except TrueportError as refusal:
            return msgspec.structs.replace(result, status="caught", refusal=str(refusal))
        gates = self._seen(report)
        if not gates:
            return msgspec.structs.replace(result, status="missed")
        result = msgspec.structs.replace(result, status="caught", gates=gates)
        return _explained(result, self._explanations(faulty, report))

    def _seen(self, report: CheckReport) -> tuple[str, ...]:
        """Gates that failed, or became undecided by the fault."""
        undecided = [one for one in report.undecided if (one.gate, one.variant) not in self.doubtful]
        return tuple(dict.fromkeys(one.gate for one in (*report.failed, *undecided)))

    def _explanations(self, faulty: Deployment, report: CheckReport) -> tuple[Explanation, ...]:
        if not self.explained:
            return ()
        from .explain import explain

        return explain(faulty, report, threads=self.options.threads, trust_code=self.trust_code)

    def _healthy(self, fault: Fault, scratch: Path) -> Healthy:
        variant, runner = self._place(fault.precision)
        return Healthy(self.deployment, variant, runner, scratch, self.options, self.trust_code)

    def _place(self, precision: Precision) -> tuple[Variant, str]:
        """The variant of a precision, and the runner that it is judged on here. Raises DoesNotApplyError."""
        if precision not in self._places:
            self._places[precision] = self._found_place(precision)
        found = self._places[precision]
        if isinstance(found, str):
            raise DoesNotApplyError(found)
        return found

    def _found_place(self, precision: Precision) -> tuple[Variant, str] | str:
        target = RUNNERS[self.runner].target
        variants = [one for one in self.deployment.bundle.manifest.variants if one.precision == precision]
        fitting = [one for one in variants if one.target in ("any", target)]
        refusal = f"the bundle has no {precision} variant"
        for variant, runner in (*((one, self.runner) for one in fitting), *((one, WRITTEN) for one in variants)):
            try:
                self._before(Healthy(self.deployment, variant, runner, Path(), self.options))
            except MissingError as error:
                refusal = str(error)
            else:
                return variant, runner
        return refusal

    def _before(self, healthy: Healthy) -> Unharmed:
        key = healthy.variant.name, healthy.runner
        if key not in self._unharmed:
            self._unharmed[key] = unharmed(healthy)
        return self._unharmed[key]


def _explained(result: PlantedFault, explanations: Sequence[Explanation]) -> PlantedFault:
    if not explanations:
        return result
    first = explanations[0]
    return msgspec.structs.replace(result, named=first.stage, cause=first.cause, confirmed=first.confirmed)


def self_test_table(report: SelfTestReport) -> Table:
    """The faults as text, and how many were caught and traced."""
    notes = [f"the unharmed bundle: {one.gate} of {one.variant} {one.status}: {one.detail}" for one in report.control]
    return Table(
        title=f"{report.bundle} {report.version} on {report.runner}: what the gates see",
        columns=("fault", "in", "result", "seen by", "traced to", "s"),
        rows=tuple(_row(one) for one in report.faults),
        notes=(*notes, self_test_summary(report)),
    )


def _row(one: PlantedFault) -> tuple[str, ...]:
    if one.status == "does not apply":
        return one.title, one.stage, one.status, one.reason, "", ""
    seen = one.refusal or ", ".join(one.gates) or f"nothing, though {one.harm}"
    traced = str(one.named or "")
    if one.named and not one.named_right:
        traced += " (wrong)"
    return one.title, one.stage, one.status, seen, traced, f"{one.seconds:.1f}"


def self_test_summary(report: SelfTestReport) -> str:
    """The result in a line."""
    if not report.healthy:
        return "NOTHING WAS PLANTED: the unharmed bundle fails; `trueport check` tells why"
    told = [f"{report.caught} of {report.planted} planted faults caught"]
    if report.refused:
        told.append(f"{report.refused} of them refused outright")
    if report.traced:
        told.append(f"{report.named_right} of {report.traced} traced to their stage")
    told.append(f"{len(report.faults) - report.planted} do not apply to this bundle")
    return f"{', '.join(told)}; {report.seconds:.0f} s"
