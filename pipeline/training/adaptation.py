"""Showing training pictures to an architecture that adapts to them before it learns: a threshold, say."""

from __future__ import annotations

import numpy as np
import torch

from trueport.models import Adapted

from ..data import prepared
from ..seeds import derived_seed
from .job import Job

PICTURES, VALUES = 4096, 2**28
"""Most pictures, and most of their values together, that are shown."""


def adapt(job: Job) -> None:
    """Let the network look at training pictures, drawn evenly; nothing where it does not ask for that."""
    network, original = job.original.module, job.original
    if not isinstance(network, Adapted):
        return
    count = max(1, min(PICTURES, VALUES // int(np.prod(original.preprocessing.shape))))
    chance = np.random.default_rng(derived_seed(job.recipe.train.seed, "adaptation"))
    drawn = np.sort(chance.permutation(job.parts.train)[:count])
    images = torch.from_numpy(prepared(job.dataset, drawn, original.preprocessing)).float()
    mean, std = (torch.tensor(values) for values in (original.normalisation.mean, original.normalisation.std))
    network.adapt(((images / 255 - mean) / std).permute(0, 3, 1, 2))
