"""A manifest without a bundle, for sessions that are made up: pixels in, a logit for each label out."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from trueport.runtime.manifest import Manifest, Task

SHAPE = (4, 5, 1)
ROW_BYTES = 20
LABELS = ("zero", "one", "two")
UNUSED = ("arch", "weights_sha256", "data", "data_sha256", "split_sha256", "created")
"""Of the provenance; what these tests look at says nothing of them."""


def fake_manifest(
    name: str = "digits",
    version: str = "1",
    *,
    labels: Sequence[str] = LABELS,
    row: tuple[int, ...] = SHAPE,
    height: int = SHAPE[0],
    width: int = SHAPE[1],
    task: Task = "classification",
) -> Manifest:
    """row: the input's shape behind the batch."""
    return msgspec.convert(
        {
            "name": name,
            "version": version,
            "task": task,
            "inputs": [{"name": "image", "dtype": "uint8", "shape": (-1, *row)}],
            "outputs": [{"name": "logits", "dtype": "float32", "shape": (-1, len(labels))}],
            "preprocessing": {"height": height, "width": width, "mode": "L"},
            "normalisation": {"mean": (0.5,), "std": (0.5,)},
            "labels": list(labels),
            "variants": [],
            "provenance": dict.fromkeys(UNUSED, "") | {"arch_args": {}, "seed": 0, "versions": {}, "recipe": {}},
            "files": {},
        },
        Manifest,
    )
