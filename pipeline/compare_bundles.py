"""Two bundles on this machine: the same pictures, in turns, on the same runner."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trueport.runtime.bundle import Bundle
from trueport.runtime.comparison import Labels, Logits, worth
from trueport.runtime.errors import UsageError
from trueport.runtime.paired import mcnemar_p, score_differences
from trueport.runtime.rounds import CLEAR
from trueport.runtime.runner import Runner, RunnerOptions, run_in_batches
from trueport.runtime.runners import open_runner
from trueport.runtime.timing import Paired
from trueport.runtime.timing import compare as timed_in_turns

from .bench import MIN_BLOCKS, tiled
from .comparing import SLOWEST, Comparison, Finding, Standing, concluded, differences

BATCHES = (1, 8)


def compare_bundles(
    a: Path,
    b: Path,
    *,
    variant: str | None,
    runner: str,
    margin: float,
    seconds: float,
    threads: int | None,
    progress: Callable[[str], None],
) -> Comparison:
    """See `compare`."""
    if not 0 <= margin <= 100:
        raise UsageError(f"the margin must be from 0 to 100 points of accuracy, found {margin:g}")
    if not seconds > 0:
        raise UsageError(f"the time for each batch size must be above 0 seconds, found {seconds:g}")
    bundles = Bundle.open(a), Bundle.open(b)
    names = tuple(bundle.variant(variant).name for bundle in bundles)
    changes = differences(*(_facts(bundle, name) for bundle, name in zip(bundles, names, strict=True)))
    findings: list[Finding] = []
    if why := _incomparable(*bundles):
        findings.append(Finding(what="answers", standing="undecided", detail=f"not compared: {why}"))
        return concluded("bundles", (str(a), str(b)), changes, findings)
    options = RunnerOptions(threads=threads)
    first, second = (
        closing(open_runner(bundle, runner, name, options)) for bundle, name in zip(bundles, names, strict=True)
    )
    with first as ours, second as theirs:
        progress("answers")
        findings += _answers(bundles, ours, theirs, names[0], margin)
        findings += _speeds(bundles[0], ours, theirs, seconds, progress)
    titles = (f"{path}, {name} on {runner}" for path, name in zip((a, b), names, strict=True))
    return concluded("bundles", (next(titles), next(titles)), changes, findings)


def _facts(bundle: Bundle, variant: str) -> dict[str, object]:
    manifest, origin = bundle.manifest, bundle.manifest.provenance
    chosen = bundle.variant(variant)
    return {
        "name": manifest.name,
        "version": manifest.version,
        "manifest": manifest.sha256[:12],
        "architecture": origin.arch,
        "its arguments": origin.arch_args,
        "weights": origin.weights_sha256[:12],
        "data": f"{origin.data} {origin.data_sha256[:12]}",
        "split": origin.split_sha256[:12],
        "seed": origin.seed,
        "labels": ", ".join(manifest.labels),
        "preprocessing": manifest.preprocessing,
        "normalisation": manifest.normalisation,
        "variants": ", ".join(one.name for one in manifest.variants),
        "variant": chosen.name,
        "layers": ", ".join(f"{count} in {kind}" for kind, count in chosen.reached.items()),
        "graph": manifest.files[chosen.file].sha256[:12],
        "bytes of the graph": f"{manifest.files[chosen.file].size:,}",
        "allowed difference of a logit": f"{chosen.bounds.max_abs:.3g}",
    } | {f"{name}, at export": version for name, version in origin.versions.items()}


def _incomparable(a: Bundle, b: Bundle) -> str:
    """Why the two can't be asked about the same prepared pictures; empty where they can."""
    ours, theirs = a.manifest, b.manifest
    if ours.task != theirs.task:
        return f"A is a model of {ours.task}, B of {theirs.task}"
    if sorted(ours.labels) != sorted(theirs.labels):
        return "they have other labels"
    if ours.preprocessing != theirs.preprocessing:
        return "they prepare pictures otherwise, and bundles hold prepared ones"
    if (ours.provenance.data_sha256, ours.provenance.split_sha256) != (
        theirs.provenance.data_sha256,
        theirs.provenance.split_sha256,
    ):
        return "they were trained on other data or another split: one may have seen the other's held-out pictures"
    return ""


def _answers(
    bundles: tuple[Bundle, Bundle], ours: Runner, theirs: Runner, variant: str, margin: float
) -> Iterator[Finding]:
    """On the pictures that either of them holds out, each once; logits of B in A's order of labels."""
    images, truth = _pictures(*bundles)
    a, b = run_in_batches(ours, images), run_in_batches(theirs, images)[:, _order(*bundles)]
    yield _logits(a, b, truth, bundles[0].variant(variant).bounds.max_abs)
    yield _accuracy(a, b, truth, margin)


def _order(a: Bundle, b: Bundle) -> list[int]:
    """The place in B of each of A's labels."""
    return [b.manifest.labels.index(label) for label in a.manifest.labels]


def _pictures(a: Bundle, b: Bundle) -> tuple[NDArray[np.uint8], Labels]:
    """The pictures, and their true labels in A's order, shaped as `Evaluation` has them."""
    seen: dict[bytes, tuple[NDArray[np.uint8], Labels]] = {}
    for bundle in (a, b):
        evaluation, order = bundle.evaluation(), _order(a, bundle)
        truth = evaluation.labels[:, order] if evaluation.labels.ndim > 1 else np.argsort(order)[evaluation.labels]
        seen.update((image.tobytes(), (image, label)) for image, label in zip(evaluation.images, truth, strict=True))
    return np.stack([image for image, _ in seen.values()]), np.array([label for _, label in seen.values()])


def _answered(logits: Logits, truth: Labels) -> NDArray[np.integer[Any]]:
    """Shaped as the truth: the class, or of several labels a picture for each whether it is said to be there."""
    return logits.argmax(1) if truth.ndim == 1 else (logits > 0).astype(truth.dtype)


def _logits(a: Logits, b: Logits, truth: Labels, allowed: float) -> Finding:
    difference = np.abs(a.astype(np.float64) - b)
    largest = float(difference.max())
    changed = int(np.sum(_answered(a, truth) != _answered(b, truth)))
    same = largest <= allowed
    said = "within" if same else "beyond"
    return Finding(
        what="answers",
        standing="same" if same else "changed",
        measured={"max_abs": largest if np.isfinite(largest) else None, "changed": float(changed)},
        detail=f"largest difference of a logit {largest:.3g}, {said} A's own bound of {allowed:.3g}; "
        f"{changed} of {truth.size} {'predictions' if truth.ndim == 1 else 'decisions'} changed",
    )


def _accuracy(a: Logits, b: Logits, truth: Labels, margin: float) -> Finding:
    """By what the answer to each picture is worth."""
    scores = [worth(logits, truth) for logits in (a, b)]
    lost, won = int(np.sum(scores[1] < scores[0])), int(np.sum(scores[1] > scores[0]))
    differences = score_differences(scores[1], scores[0])
    low, high = (100 * end for end in differences.interval())
    standing = _lost(low, high, margin)
    what = "top-1" if truth.ndim == 1 else "overlap a picture"
    detail = (
        f"{what} {scores[0].mean():.2%} -> {scores[1].mean():.2%} on the "
        f"same {len(truth)} held-out pictures: between {low:.2f} and {high:.2f} points lost, {lost} pictures lost and "
        f"{won} won, McNemar's p {mcnemar_p(lost, won):.2g}"
    )
    if standing == "undecided":
        needed = differences.needed_for(lambda low, high: _lost(100 * low, 100 * high, margin) != "undecided")
        detail += f"; {margin:g} points would be no difference, " + (
            f"about {needed:,} pictures would tell" if needed else "and no number of pictures would tell"
        )
    measured = {"drop_low": low, "drop_high": high, "lost": float(lost), "won": float(won)}
    return Finding(what="accuracy", standing=standing, measured=dict(measured), detail=detail)


def _lost(low: float, high: float, margin: float) -> Standing:
    """By the interval of the points that B loses."""
    if max(-low, high) <= margin:
        return "same"
    if low > 0:
        return "worse"
    return "better" if high < 0 else "undecided"


def _speeds(
    a: Bundle, ours: Runner, theirs: Runner, seconds: float, progress: Callable[[str], None]
) -> Iterator[Finding]:
    images = a.evaluation().images
    for batch in BATCHES:
        progress(f"speed at batch {batch}")
        feeds = tiled(images, batch)
        paired = timed_in_turns(
            lambda: ours.run({ours.inputs[0].name: feeds}),  # noqa: B023 — it is called in this turn of the loop
            lambda: theirs.run({theirs.inputs[0].name: feeds}),  # noqa: B023
            seconds=seconds,
            min_blocks=MIN_BLOCKS,
            rows=batch,
        )
        yield _speed(batch, paired)


def _speed(batch: int, paired: Paired) -> Finding:
    noise = max(paired.noise, CLEAR)  # each was opened once, which no noise within the run shows
    standing: Standing
    beyond = ""
    if paired.ratio_low > 1 + noise:
        standing = "better"
    elif paired.ratio_high < 1 / (1 + noise):
        standing = "worse"
    else:
        standing = "same" if paired.ratio_low >= SLOWEST else "undecided"
        beyond = f", no difference beyond the noise of {noise:.0%}"
    return Finding(
        what=f"speed at batch {batch}",
        standing=standing,
        measured={"ratio": paired.ratio, "ratio_low": paired.ratio_low, "ratio_high": paired.ratio_high},
        detail=f"{paired.a.median_ms:.3g} -> {paired.b.median_ms:.3g} ms, B {paired.ratio:.2f} times as fast "
        f"({paired.ratio_low:.2f} to {paired.ratio_high:.2f}){beyond}",
    )
