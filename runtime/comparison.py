"""Arrays in, verdicts out: numeric parity, batch invariance, preprocessing, accuracy.

Nothing here knows where the answers come from: a runner, a recording, another machine.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .manifest import Bounds, Task
from .paired import Differences, flips, mcnemar_p, score_differences
from .verdict import Verdict, judged, undecided

Logits = NDArray[np.floating[Any]]
Labels = NDArray[np.integer[Any]]
Infer = Callable[[NDArray[np.uint8]], Logits]


def parity(
    port: Logits,
    original: Logits,
    bounds: Bounds,
    *,
    variant: str,
    runner: str,
    detail: str,
    task: Task = "classification",
) -> Verdict:
    """Whether the port's logits (N, K) are the original's, within the bounds.

    Measured besides: relative error, signal-to-noise ratio in dB, and in percent top-1 and top-5 agreement, or for
    several labels a picture that of the single decisions.
    """
    difference = port.astype(np.float64) - original
    error, signal = float(np.mean(difference**2)), float(np.mean(original.astype(np.float64) ** 2))
    scale = float(np.abs(original).max())
    largest = float(np.abs(difference).max())
    measured = {
        "max_abs": largest,
        "rms": math.sqrt(error),
        "noise_max_abs": bounds.noise_max_abs,
        "noise_rms": bounds.noise_rms,
        "max_rel": largest / scale if scale else largest,
        "snr_db": 10 * math.log10(signal / error) if signal > 0 and 0 < error < math.inf else math.inf,
    }
    if task == "multilabel":
        measured["decision_agreement"] = 100 * float(np.mean(_answered(port) & ((port > 0) == (original > 0))))
    else:
        measured["top1_agreement"] = 100 * float(np.mean(port.argmax(1) == original.argmax(1)))
        measured["top5_agreement"] = 100 * _top_agreement(port, original, 5)
    allowed = {"max_abs": bounds.max_abs, "rms": bounds.rms}
    return judged("parity", variant, runner, measured, allowed, detail)


def _top_agreement(port: Logits, original: Logits, k: int) -> float:
    """Mean share of the original's top k classes that are among the port's top k."""
    k = min(k, original.shape[1])
    ours, theirs = (np.argsort(-logits, axis=1, kind="stable")[:, :k] for logits in (port, original))
    return float(np.mean([len(np.intersect1d(a, b)) / k for a, b in zip(ours, theirs, strict=True)]))


def batch_invariance(
    infer: Infer, images: NDArray[np.uint8], bounds: Bounds, batches: Iterable[int], *, variant: str, runner: str
) -> Verdict:
    """Whether a row's logits depend on the size of its batch or its position in it.

    Each size is run twice, the second time with the rows moved on by one; every row is compared with itself alone.
    """
    alone = np.concatenate([infer(images[i : i + 1]) for i in range(len(images))])
    measured = {}
    sizes = sorted({size for size in batches if size > 1})
    for size in sizes:
        rows = np.arange(math.ceil(len(images) / size) * size) % len(images)
        worst = np.float64(0)
        for order in (rows, np.roll(rows, 1)):
            for start in range(0, len(order), size):
                part = order[start : start + size]
                worst = np.maximum(worst, np.abs(infer(images[part]) - alone[part]).max())  # keeps a NaN
        measured[f"batch_{size}"] = float(worst)
    measured["max_abs"] = float(np.max(list(measured.values())))
    detail = f"{len(images)} rows in batches of {', '.join(map(str, sizes))} at two positions, against each row alone"
    return judged("batch invariance", variant, runner, measured, {"max_abs": bounds.max_abs}, detail)


def preprocessing_identity(prepared: Sequence[NDArray[np.uint8]], golden: NDArray[np.uint8]) -> Verdict:
    """Whether preprocessing makes of the golden pictures, to the last bit, what it made at export."""
    largest = max(
        int(np.abs(ours.astype(np.int16) - theirs).max()) for ours, theirs in zip(prepared, golden, strict=True)
    )
    return judged(
        "preprocessing",
        "-",
        "-",
        {"max_levels": float(largest)},
        {"max_levels": 0.0},
        f"{len(golden)} encoded golden pictures decoded, turned, resized and cropped here; levels of 255",
    )


def accuracy(port: Logits, original: Logits, labels: Labels, bounds: Bounds, *, variant: str, runner: str) -> Verdict:
    """Top-1 of port and original on the same samples: the paired difference, its interval, McNemar's exact test.

    Allowed are no changed predictions but those that ties explain: samples whose two best logits in the original are
    closer than twice the bound of parity, where a faithful port may answer either way. A precision whose bounds state
    `max_drop` may lose that many points in place of it, whichever predictions change; where the interval reaches across
    that, the verdict is undecided. A row with a NaN is no answer.
    """
    finite = np.isfinite(port).all(axis=1)
    ours, theirs = finite & (port.argmax(1) == labels), original.argmax(1) == labels
    best = np.sort(original, axis=1)[:, -2:]
    tied = best[:, -1] - best[:, 0] <= 2 * bounds.max_abs
    changed = ~finite | (port.argmax(1) != original.argmax(1))
    lost, won = int(np.sum(theirs & ~ours)), int(np.sum(ours & ~theirs))
    differences = flips(lost, won, len(labels))
    measured = {
        "unexplained": float(np.sum(changed & ~tied)),
        "non_finite": float(np.sum(~finite)),
        "top1_original": 100 * float(theirs.mean()),
        "top1_port": 100 * float(ours.mean()),
        **_drop(differences),
        "lost": float(lost),
        "won": float(won),
        "mcnemar_p": mcnemar_p(lost, won),
    }
    detail = (
        f"top-1 {ours.mean():.2%}, the original {theirs.mean():.2%}, on {len(labels)} held-out samples; "
        f"{int(changed.sum())} predictions changed, {int(tied.sum())} ties may go either way"
    )
    return _told(measured, differences, bounds, detail, variant, runner)


def worth(logits: Logits, labels: Labels) -> NDArray[np.float64]:
    """What each answer is worth (N,), 0 to 1: whether its best class is the label, of several labels their `overlaps`.

    A row with a NaN or an infinity is no answer, and worth nothing.
    """
    if labels.ndim > 1:
        return overlaps(logits, labels)
    return np.asarray(_answered(logits)[:, 0] & (logits.argmax(1) == labels), np.float64)


def overlaps(logits: Logits, labels: Labels) -> NDArray[np.float64]:
    """What answers are worth where a picture has several labels (N,), 0 to 1: the share of labels answered or true that
    are both (Jaccard's index); 1 where there are neither, 0 where a row holds a NaN or an infinity.

    Its mean over pictures is what Godbole and Sarawagi (2004) call accuracy. A picture has one such score, since
    pictures are what is sampled: decisions on one hang together. What is rightly left out counts for nothing: with 200
    labels of which a picture has one, whoever answers none is right in 99.5 % of the decisions.
    """
    answered, there = logits > 0, labels.astype(bool)
    both, either = np.sum(answered & there, axis=1), np.sum(answered | there, axis=1)
    return np.where(_answered(logits)[:, 0], np.where(either > 0, both / np.maximum(either, 1), 1.0), 0.0)


def decisions(port: Logits, original: Logits, labels: Labels, bounds: Bounds, *, variant: str, runner: str) -> Verdict:
    """What `accuracy` is where a picture has several labels (N, K): of both on the same samples.

    A label is said to be there where its logit is above 0. Allowed are no changed decisions but those whose logit in
    the original is no further from 0 than the bound of parity. In place of that a drop of `max_drop` points is where
    the bounds state it: in the mean of `overlaps`, with an interval over pictures. Told besides: the share of right
    decisions, that of pictures that are right in every label, how many pictures got worse or better, and the exact
    test of those.
    """
    there, answered = labels.astype(bool), _answered(port)
    right, right_before = answered & ((port > 0) == there), (original > 0) == there
    tied = np.abs(original) <= bounds.max_abs
    changed = ~answered | ((port > 0) != (original > 0))
    ours, theirs = overlaps(port, labels), overlaps(original, labels)
    worse, better = int(np.sum(ours < theirs)), int(np.sum(ours > theirs))
    differences = score_differences(ours, theirs)
    measured = {
        "unexplained": float(np.sum(changed & ~tied)),
        "non_finite": float(np.sum(~answered)),
        "overlap_original": 100 * float(theirs.mean()),
        "overlap_port": 100 * float(ours.mean()),
        "decisions_original": 100 * float(right_before.mean()),
        "decisions_port": 100 * float(right.mean()),
        "exact_original": 100 * float(right_before.all(axis=1).mean()),
        "exact_port": 100 * float(right.all(axis=1).mean()),
        **_drop(differences),
        "worse": float(worse),
        "better": float(better),
        "mcnemar_p": mcnemar_p(worse, better),
    }
    detail = (
        f"answered and true labels overlap by {ours.mean():.2%} a picture, the original's by {theirs.mean():.2%}, on "
        f"{len(labels)} held-out samples with {labels.shape[1]} labels each; {int(changed.sum())} decisions changed, "
        f"{int(tied.sum())} are so close that they may"
    )
    return _told(measured, differences, bounds, detail, variant, runner)


def _drop(differences: Differences) -> dict[str, float]:
    """Points of accuracy that are lost, and the interval around them."""
    low, high = differences.interval()
    drop = 100 * differences.total / differences.samples
    return {"drop_points": drop, "drop_low": 100 * low, "drop_high": 100 * high}


def _told(
    measured: dict[str, float], differences: Differences, bounds: Bounds, detail: str, variant: str, runner: str
) -> Verdict:
    """The verdict of accuracy: nothing may be lost that ties don't explain, or so many points.

    Points are an estimate from samples: the verdict is in favour where the whole interval is within what may be lost,
    against where none of it is, and else that the samples are too few to tell.
    """
    none_broken = {"non_finite": 0.0}
    if bounds.max_drop is None:
        return judged("accuracy", variant, runner, measured, {"unexplained": 0.0} | none_broken, detail)
    # The interval decides: its upper end to pass, its lower end to fail.
    allowed = {"drop_high": bounds.max_drop} | none_broken
    if measured["non_finite"] or measured["drop_high"] <= bounds.max_drop:
        return judged("accuracy", variant, runner, measured, allowed, detail)
    interval = f"between {measured['drop_low']:.2f} and {measured['drop_high']:.2f} points lost"
    if measured["drop_low"] > bounds.max_drop:
        return judged("accuracy", variant, runner, measured, allowed, f"{detail}; {interval}")
    needed = differences.needed(bounds.max_drop / 100)
    remedy = f"about {needed:,} samples would tell" if needed else "no number of samples would tell at that margin"
    return undecided(
        "accuracy",
        variant,
        runner,
        measured,
        allowed,
        f"{detail}; {interval}, {bounds.max_drop:g} may be: {remedy}",
        needed,
    )


def _answered(logits: Logits) -> NDArray[np.bool_]:
    """(N, 1): a row with a NaN or an infinity is no answer."""
    return np.asarray(np.isfinite(logits).all(axis=1, keepdims=True))
