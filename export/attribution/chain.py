"""The chain from the recording to the runner: every stage answers the same inputs, each is held against the last one.

Stages that can't be had here are left out, and the next one is held against the one before them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from trueport.runtime.comparison import batch_invariance, worth
from trueport.runtime.errors import MissingError
from trueport.runtime.explanation import Stage, StageResult
from trueport.runtime.manifest import Bounds, Variant
from trueport.runtime.runner import Runner, RunnerOptions
from trueport.runtime.runners import check_contract
from trueport.runtime.runners.ort import OrtRunner, on_cpu, session_options
from trueport.runtime.runners.written import WRITTEN

from ..written import open_as_written
from .subject import Logits, Rows, Subject

Answer = Callable[[Rows], Logits]
"""One batch of prepared pictures (N, H, W, C) -> logits (N, K)."""
Open = Callable[[], Runner]
BATCH = 32
INVARIANCE_ROWS = 16
INVARIANCE_BATCHES = (2, 7, 32)
SHARED: tuple[Stage, ...] = ("original", "export", "onnx", "optimised")
"""The same for every variant; these are opened once, and asked once of the same inputs."""
REPEATED = 8
"""Inputs that are asked twice."""
ASKED_ROWS = (1, 4, REPEATED)
"""Sizes of batches, beside `BATCH`, that are asked for later on: a stage that refuses one is asked row by row."""


class NotHereError(Exception):
    """A stage that this machine or this bundle does not have; the message says why."""


@dataclass(frozen=True, eq=False)
class Link:
    """One stage: how it answers, and what it answered."""

    stage: Stage
    bounds: Bounds
    answer: Answer | None = None
    images: Rows | None = None
    """That it was asked last."""
    logits: Logits | None = None
    """(N, K) on these; None where it is not run or can't answer."""
    refused: str = ""
    """Why it can't be opened or can't answer, or answers no batches but single rows."""
    missing: str = ""
    """Why it is not run."""


@dataclass(frozen=True, eq=False)
class Chain:
    """All stages of one variant on one runner, and where they part."""

    links: tuple[Link, ...]
    results: tuple[StageResult, ...]
    recorded: Link

    def link(self, stage: Stage) -> Link:
        """The stage of that name."""
        return next(link for link in self.links if link.stage == stage)

    def before(self, stage: Stage) -> Link:
        """The last stage before it that answered; the recording where there is none."""
        found = self.recorded
        for link in self.links:
            if link.stage == stage:
                break
            found = link if link.logits is not None else found
        return found

    @property
    def departing(self) -> Stage | None:
        """The first stage that departs; None where each agrees with the one before it."""
        return next((result.stage for result in self.results if result.status == "departs"), None)

    def result(self, stage: Stage) -> StageResult:
        """What was measured at a stage."""
        return next(result for result in self.results if result.stage == stage)


@contextlib.contextmanager
def opened_chain(
    subject: Subject, variant: Variant, runner: str, opened: Open, *, batches: bool, say: Callable[[str], None]
) -> Iterator[Chain]:
    """Open every stage, ask all of them, and compare.

    opened: the runner on trial. batches: whether rows are compared in batches and alone too.
    """
    with contextlib.ExitStack() as stack:
        links: list[Link] = []
        for stage, bounds, make in _stages(subject, variant, runner, opened, stack):
            say(f"{variant.name} on {runner}: {stage}")
            kept = subject.links if stage in SHARED else {}
            key = f"{stage} of {runner}" if stage == "optimised" else stage
            if key not in kept:
                kept[key] = _opened(stage, bounds, make)
            kept[key] = _asked(kept[key], subject.images, (*ASKED_ROWS, *INVARIANCE_BATCHES) if batches else ASKED_ROWS)
            links.append(kept[key])
        recorded = Link("original", subject.base.bounds, logits=subject.recorded)
        results, before = [], recorded
        for link in links:
            results.append(_held(link, before, subject, batches))
            before = link if link.logits is not None else before
        yield Chain(tuple(links), tuple(results), recorded)


def answered(answer: Answer, images: Rows, batch: int = BATCH) -> Logits:
    """Logits (N, K) of all images, so many at a time."""
    return np.concatenate([answer(images[start : start + batch]) for start in range(0, len(images), batch)])


def in_batches_or_alone(answer: Answer, images: Rows, sizes: Sequence[int] = ASKED_ROWS) -> tuple[Logits, str]:
    """Logits (N, K) of all images; where batches of one of the sizes are refused, row by row and why.

    Raises what batches raise, where single rows are refused too.
    """
    try:
        for size in sizes:
            answer(images[:size])
        return answered(answer, images), ""
    except Exception as error:  # a library's or an application's own
        with contextlib.suppress(Exception):
            return answered(answer, images, 1), first_line(error)
        raise


def answer_of(runner: Runner) -> Answer:
    """What a runner answers."""

    def answer(images: Rows) -> Logits:
        return np.asarray(runner.run({runner.inputs[0].name: images})[runner.outputs[0].name])

    return answer


def options(subject: Subject) -> RunnerOptions:
    """What runners are opened with."""
    return RunnerOptions(threads=subject.threads)


def _stages(
    subject: Subject, variant: Variant, runner: str, opened: Open, stack: contextlib.ExitStack
) -> Iterable[tuple[Stage, Bounds, Callable[[], Answer]]]:
    base = subject.base

    def original() -> Answer:
        if subject.original is None:
            raise NotHereError(subject.no_original)
        from ..original import OriginalRunner

        return answer_of(OriginalRunner(subject.original, subject.threads))

    def written(which: Variant) -> Answer:
        made = open_as_written(subject.bundle, which, options(subject))
        check_contract(subject.bundle, which.file, made)
        return answer_of(made)

    def optimised() -> Answer:
        if not runner.startswith("onnxruntime"):
            raise NotHereError(f"{runner} optimises in its own way")
        name = str(subject.bundle.file(base.file))
        session = on_cpu(subject.bundle.read(base.file), name, session_options(options(subject)))
        return answer_of(OrtRunner(session, runner))

    def precision() -> Answer:
        if variant.name == base.name:
            raise NotHereError(f"{variant.name} is the fp32 graph itself")
        return written(variant)

    def on_trial() -> Answer:
        if runner == WRITTEN:
            raise NotHereError("the graph as it is written is what was judged")
        return answer_of(stack.enter_context(contextlib.closing(opened())))

    yield "original", base.bounds, original
    yield "export", base.bounds, lambda: _program(subject)
    yield "onnx", base.bounds, lambda: written(base)
    yield "optimised", base.bounds, optimised
    yield "precision", variant.bounds, precision
    yield "runner", variant.bounds, on_trial


def _program(subject: Subject) -> Answer:
    """What torch.export makes of the original, before any of it is ONNX."""
    if subject.original is None:
        raise NotHereError(subject.no_original)
    import torch

    from ..original import served_module

    shape = subject.bundle.manifest.preprocessing.shape
    example = torch.zeros((2, *shape), dtype=torch.uint8)
    batch = torch.export.Dim("batch", min=1)
    served = served_module(subject.original, contiguous=True)
    module = torch.export.export(served, (example,), dynamic_shapes=({0: batch},)).module()

    def answer(images: Rows) -> Logits:
        with torch.inference_mode():
            return np.asarray(module(torch.from_numpy(np.ascontiguousarray(images))).numpy())

    return answer


def _opened(stage: Stage, bounds: Bounds, make: Callable[[], Answer]) -> Link:
    try:
        return Link(stage, bounds, make())
    except (NotHereError, MissingError) as error:
        return Link(stage, bounds, missing=str(error))
    except Exception as error:  # noqa: BLE001 — a library's or an application's own: it is what the stage answers
        return Link(stage, bounds, refused=first_line(error))


def _asked(link: Link, images: Rows, sizes: Sequence[int]) -> Link:
    """The stage with its answers to these images; as it is where these are the ones that it was asked last."""
    if link.answer is None or (link.images is not None and np.array_equal(link.images, images)):
        return link
    try:
        logits, refused = in_batches_or_alone(link.answer, images, sizes)
    except Exception as error:  # noqa: BLE001 — as above
        return Link(link.stage, link.bounds, refused=first_line(error))
    return replace(link, images=images, logits=logits, refused=refused)


def _held(link: Link, before: Link, subject: Subject, batches: bool) -> StageResult:
    """One stage against the one before."""
    if link.missing:
        return StageResult(stage=link.stage, status="not run", detail=link.missing)
    if link.logits is None or link.answer is None:
        return StageResult(stage=link.stage, status="departs", detail=link.refused)
    expected = before.logits
    if expected is None or link.logits.shape != expected.shape:
        detail = (
            f"expected logits {None if expected is None else list(expected.shape)}, found {list(link.logits.shape)}"
        )
        return StageResult(stage=link.stage, status="departs", detail=detail)
    allowed = {"max_abs": link.bounds.max_abs, "rms": link.bounds.rms}
    measured = distance(link.logits, expected)
    # Bounds of rms are of all inputs: those that are farthest off would be beyond them in a healthy port.
    measured["rms"] = distance(link.logits[subject.usual], expected[subject.usual])["rms"]
    measured["drop_points"] = _drop(link.logits, expected, subject)
    measured["repeated"], allowed["repeated"] = _repetition(link.answer, subject.images), link.bounds.max_abs
    if batches:
        measured["batches"], allowed["batches"] = _invariance(link, subject), link.bounds.max_abs
    departs = _crossed(measured, allowed) or bool(link.refused)
    told = f"{len(link.logits)} inputs"
    if chosen := len(link.logits) - len(subject.usual):
        told += f", {chosen} of them those that the port is farthest off on, which rms leaves out"
    if link.refused:
        told += f", one by one since batches are refused: {link.refused}"
    finite = {name: value if np.isfinite(value) else None for name, value in measured.items()}
    return StageResult(
        stage=link.stage, status="departs" if departs else "agrees", measured=finite, allowed=allowed, detail=told
    )


def distance(found: Logits, expected: Logits) -> dict[str, float]:
    """Largest difference and root mean square."""
    with np.errstate(invalid="ignore", over="ignore"):
        difference = found.astype(np.float64) - expected
        return {"max_abs": float(np.abs(difference).max()), "rms": float(np.sqrt(np.mean(difference**2)))}


def close_to(found: Logits | None, expected: Logits | None, allowed: float) -> bool:
    """Whether both are there, of one shape, and no further apart than is allowed anywhere."""
    if found is None or expected is None or found.shape != expected.shape:
        return False
    return distance(found, expected)["max_abs"] <= allowed


def _crossed(measured: dict[str, float], allowed: dict[str, float]) -> bool:
    return any(not measured[name] <= limit for name, limit in allowed.items())  # a NaN is beyond any limit


def _drop(found: Logits, expected: Logits, subject: Subject) -> float:
    """Points of accuracy that the stage loses on the held-out rows."""
    if not len(subject.truth):
        return 0.0

    before, now = (worth(logits[subject.held_out], subject.truth) for logits in (expected, found))
    return 100 * float(before.mean() - now.mean())


def _repetition(answer: Answer, images: Rows) -> float:
    """How far the same inputs are from being answered the same; a NaN that comes again is the same."""
    rows = images[:REPEATED]
    try:
        first, second = answer(rows), answer(rows)
    except Exception:  # noqa: BLE001 — it refuses batches: then rows are asked alone
        first, second = answered(answer, rows, 1), answered(answer, rows, 1)
    same = (first == second) | (np.isnan(first) & np.isnan(second))
    with np.errstate(invalid="ignore"):
        return float(np.abs(np.where(same, 0.0, first.astype(np.float64) - second)).max(initial=0.0))


def _invariance(link: Link, subject: Subject) -> float:
    if link.answer is None or link.refused:
        return float("inf")
    images = subject.images[:INVARIANCE_ROWS]
    try:
        verdict = batch_invariance(link.answer, images, link.bounds, INVARIANCE_BATCHES, variant="-", runner="-")
    except Exception:  # noqa: BLE001 — a stage that is shared may have been asked for other sizes
        return float("inf")
    found: Any = verdict.measured["max_abs"]
    return float("nan") if found is None else float(found)


def first_line(error: Exception) -> str:
    """What an error says."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def lost_most(results: Sequence[StageResult], measure: str) -> Stage | None:
    """The stage that adds most to a measurement; None where none adds anything."""
    run = [result for result in results if (result.measured.get(measure) or 0) > 0]
    return max(run, key=lambda result: result.measured[measure] or 0).stage if run else None
