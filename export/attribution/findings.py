"""What parts of an examination hand on: what is on trial, the inputs that show it, the finding."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from trueport.runtime.bundle import Bundle
from trueport.runtime.explanation import Departure, Stage
from trueport.runtime.manifest import Variant
from trueport.runtime.runner import Runner
from trueport.runtime.verdict import Verdict

from .chain import Chain, Link, answered
from .experiments import Case, Mistake, explaining, input_mistakes, logit_mistakes, module_mistakes, pixel_mistakes
from .subject import Logits, Rows, Subject, close_rows, tensor_rows

ROWS_TOGETHER = (2, 7, 32)
"""Sizes of batches in which rows are tried where single ones agree."""


@dataclass(frozen=True, eq=False)
class Trial:
    """One variant on one runner, and the gates that it did not pass."""

    subject: Subject
    variant: Variant
    runner: str
    chain: Chain
    gates: Mapping[str, Verdict]
    """By name, those that failed or are undecided."""
    reopened: Callable[[Bundle], Runner]
    """The runner on trial, for another bundle in the place of this one."""
    say: Callable[[str], None] = lambda _: None


@dataclass(frozen=True)
class Finding:
    """What it comes from, as `Explanation` has it."""

    cause: str
    remedy: str
    confirmed: bool = False
    first: tuple[Departure, ...] = ()
    float_layers: tuple[str, ...] = ()


def share(link: Link, expected: Logits) -> float:
    """Of a tensor's largest value, what it may differ by: the bound's share of the largest logit."""
    return link.bounds.max_abs / max(float(np.abs(expected).max(initial=0.0)), 1e-30)


def case_of(chain: Chain, stage: Stage, images: Rows) -> Case | None:
    """Inputs on which a stage departs, asked in one batch; None where it can't be asked or does not depart again."""
    link, before = chain.link(stage), chain.before(stage)
    if link.answer is None or link.logits is None or before.logits is None or link.logits.shape != before.logits.shape:
        return None
    worst = close_rows(link.logits, before.logits)
    for rows in (worst, *(np.arange(min(size, len(images))) for size in ROWS_TOGETHER)):
        # The stage before is asked row by row where it can be: what rows of a batch do to each other is then on trial.
        expected = before.logits[rows] if before.answer is None else answered(before.answer, images[rows], 1)
        try:
            found = link.answer(images[rows])
        except Exception:  # noqa: BLE001 — it refuses batches, which the stage tells; then rows are asked alone
            found = answered(link.answer, images[rows], 1)
        if found.shape == expected.shape and not _within(found, expected, link.bounds.max_abs):
            result = chain.result(stage)
            together = not _kept(result.measured.get("batches", 0.0), result.allowed.get("batches", 0.0))
            return Case(images[rows], found, expected, link.bounds.max_abs, together)
    return None


def images_of(case: Case) -> Rows:
    """Its inputs that differ most, so few that all tensors of a network may be held for them."""
    return case.images[close_rows(case.found, case.expected, tensor_rows(case.images))]


def _kept(value: float | None, limit: float) -> bool:
    return value is not None and value <= limit


def _within(found: Logits, expected: Logits, allowed: float) -> bool:
    return bool(np.abs(found.astype(np.float64) - expected).max() <= allowed)


def known_mistake(trial: Trial, stage: Stage, case: Case | None) -> Mistake | None:
    """The usual mistake that answers what the stage does."""
    return explaining(case, _mistakes(trial, stage, case)) if case is not None else None


def _mistakes(trial: Trial, stage: Stage, case: Case) -> Iterator[Mistake]:
    before, original = trial.chain.before(stage).answer, trial.subject.original
    if before is not None:
        yield from pixel_mistakes(case.images, before)
    if original is not None:
        yield from input_mistakes(original, case.images)
        yield from module_mistakes(original, case.images, case.found)
    yield from logit_mistakes(case)
