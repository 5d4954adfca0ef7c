"""Which of a bundle's inputs are looked at: a fault may show on few of them, and has to be among those."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

from trueport.runtime.runner import Runner

from .chain import Answer, answer_of, in_batches_or_alone
from .subject import Logits, Order, Rows, Subject, farthest


def choose_inputs(subject: Subject, opened: Callable[[], Runner]) -> None:
    """Look at the inputs on which a runner is farthest from the recording, and at as many usual ones.

    opened: what did not pass. Where it can't be had or can't answer, the usual ones are looked at: the stages tell why.
    """
    subject.look_at()
    if not subject.chooses:
        return
    try:
        with contextlib.closing(opened()) as runner:
            answer = answer_of(runner)
            golden = _farthest(answer, subject.golden.images, subject.golden.logits)
            held_out = _farthest(answer, subject.evaluation.images, subject.evaluation.logits)
    except Exception:  # noqa: BLE001 — a library's or an application's own: what refuses here refuses as a stage too
        return
    subject.look_at(golden, held_out)


def _farthest(answer: Answer, images: Rows, recorded: Logits) -> Order:
    return farthest(in_batches_or_alone(answer, images)[0], recorded)
