"""What is on trial: a bundle, and what an application does around it.

`check` judges what trueport itself does; an application that prepares pictures, runs graphs, names classes or makes the
original in its own way puts that in here and is judged by the same gates.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from trueport.export.original import Original, original_from_bundle
from trueport.runtime.bundle import Bundle
from trueport.runtime.manifest import Preprocessing
from trueport.runtime.preprocessing import prepare
from trueport.runtime.runner import Runner, RunnerOptions
from trueport.runtime.runners import open_runner

Prepare = Callable[[bytes, Preprocessing], NDArray[np.uint8]]
"""An encoded picture and the manifest's parameters -> uint8 (H, W, C). Raises ImageError for what it can't decode."""
Open = Callable[[Bundle, str, str, RunnerOptions], Runner]
"""Bundle, runner's name, variant's name, options -> a runner; raises as `open_runner` does."""
Rebuild = Callable[[Bundle, bool], Original]
"""A bundle, and whether code that it names may be run -> its original; raises as `original_from_bundle` does."""


@dataclass(frozen=True, eq=False)
class Deployment:
    """A bundle as it is deployed; what is not said is trueport's own."""

    bundle: Bundle
    prepare: Prepare = field(default=prepare)
    open: Open = field(default=open_runner)
    original: Rebuild = field(default=original_from_bundle)
    labels: tuple[str, ...] | None = None
    """The application's names of the classes, in its order; None: the manifest's."""
    runners: tuple[str, ...] = ()
    """Runners' names that `open` takes beside those of RUNNERS."""
