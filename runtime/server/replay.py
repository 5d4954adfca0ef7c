"""Before a model is served: the golden set, on the very runner that will answer."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain, repeat
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .. import comparison
from ..errors import GateError
from ..preprocessing import prepare
from ..runner import Runner, run_in_batches
from ..verdict import Verdict

if TYPE_CHECKING:
    from ..session import Session


SMALL = 8
"""A batch of up to so many rows is tried in every size: a runner that takes what is waiting meets them all."""


def replayed(session: Session) -> tuple[Verdict, ...]:
    """Whether preprocessing and logits are what was recorded at export; each row alone, and in batches of many sizes.

    Warms the runner up on the way: no request has to wait for what a runner allocates, or compiles, for such a batch.
    """
    bundle, variant, runner = session.bundle, session.variant, session.runner
    golden, largest = bundle.golden(), session.batcher.limits.max_batch_rows
    names = {"variant": variant.name, "runner": runner.report().name}
    prepared = [prepare(picture, bundle.manifest.preprocessing) for picture in golden.encoded]
    verdicts = [comparison.preprocessing_identity(prepared, golden.prepared)]
    for sizes, told in {(1,): "one by one", batch_sizes(largest): f"in batches of up to {largest}"}.items():
        rows = max(sum(sizes), len(golden.images))
        images = np.resize(golden.images, (rows, *golden.images.shape[1:]))
        logits = np.resize(golden.logits, (rows, golden.logits.shape[1]))
        detail = f"{len(golden.images)} golden inputs {told} against the recording"
        port = _run_in(sizes, runner, images)
        task = bundle.manifest.task
        verdicts.append(comparison.parity(port, logits, variant.bounds, detail=detail, task=task, **names))
    return tuple(verdicts)


def batch_sizes(largest: int) -> tuple[int, ...]:
    """What to try of the batches that may come: the largest first, the powers of two below it, then the small ones."""
    powers = (1 << place for place in reversed(range(1, (largest - 1).bit_length())))
    return tuple(dict.fromkeys((largest, *powers, *range(2, min(largest, SMALL)))))


def _run_in(sizes: Sequence[int], runner: Runner, images: NDArray[np.uint8]) -> NDArray[Any]:
    """Logits (N, K) of all images (N, H, W, C), in batches of these sizes; what is left in those of the first."""
    parts, start = [], 0
    for size in chain(sizes, repeat(sizes[0])):
        if start >= len(images):
            break
        parts.append(run_in_batches(runner, images[start : start + size], size))
        start += size
    return np.concatenate(parts)


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
