"""The benches still run: each in its smallest form, as a program of its own. What they measure is not looked at."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SHORT = ("--seconds", "0.2")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("bench", "arguments", "told"),
    [
        ("serving", ("--rounds", "1", "--connections", "2", *SHORT), "ours beside"),
        ("grpc_serving", ("--rounds", "1", *SHORT), "ours over the echo"),
        ("endurance", ("--scenario", "million", "--requests", "100", *SHORT), "resident MiB"),
        ("endurance", ("--scenario", "reload", *SHORT), "none failed"),
        ("ports", ("--batch", "1", *SHORT), "over the eager original"),
    ],
)
def test_a_bench_prints_its_table(bench: str, arguments: tuple[str, ...], told: str, bundle_path: Path) -> None:
    bundle = (bundle_path,) if bench == "ports" else ("--bundle", bundle_path)
    done = subprocess.run(
        [sys.executable, "-m", f"tests.bench.{bench}", *arguments, *bundle],
        cwd=ROOT, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert told in done.stdout
