"""No false alarms: healthy exports of every architecture, checked; and how near to their bounds they come.

Weights are random, with batch norm's statistics settled on the pictures: that is as good as trained ones for what is
measured here, which is how far a faithful port is from its original.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from trueport import models
from trueport.export.bundle import Origin, write_bundle
from trueport.export.int8 import Int8Options
from trueport.export.original import Original
from trueport.export.variants import Material
from trueport.pipeline.check import ALL, References, check_deployment
from trueport.pipeline.deployment import Deployment
from trueport.pipeline.gates import OPENING
from trueport.pipeline.tuning.space import BF16_SETS
from trueport.runtime.bundle import Bundle
from trueport.runtime.errors import ExportError
from trueport.runtime.machine import describe_machine
from trueport.runtime.manifest import Normalisation, Precision, Preprocessing
from trueport.runtime.runners import DEFAULT
from trueport.runtime.verdict import Verdict

from .winograd import WINOGRAD, served_by_winograd

CLASSES = 10
GOLDEN, EVALUATED, CALIBRATED = 8, 64, 32
BF16: tuple[Precision, ...] = () if BF16_SETS.isdisjoint(describe_machine().instruction_sets) else ("bf16",)
PRECISIONS: tuple[Precision, ...] = ("fp32", *BF16, "fp16", "int8")
"""bf16 takes as long to export as the others: it is left out where no runner judges it."""
THREADS = 2
DEVIATIONS = ("max_abs", "rms")
NOT_JUDGED = {OPENING, "evidence", "labels"}
"""What can't be had here, and gates of the pictures, which are made up."""


class Measured(msgspec.Struct, frozen=True):
    """One gate on one variant of a healthy export."""

    gate: str
    variant: str
    runner: str
    threads: int
    status: str
    to_noise: float | None
    """The deviation in shares of the original's own noise; the larger one of largest and rms."""
    to_bound: float | None
    """The same, in shares of what is allowed: 1 would fail."""
    detail: str = ""
    """Where it did not pass."""


class Export(msgspec.Struct, frozen=True):
    """One healthy export, and all that was judged of it."""

    arch: str
    seed: int
    refused: tuple[str, ...]
    """Why other precisions could not be had."""
    measured: tuple[Measured, ...]
    seconds: float


def made_up(size: tuple[int, int], channels: int, rows: int, seed: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Pictures of soft blots and some noise, uint8 (N, H, W, C), and classes that have nothing to do with them."""
    chance = np.random.default_rng(seed)
    coarse = chance.random((rows, 5, 5, channels))
    down, across = (np.linspace(0, 4, count).round().astype(int) for count in size)
    soft = coarse[:, down][:, :, across]
    noisy = soft + chance.normal(0, 0.08, soft.shape)
    return (255 * np.clip(noisy, 0, 1)).astype(np.uint8), chance.integers(0, CLASSES, rows)


def settled(module: nn.Module, images: NDArray[np.uint8], mean: float, std: float) -> nn.Module:
    """The module with batch norm's statistics of these pictures, in eval mode."""
    pixels = torch.from_numpy(images).float().div(255).sub(mean).div(std).permute(0, 3, 1, 2)
    norms = [part for part in module.modules() if isinstance(part, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = None  # the mean over all batches
        norm.reset_running_stats()
        norm.train()
    if isinstance(module, models.registry.Adapted):
        module.adapt(pixels)
    with torch.no_grad():
        for rows in torch.chunk(pixels, 2 if norms else 1):
            module(rows)
    return module.eval()


def healthy_original(arch: str, size: tuple[int, int], args: dict[str, Any], seed: int) -> Original:
    """An architecture with random weights."""
    torch.manual_seed(seed)
    spec = models.spec(arch)
    channels = 3 if 3 in spec.channels else spec.channels[0]
    mean, std = (value if isinstance(value, float) else 0.5 for value in (spec.mean, spec.std))
    module = models.create(arch, num_classes=CLASSES, channels=channels, **args).eval()
    settled(module, made_up(size, channels, 16, seed + 1)[0], mean, std)
    return Original(
        module,
        tuple("abcdefghij"),
        Preprocessing(height=size[0], width=size[1], mode="RGB" if channels == 3 else "L"),
        Normalisation((mean,) * channels, (std,) * channels),
        arch,
        dict(args),
    )


def healthy_export(
    arch: str, size: tuple[int, int], args: dict[str, Any], seed: int, precisions: tuple[Precision, ...] = PRECISIONS
) -> Export:
    """Export one, check it on every runner that is here, and tell what was measured. Where a precision can't be had of
    such weights, which is the exporter's to say, the others are."""
    begun, refused = time.perf_counter(), list[str]()
    original = healthy_original(arch, size, args, seed)
    with tempfile.TemporaryDirectory() as folder:
        for left in range(len(precisions), -1, -1):
            try:
                _write(original, Path(folder, "bundle"), precisions[-left:] if left else (), seed)
                break
            except ExportError as error:
                refused.append(str(error))
        measured = tuple(_measured(Path(folder, "bundle")))
    return Export(arch, seed, tuple(refused), measured, round(time.perf_counter() - begun, 1))


def _write(original: Original, folder: Path, precisions: tuple[Precision, ...], seed: int) -> None:
    height, width, channels = original.preprocessing.shape
    images, labels = made_up((height, width), channels, GOLDEN + EVALUATED + 2 * CALIBRATED, seed + 2)
    held, rest = images[: GOLDEN + EVALUATED], images[GOLDEN + EVALUATED :]
    write_bundle(
        original,
        folder,
        name="healthy",
        origin=Origin("made up", "ab" * 32, "cd" * 32, seed, {}),
        golden=held[:GOLDEN],
        pictures=(),
        evaluation=(held[GOLDEN:], labels[GOLDEN : GOLDEN + EVALUATED]),
        precisions=precisions,
        material=Material(rest[:CALIBRATED], rest[CALIBRATED:], labels[-CALIBRATED:]),
        max_drop=10.0,  # of random weights: what they lose says nothing
        int8=Int8Options("minmax", CALIBRATED),
    )


def _measured(bundle: Path) -> Iterator[Measured]:
    """On every runner; on the default one with a single thread too; and as the least exact of faithful ports."""
    healthy, references = Deployment(Bundle.open(bundle)), References()
    report = check_deployment(healthy, runners=(ALL,), threads=THREADS, references=references)
    yield from _judged(report.verdicts, THREADS)
    opened = sorted({verdict.variant for verdict in _of(DEFAULT, report.verdicts)})
    report = check_deployment(healthy, variants=opened, runners=(DEFAULT,), threads=1, references=references)
    yield from _judged(_of(DEFAULT, report.verdicts), 1)
    winograd = served_by_winograd(healthy.bundle)
    if winograd is not None:
        report = check_deployment(
            winograd, variants=("fp32",), runners=(WINOGRAD,), threads=THREADS, references=references
        )
        yield from _judged(_of(WINOGRAD, report.verdicts), THREADS)


def _of(runner: str, verdicts: Sequence[Verdict]) -> list[Verdict]:
    return [verdict for verdict in verdicts if verdict.runner == runner and verdict.gate != OPENING]


def _judged(verdicts: Sequence[Verdict], threads: int) -> list[Measured]:
    return [_ratios(verdict, threads) for verdict in verdicts if verdict.gate not in NOT_JUDGED]


def _ratios(verdict: Verdict, threads: int) -> Measured:
    noise = {name: verdict.measured.get(f"noise_{name}") or 0.0 for name in DEVIATIONS}
    return Measured(
        gate=verdict.gate,
        variant=verdict.variant,
        runner=verdict.runner,
        threads=threads,
        status=verdict.status,
        to_noise=_share(verdict, noise),
        to_bound=_share(verdict, verdict.allowed),
        detail="" if verdict else verdict.detail,
    )


def _share(verdict: Verdict, limits: dict[str, float]) -> float | None:
    """The largest deviation in shares of its limit; None where there is no limit, or no number."""
    found = [(verdict.measured.get(name), limits.get(name, 0.0)) for name in DEVIATIONS]
    return max((value / limit for value, limit in found if value is not None and limit > 0), default=None)


def alarms(exports: Sequence[Export]) -> list[str]:
    """What failed though nothing was wrong, a line each."""
    return [
        f"{export.arch}, seed {export.seed}: {one.gate} of {one.variant} on {one.runner} with {one.threads} threads "
        f"{one.status}: {one.detail}"
        for export in exports
        for one in export.measured
        if one.status == "failed"
    ]


def alarm_rows(exports: Sequence[Export]) -> list[str]:
    """Markdown rows: by variant and runner, how many were judged, alarms, and the largest deviations."""
    groups: dict[tuple[str, str], list[tuple[Export, Measured]]] = {}
    for export in exports:
        for one in export.measured:
            if one.gate == "parity":
                groups.setdefault((one.variant, one.runner), []).append((export, one))
    rows = []
    for (variant, runner), found in groups.items():
        failed = sum(one.status == "failed" for _, one in found)
        worst, its = max(found, key=lambda pair: pair[1].to_bound or 0.0)
        noise = max((one.to_noise or 0.0) for _, one in found)
        cells = (variant, runner, str(len(found)), str(failed), f"{noise:.2f}", f"{its.to_bound or 0:.2f}", worst.arch)
        rows.append(f"| {' | '.join(cells)} |")
    return rows
