"""Every way of running a bundle's variant without torch: one runner a file, opened by its name."""

from __future__ import annotations

from ..bundle import Bundle
from ..errors import unknown_name
from ..runner import Runner

RUNNERS = ("onnxruntime:cpu", "onnxruntime:cuda")


def open_runner(
    bundle: Bundle, runner: str = RUNNERS[0], variant: str | None = None, threads: int | None = None
) -> Runner:
    """Open a variant (None: the bundle's first) on a runner, or raise: nothing falls back to anything else.

    threads: of one inference; None: one for each core that this process may use.
    Raises UsageError for an unknown name, MissingError where this machine lacks what the runner needs.
    """
    if runner not in RUNNERS:
        raise unknown_name("runner", runner, RUNNERS)
    from .ort import OrtRunner

    return OrtRunner(bundle.file(bundle.variant(variant).file), runner.partition(":")[2], threads)
