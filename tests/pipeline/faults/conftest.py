"""A bundle that nearly every fault can be planted into; and what a fault is given of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.fidelity.networks import digits_bundle, registered
from trueport.pipeline.deployment import Deployment
from trueport.pipeline.faults import Healthy
from trueport.runtime.bundle import Bundle


@pytest.fixture(scope="session")
def victim(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """`everything` in fp32 and int8; don't write into it."""
    with registered():
        yield digits_bundle(tmp_path_factory.mktemp("victim") / "bundle", precisions=("fp32", "int8"), rows=300)


@pytest.fixture
def healthy(victim: Path, tmp_path: Path) -> Callable[[str], Healthy]:
    """A variant of it, on onnxruntime's CPU, with a folder of its own for each fault."""

    def made(variant: str) -> Healthy:
        bundle = Bundle.open(victim)
        scratch = tmp_path / f"copy-{len(list(tmp_path.iterdir()))}"
        scratch.mkdir()
        return Healthy(Deployment(bundle), bundle.variant(variant), "onnxruntime:cpu", scratch)

    return made
