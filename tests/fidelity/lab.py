"""Faults caught, stages named right, false alarms: `make fidelity` measures all three and writes docs/fidelity.md.

What was measured is kept in runs/fidelity, with the revision of the code, and not measured again, so that a run may be
cut short and gone on with: `--minutes` (15) limits what is begun, `--all` does not; `--fresh` forgets what is there.
Names choose what is measured.
"""

from __future__ import annotations

import argparse
import re
import runpy
import shutil
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from functools import partial
from itertools import product
from pathlib import Path
from typing import Generic, NamedTuple, TypeVar

import msgspec
from torch.onnx._internal.exporter._registration import ONNXRegistry

from trueport.pipeline.self_test import PlantedFault, SelfTestReport, self_test
from trueport.runtime.atomic import write_bytes
from trueport.runtime.machine import describe_machine
from trueport.runtime.manifest import Precision

from ..test_sweep import own_cases
from .alarms import Export, alarm_rows, alarms, healthy_export
from .networks import PRECISIONS, digits_bundle, registered

T = TypeVar("T")
ROOT = Path(__file__).parents[2]
KEPT = ROOT / "runs" / "fidelity"
DOCUMENT = ROOT / "docs" / "fidelity.md"
MINUTES = 15.0
SEEDS = (0, 1, 2)
SLOW = (
    "alexnet",
    "googlenet",
    "resnet10",
    "resnet11",
    "resnet12",
    "resnet15",
    "resnet50",
    "resnext",
    "vgg",
    "wide_resnet",
)
"""Beginnings of names that come last, each of them minutes."""


class Victim(NamedTuple):
    """A bundle that faults are planted into."""

    arch: str
    side: int
    precisions: tuple[Precision, ...]
    told: str


class Kept(msgspec.Struct, Generic[T], frozen=True):
    """One measurement, and the code that it is of."""

    revision: str
    found: T


VICTIMS = (
    Victim("everything", 20, PRECISIONS, "a small network with something of everything, in four precisions"),
    Victim("lenet", 32, ("fp32", "fp16", "int8"), "LeNet"),
    Victim("resnet20", 32, ("fp32", "int8"), "ResNet-20"),
)


def main() -> None:
    """Measure, and write what is known."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="beginnings of what is measured, such as faults or healthy-lenet")
    parser.add_argument("--minutes", type=float, default=MINUTES)
    parser.add_argument("--all", action="store_true")
    parser.add_argument("--fresh", action="store_true")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    once = runpy.run_path(str(ROOT / "tests" / "forking.py"))["read_once"]
    ONNXRegistry.from_torchlib = staticmethod(once(ONNXRegistry.from_torchlib))  # type: ignore[method-assign]
    if options.fresh:
        shutil.rmtree(KEPT, ignore_errors=True)
    KEPT.mkdir(parents=True, exist_ok=True)
    end = float("inf") if options.all else time.monotonic() + 60 * options.minutes
    for name, measure in work():
        if (KEPT / f"{name}.json").exists() or not name.startswith(tuple(options.names) or ""):
            continue
        if time.monotonic() > end:
            print("the time is up: run it again to go on, or with --all", flush=True)
            break
        print(name, flush=True)
        write_bytes(KEPT / f"{name}.json", msgspec.json.encode(Kept(revision(), measure())))
    reports, exports, revisions = kept()
    DOCUMENT.write_text(document(reports, exports, revisions), encoding="utf-8")
    print(f"written: {DOCUMENT.relative_to(ROOT)}")
    sys.exit(min(1, len(alarms(exports)) + sum(not report for report in reports)))


def work() -> Iterator[tuple[str, Callable[[], object]]]:
    """Names of what there is to measure, and how: faults first, then healthy exports, small networks first."""
    for victim in VICTIMS:
        yield f"faults-{victim.arch}", partial(planted, victim)
    cases = sorted(own_cases(), key=lambda case: case.arch.startswith(SLOW))
    for seed, case in product(SEEDS, cases):
        size = case.size if isinstance(case.size, tuple) else (case.size, case.size)
        yield f"healthy-{case.arch}-{seed}", partial(healthy_export, case.arch, size, case.args, seed)


def planted(victim: Victim) -> SelfTestReport:
    """Every fault, planted into a bundle that is made for it."""
    folder = KEPT / f"bundle-{victim.arch}"
    with registered():
        digits_bundle(folder, victim.arch, victim.side, victim.precisions)
        report = self_test(folder, progress=lambda title: print(f"  {title}", flush=True))
    shutil.rmtree(folder)
    return report


def revision() -> str:
    """The commit of this checkout, with a + where something in it was changed."""

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()

    return git("rev-parse", "--short", "HEAD") + "+" * bool(
        git("status", "--porcelain", "--", ".", f":!{DOCUMENT.relative_to(ROOT)}")
    )


def kept() -> tuple[list[SelfTestReport], list[Export], list[str]]:
    """What has been measured, and the revisions that it is of."""
    files = [file for victim in VICTIMS if (file := KEPT / f"faults-{victim.arch}.json").exists()]
    reports = [msgspec.json.decode(file.read_bytes(), type=Kept[SelfTestReport]) for file in files]
    exports = [
        msgspec.json.decode(file.read_bytes(), type=Kept[Export]) for file in sorted(KEPT.glob("healthy-*.json"))
    ]
    revisions = sorted({one.revision for one in reports} | {one.revision for one in exports})
    return [one.found for one in reports], [one.found for one in exports], revisions


# docs/fidelity.md


def document(reports: Sequence[SelfTestReport], exports: Sequence[Export], revisions: Sequence[str]) -> str:
    """All of it."""
    machine, names = describe_machine(), {report.bundle for report in reports}
    versions = ", ".join(f"{name} {machine.versions[name]}" for name in sorted(machine.versions))
    caught, count = sum(one.caught for one in reports), sum(one.planted for one in reports)
    traced, right = sum(one.traced for one in reports), sum(one.named_right for one in reports)
    false, judged = len(alarms(exports)), [one for export in exports for one in export.measured]
    lines = [
        "# Fidelity",
        "",
        "What `trueport check` sees of what goes wrong, and whether it leaves in peace what is right.",
        "",
        f"`make fidelity`, ended {datetime.now(UTC):%Y-%m-%d}, of revision {', '.join(revisions)}, {machine.cpu}, "
        f"{machine.cores} cores, {versions}.",
        "",
        "| | |",
        "| --- | --- |",
        f"| faults caught / planted | {caught} / {count} |",
        f"| stages named right / faults traced | {right} / {traced} |",
        f"| false alarms / healthy exports | {false} / {len(exports)} |",
        "",
        "A fault counts as planted where it changes pixels, names, the evidence, or logits by more than the original",
        "differs from itself in that precision; that is measured apart from the gates. Caught: a gate fails, or is",
        "undecided that was not before. Refused: the deployment does not open, and a sentence says why.",
        "",
        "## Faults",
        "",
        f"Bundles: {'; '.join(f'`{one.arch}`, {one.told}' for one in VICTIMS if one.arch in names)}. Trained on tinted",
        "digits for a few seconds. `-`: it does not apply to that bundle.",
        "",
        f"| fault | stage | {' | '.join(f'`{one.bundle}`' for one in reports)} | seen by |",
        f"| --- | --- |{' --- |' * len(reports)} --- |",
        *fault_rows(reports),
        "",
        *(
            f"`{one.bundle}`: {one.caught} of {one.planted} caught, "
            f"{one.named_right} of {one.traced} traced to their stage.  "
            for one in reports
        ),
        "",
        "## Healthy exports",
        "",
        f"{len({one.arch for one in exports})} architectures of `trueport.models` with random weights, "
        f"seeds {', '.join(map(str, sorted({one.seed for one in exports})))}, batches of 1, 2, 7 and 32, "
        f"{len(judged)} gates judged, {sum(one.status == 'undecided' for one in judged)} undecided. Deviations are the",
        "largest of any export, the larger of maximum and root mean square, in shares of the original's own noise and",
        "of the bound that follows from it. `winograd`: the original, each 3 x 3 convolution of stride 1 computed by",
        "F(4x4, 3x3), which trades exactness for speed.",
        "",
        "| variant | runner | parity judged | false alarms | of noise | of bound | nearest to its bound |",
        "| --- | --- | ---: | ---: | ---: | ---: | --- |",
        *alarm_rows(exports),
        "",
        *(f"- {line}" for line in alarms(exports)),
        *(f"- {one.arch}, seed {one.seed}: {why}" for one in exports for why in one.refused),
        "",
    ]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines))


def fault_rows(reports: Sequence[SelfTestReport]) -> Iterator[str]:
    """A row for each fault."""
    by_name: dict[str, list[PlantedFault | None]] = {}
    for place, report in enumerate(reports):
        for one in report.faults:
            by_name.setdefault(one.name, [None] * len(reports))[place] = one
    for found in by_name.values():
        first = next(one for one in found if one)
        seen = {gate: None for one in found if one for gate in (("refused",) if one.refusal else one.gates)}
        yield f"| {first.title} | {first.stage} | {' | '.join(map(told, found))} | {', '.join(seen)} |"


def told(one: PlantedFault | None) -> str:
    """A cell: what became of a fault in one bundle."""
    if one is None or one.status == "does not apply":
        return "-"
    if one.status == "missed":
        return "**missed**"
    if one.refusal:
        return "refused"
    if one.named is None:
        return "caught"
    return "caught, traced" if one.named_right else f"caught, traced to {one.named}"


if __name__ == "__main__":
    main()
