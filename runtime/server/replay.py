"""Before a model is served: the golden set, on the very runner that will answer."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .. import comparison
from ..errors import GateError
from ..preprocessing import prepare
from ..runner import run_in_batches
from ..verdict import Verdict

if TYPE_CHECKING:
    from ..session import Session


def replayed(session: Session) -> tuple[Verdict, ...]:
    """Whether preprocessing and logits are what was recorded at export; each row alone, and in the largest batch.

    Warms the runner up on the way: no request has to wait for what those runs allocate.
    """
    bundle, variant, runner = session.bundle, session.variant, session.runner
    golden, rows = bundle.golden(), session.batcher.limits.max_batch_rows
    names = {"variant": variant.name, "runner": runner.report().name}
    prepared = [prepare(picture, bundle.manifest.preprocessing) for picture in golden.encoded]
    verdicts = [comparison.preprocessing_identity(prepared, golden.prepared)]
    for batch in sorted({1, rows}):
        # repeated up to one full batch, so that this size is really run
        images = np.resize(golden.images, (max(batch, len(golden.images)), *golden.images.shape[1:]))
        logits = np.resize(golden.logits, (len(images), golden.logits.shape[1]))
        detail = f"{len(images)} golden inputs in batches of {batch} against the recording"
        port = run_in_batches(runner, images, batch)
        task = bundle.manifest.task
        verdicts.append(comparison.parity(port, logits, variant.bounds, detail=detail, task=task, **names))
    return tuple(verdicts)


def require_golden(session: Session) -> str:
    """Replay the golden set; one sentence on what passed.

    Raises GateError, which names what was measured and what is allowed: such a model is not served.
    """
    verdicts = replayed(session)
    name = f"{session.manifest.name} {session.manifest.version}"
    failed = [_said(verdict) for verdict in verdicts if not verdict]
    if failed:
        where = f"{session.variant.name} on {verdicts[-1].runner}"
        raise GateError(
            f"{name} is not served: {where} does not answer the golden set as the original did; {'; '.join(failed)};"
            " run `trueport check`, or choose another runner or variant"
        )
    return f"{name}: golden set passed, {verdicts[-1].detail}"


def _said(verdict: Verdict) -> str:
    crossed = ", ".join(
        f"{limit} {'not finite' if value is None else f'{value:.3g}'}, allowed {verdict.allowed[limit]:.3g}"
        for limit, value in verdict.would_pass.items()
    )
    return f"{verdict.gate}: {crossed} ({verdict.detail})"
