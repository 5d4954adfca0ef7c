"""A model is served once it answers its golden set as the original did, and only finite numbers are answers."""

from __future__ import annotations

import hashlib
import os
import re
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from trueport.runtime import BatchLimits, Session, load
from trueport.runtime.bundle import GOLDEN, Bundle, sealed
from trueport.runtime.errors import EXIT_GATE_FAILED, GateError, OutputError
from trueport.runtime.manifest import MANIFEST, FileEntry
from trueport.runtime.runner import Array
from trueport.runtime.server import require_golden, serve
from trueport.runtime.server.replay import SMALL, batch_sizes


class Disturbed:
    """The real runner, and what is added to its logits."""

    def __init__(self, session: Session, added: float, only_batches_of: int | None = None) -> None:
        self._runner, self._added, self._rows = session.runner, added, only_batches_of
        self.inputs, self.outputs = session.runner.inputs, session.runner.outputs

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        rows = len(next(iter(feeds.values())))
        added = self._added if self._rows in (None, rows) else 0
        return {name: values + np.float32(added) for name, values in self._runner.run(feeds).items()}

    def report(self) -> Any:
        return self._runner.report()

    def close(self) -> None:
        self._runner.close()


@pytest.fixture
def session(bundle_path: Path) -> Iterator[Session]:
    with load(bundle_path, runner="onnxruntime:cpu", threads=1, limits=BatchLimits(max_batch_rows=100)) as session:
        yield session


def test_a_faithful_runner_passes_alone_and_in_batches_of_many_sizes(session: Session) -> None:
    sizes: list[int] = []
    run = session.runner.run

    def recorded(feeds: Mapping[str, Array]) -> dict[str, Array]:
        sizes.append(len(feeds["image"]))
        return run(feeds)

    session.runner.run = recorded  # type: ignore[method-assign]
    assert "golden set passed" in require_golden(session)
    assert set(sizes) == {*range(1, 9), 16, 32, 64, 100}


@pytest.mark.parametrize("largest", [1, 2, 3, 7, 8, 9, 32, 100])
def test_the_largest_batch_and_every_small_one_is_tried_once(largest: int) -> None:
    sizes = batch_sizes(largest)
    assert sizes[0] == max(sizes) == largest
    assert len(set(sizes)) == len(sizes)
    assert set(sizes) >= set(range(2, min(largest, SMALL) + 1))


@pytest.mark.parametrize(("added", "batch"), [(0.1, None), (0.1, 100), (0.1, 5), (0.1, 1), (float("nan"), None)])
def test_a_runner_that_answers_otherwise_is_not_served(session: Session, added: float, batch: int | None) -> None:
    allowed = session.variant.bounds.max_abs
    session.runner = Disturbed(session, added, batch)
    with pytest.raises(GateError) as error:
        require_golden(session)
    said = str(error.value)
    assert f"max_abs {'not finite' if np.isnan(added) else '0.1'}, allowed {allowed:.3g}" in said
    assert "is not served: fp32 on onnxruntime:cpu" in said
    assert error.value.exit_code == EXIT_GATE_FAILED


def test_after_the_replay_openvino_compiles_nothing_more(bundle_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("openvino")
    from trueport.runtime.runners.openvino_cpu import OpenVinoRunner

    compiled: list[int | None] = []
    compile_for = OpenVinoRunner._compiled

    def counted(runner: OpenVinoRunner, rows: int | None) -> Any:
        compiled.append(rows)
        return compile_for(runner, rows)

    monkeypatch.setattr(OpenVinoRunner, "_compiled", counted)
    with load(bundle_path, runner="openvino:cpu", threads=1) as session:
        require_golden(session)
        assert {1, 32, None} <= set(compiled)
        before = len(compiled)
        for rows in range(1, 33):
            session.run(np.zeros((rows, *session.manifest.preprocessing.shape), np.uint8))
        assert len(compiled) == before


def test_preprocessing_that_differs_is_not_served(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "trueport.runtime.server.replay.prepare", lambda _, parameters: np.full(parameters.shape, 7, np.uint8)
    )
    with pytest.raises(GateError, match=r"preprocessing: max_levels \d+, allowed 0"):
        require_golden(session)


def test_serve_does_not_listen_for_a_model_that_fails(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    session.runner = Disturbed(session, 0.1)
    listening: list[str] = []
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with pytest.raises(GateError):
        serve([session], port=port, log=listening.append)
    assert listening == []
    assert session.closed
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=5)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_what_is_not_finite_fails_for_its_own_request_alone(session: Session, value: float) -> None:
    run, images = session.runner.run, session.bundle.golden().images[:4].copy()
    images[2] = 99

    def poisoned(feeds: Mapping[str, Array]) -> dict[str, Array]:
        outputs = run(feeds)
        outputs["logits"][(feeds["image"] == 99).all(axis=(1, 2, 3)), 1] = value
        return outputs

    session.runner.run = poisoned  # type: ignore[method-assign]
    answers = [session.batcher.submit(images[i : i + 1]) for i in range(4)]
    with pytest.raises(OutputError, match="NaN or infinity in 'logits'"):
        answers[2].result(30)
    assert all(np.isfinite(answers[i].result(30)["logits"]).all() for i in (0, 1, 3))
    assert session.batcher.stats().failed == 1


def trueport_serve(bundle: Path, *options: str, **environment: str) -> subprocess.Popen[str]:
    code = "from trueport.pipeline.cli import main; main()"
    command = [sys.executable, "-c", code, "serve", str(bundle), "--http", "0", *options]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=os.environ | environment)


def test_the_command_ends_with_1_where_the_golden_set_is_not_met(own_bundle: Path) -> None:
    manifest = Bundle.open(own_bundle).manifest
    with np.load(own_bundle / GOLDEN) as file:
        arrays = {name: file[name] for name in file.files}
    np.savez(own_bundle / GOLDEN, **arrays | {"logits": arrays["logits"] + np.float32(0.5)})
    data = (own_bundle / GOLDEN).read_bytes()
    entry = FileEntry(hashlib.sha256(data).hexdigest(), len(data))
    changed = msgspec.structs.replace(manifest, files=manifest.files | {GOLDEN: entry})
    (own_bundle / MANIFEST).write_bytes(sealed(changed))
    with trueport_serve(own_bundle) as server:
        _, err = server.communicate(timeout=60)
    assert server.returncode == EXIT_GATE_FAILED
    assert "max_abs 0.5, allowed" in err
    assert "http://" not in err


@pytest.mark.parametrize("way", ["file", "variable"])
def test_the_command_asks_for_the_token_it_was_given(bundle_path: Path, tmp_path: Path, way: str) -> None:
    file = tmp_path / "token"
    file.write_text("s3cret\n")
    options, environment = (
        ([], {"TRUEPORT_TOKEN": "s3cret"}) if way == "variable" else (["--token-file", str(file)], {})
    )
    with trueport_serve(bundle_path, "--open-health", *options, **environment) as server:
        assert server.stderr is not None
        address = next(found[0] for line in server.stderr if (found := re.findall(r"http://[\d.:]+", line)))
        assert status(f"{address}/v2") == 401
        assert status(f"{address}/v2", Authorization="Bearer s3cret") == 200
        assert status(f"{address}/v2/health/ready") == 200
        server.send_signal(signal.SIGTERM)
        assert server.wait(timeout=30) == 0


def status(url: str, **headers: str) -> int:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=30) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        with error:
            return error.code
