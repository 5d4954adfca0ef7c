"""Why torch.export's program does not answer what the module does: branches that exporting takes, usual mistakes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from unittest import mock

from trueport.runtime.explanation import Stage

from .chain import answer_of, close_to
from .findings import Finding, Trial, case_of, known_mistake

ASKED = (
    "torch.compiler.is_exporting",
    "torch.compiler.is_compiling",
    "torch.jit.is_tracing",
    "torch.onnx.is_in_onnx_export",
)
"""By which a forward tells that it is exported."""


def exported_finding(trial: Trial, stage: Stage) -> Finding:
    """A branch for exporting, a usual mistake, or something that was frozen."""
    case = case_of(trial.chain, stage, trial.subject.images)
    if trial.subject.original is not None and case is not None:
        from ..original import OriginalRunner

        runner = OriginalRunner(trial.subject.original, trial.subject.threads)
        with _as_if_exporting():
            branched = answer_of(runner)(case.images)
        if close_to(branched, case.found, case.allowed):
            return Finding(
                "the module takes another branch while it is exported: run with that branch it answers the same",
                "let its forward do the same whether it is exported or not (torch.compiler.is_exporting and the like)",
                True,
            )
    mistake = known_mistake(trial, stage, case)
    if mistake is not None:
        return Finding(mistake.cause, mistake.remedy, True)
    return Finding(
        "torch.export's program is not the module: a branch or a number that depends on the input was frozen",
        "take branches on values and sizes out of the model's forward, or write them with torch.where or torch.cond",
    )


@contextlib.contextmanager
def _as_if_exporting() -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        for name in ASKED:
            stack.enter_context(mock.patch(name, lambda: True, create=True))  # torch may have given one up
        yield
