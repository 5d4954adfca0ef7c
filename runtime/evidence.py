"""What everything is judged by: are there enough different pictures, do the recorded answers make sense of them?

Judged before any port is: a gate that passes on constant pictures proves nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .bundle import Evaluation, Golden
from .graph_facts import GraphFacts, contradictions
from .manifest import Manifest
from .paired import log_mcnemar_p
from .verdict import Verdict, judged, undecided

RESOLUTION = 0.1
"""The largest share of changed predictions that may go unseen."""
CONFIDENCE = 0.95
NEEDED = math.ceil(math.log(1 - CONFIDENCE) / math.log(1 - RESOLUTION))
"""Different pictures: of so many, one at least would show a change that meets one picture in ten, 95 times in 100."""
GOLDEN_NEEDED = 2
"""Different golden inputs: among equal ones nobody sees which row is whose."""


def evidence(manifest: Manifest, golden: Golden, evaluation: Evaluation) -> Verdict:
    """Whether golden set and evaluation slice can tell a faithful port from another.

    A picture of one colour throughout, and one that is there twice, is no evidence. Failed where the original's
    recorded answers are no numbers, undecided where the pictures are too few or of one class alone.
    """
    pictures, rows = _different(evaluation.images), _different(golden.images)
    classes = len(np.unique(evaluation.labels, axis=0))
    logits = np.concatenate([golden.logits, evaluation.logits])
    broken = int(np.sum(~np.isfinite(logits).all(axis=1)))
    measured = {
        "pictures": float(pictures),
        "golden_pictures": float(rows),
        "classes": float(classes),
        "non_finite": float(broken),
    }
    allowed = {"non_finite": 0.0}
    detail = (
        f"{len(evaluation.images)} held-out pictures, {pictures} of them different and of more than one colour, "
        f"{classes} of {len(manifest.labels)} classes among them; {len(golden.images)} golden inputs"
    )
    if broken:
        detail = f"the original itself answers NaN or infinity for {broken} of {len(logits)} recorded inputs; {detail}"
        return judged("evidence", "-", "-", measured, allowed, detail)
    if pictures < NEEDED:
        detail += f"; at least {NEEDED} different ones are needed to see a change that meets one picture in ten"
        return undecided("evidence", "-", "-", measured, allowed, detail, NEEDED)
    if rows < GOLDEN_NEEDED:
        detail += f", {rows} of them different: at least {GOLDEN_NEEDED} are needed to see rows of a batch exchanged"
        return undecided("evidence", "-", "-", measured, allowed, detail)
    if manifest.task == "classification" and classes < 2 <= len(manifest.labels):
        detail += "; pictures of one class say nothing about the others"
        return undecided("evidence", "-", "-", measured, allowed, detail)
    return judged("evidence", "-", "-", measured, allowed, detail)


def labels(
    manifest: Manifest, graphs: Mapping[str, GraphFacts], evaluation: Evaluation, application: Sequence[str] | None
) -> Verdict:
    """Whether classes stand where they stood in training.

    graphs: by file; the labels that they carry must be the manifest's, and so must those of the application around it.
    The original's answers must not fit another order of labels better than chance allows. That is not asked where a
    picture has several labels: some are so rare, or so often together, that a poor model's answers fit another order.
    """
    broken = contradictions(manifest, graphs, "labels")
    if application is not None and tuple(application) != manifest.labels:
        broken.append(f"the application has {_difference(application, manifest.labels)}")
    measured, allowed = {"contradictions": float(len(broken))}, {"contradictions": 0.0}
    moved, gain = 0, 0.0
    detail = f"{len(manifest.labels)} labels in the manifest and in the graphs"
    if manifest.task == "classification":
        moved, gain = better_order(evaluation.logits, evaluation.labels)
        measured |= {"moved_classes": float(moved), "order_gain": 100 * gain}
        allowed["moved_classes"] = 0.0
        detail = f"{len(manifest.labels)} labels in the manifest, in the graphs, and the order of the answers"
    if moved:
        detail = (
            f"the original's answers fit the true classes {100 * gain:.2f} points better with {moved} classes in other "
            f"places: labels were permuted between training and here; {detail}"
        )
    if broken:
        detail = f"{'; '.join(broken)}; {detail}"
    return judged("labels", "-", "-", measured, allowed, detail)


def better_order(logits: NDArray[Any], truth: NDArray[np.integer[Any]]) -> tuple[int, float]:
    """How many classes would have to move for the answers to fit the truth better, and the share of answers gained.

    An order is believed where its gain is beyond chance for all orders that move so many (McNemar with a union bound).
    """
    if not np.isfinite(logits).all() or not len(logits):
        return 0, 0.0
    answered, classes = logits.argmax(axis=1), logits.shape[1]
    places = _gaining(_matched(truth, answered, classes), truth, answered)
    moved = int(np.sum(places != np.arange(classes)))
    now, then = answered == truth, answered == places[truth]
    lost, won = int(np.sum(now & ~then)), int(np.sum(then & ~now))
    orders = math.lgamma(classes + 1) - math.lgamma(classes - moved + 1) + math.log(classes)
    if won <= lost or log_mcnemar_p(lost, won) + orders > math.log(1 - CONFIDENCE):
        return 0, 0.0
    return moved, (won - lost) / len(truth)


def _matched(truth: NDArray[np.integer[Any]], answered: NDArray[np.int64], classes: int) -> NDArray[np.int64]:
    """A place for each true class (K,), the pairs that are met most often first; where none is met its own, if free."""
    places = np.full(classes, -1)
    free = np.ones(classes, bool)
    # Pairs that are met, never all K x K: a thousand times more where classes are many.
    pairs, counts = np.unique(np.stack([truth, answered], axis=1), axis=0, return_counts=True)
    for true, place in pairs[np.argsort(-counts, kind="stable")].tolist():
        if places[true] < 0 and free[place]:
            places[true], free[place] = place, False
    rest = np.flatnonzero(places < 0)
    own = [true for true in rest if free[true]]
    places[own], free[own] = own, False
    places[places < 0] = np.flatnonzero(free)
    return places


def _gaining(
    places: NDArray[np.int64], truth: NDArray[np.integer[Any]], answered: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Of the order's cycles those alone that fit more answers than classes in their own places."""
    then = np.bincount(truth[answered == places[truth]], minlength=len(places))
    now = np.bincount(truth[answered == truth], minlength=len(places))
    kept, seen = np.arange(len(places)), np.zeros(len(places), bool)
    for start in range(len(places)):
        cycle, at = [], start
        while not seen[at]:
            seen[at] = True
            cycle.append(at)
            at = int(places[at])
        if then[cycle].sum() > now[cycle].sum():
            kept[cycle] = places[cycle]
    return kept


def _different(images: NDArray[np.uint8]) -> int:
    """Pictures that differ from one another and are not of one colour."""
    rows = images.reshape(len(images), -1)
    flat = (images == images[:, :1, :1]).reshape(len(images), -1).all(axis=1)
    return len({row.tobytes() for row in rows[~flat]})


def _difference(ours: Sequence[str], theirs: Sequence[str]) -> str:
    if len(ours) != len(theirs):
        return f"{len(ours)} labels, the manifest {len(theirs)}"
    place = next(index for index, pair in enumerate(zip(ours, theirs, strict=True)) if pair[0] != pair[1])
    return f"{ours[place]!r} in place {place}, the manifest {theirs[place]!r}"
