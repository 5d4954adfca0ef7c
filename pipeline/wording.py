"""Verdicts, measurements and machines in words: what people read in place of the names that machines read."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from trueport.runtime.machine import Machine
from trueport.runtime.verdict import Verdict

from .check import CheckReport, rounded_up
from .gates import OPENING

MEANINGS = {
    "evidence": "The pictures are different ones, and enough of them, to show what an unfaithful port changes.",
    "labels": "Every class stands where it stood in training: in the manifest, in the graphs, in what embeds them.",
    "contract": "The runner runs what was asked for: the same tensors, the provider and the precision, no fallback.",
    "parity": "The port computes the original's numbers, up to the rounding that the original itself shows.",
    "batch invariance": "The answer for a picture does not depend on which others share its batch, or on its place.",
    "preprocessing": "The same file becomes the same pixels here as it did at export.",
    "accuracy": "On held-out pictures the port predicts what the original does; only ties may go either way.",
    "recording": "The original, rebuilt here, still answers what was recorded at export: a reference to rely on.",
}
MEASURES = {
    "max_abs": ("largest difference of a logit", ""),
    "rms": ("root mean square difference", ""),
    "noise_max_abs": ("largest difference of the original from itself, at export", ""),
    "noise_rms": ("root mean square of that noise", ""),
    "pictures": ("different pictures in the evaluation slice", ""),
    "golden_pictures": ("different golden inputs", ""),
    "classes": ("classes among the pictures", ""),
    "contradictions": ("contradictions between manifest, graphs and application", ""),
    "moved_classes": ("classes that stand in another place", ""),
    "order_gain": ("answers that fit better in that order, in points", ""),
    "broken": ("what is not as it was asked for", ""),
    "errors": ("batches that are not answered", ""),
    "other_shape": ("pictures of another shape or type", ""),
    "max_rel": ("largest difference as a share of the largest logit", ""),
    "snr_db": ("signal-to-noise ratio", "dB"),
    "top1_agreement": ("same best class", "%"),
    "top5_agreement": ("overlap of the best five classes", "%"),
    "decision_agreement": ("same decision on a label", "%"),
    "max_levels": ("largest difference of a pixel, in levels of 255", ""),
    "undecodable": ("golden pictures that can't be decoded", ""),
    "unexplained": ("changed answers that no tie explains", ""),
    "non_finite": ("answers that are not numbers", ""),
    "top1_original": ("accuracy of the original", "%"),
    "top1_port": ("accuracy of the port", "%"),
    "overlap_original": ("overlap of answered and true labels, a picture, with the original", "%"),
    "overlap_port": ("overlap of answered and true labels, a picture, with the port", "%"),
    "decisions_original": ("labels that the original decides rightly", "%"),
    "decisions_port": ("labels that the port decides rightly", "%"),
    "exact_original": ("pictures that the original gets right in every label", "%"),
    "exact_port": ("pictures that the port gets right in every label", "%"),
    "drop_points": ("accuracy lost, in points", ""),
    "drop_low": ("lower end of its 95 % interval", ""),
    "drop_high": ("upper end of its 95 % interval", ""),
    "lost": ("pictures that only the original gets right", ""),
    "won": ("pictures that only the port gets right", ""),
    "worse": ("pictures whose labels the port gets worse", ""),
    "better": ("pictures whose labels the port gets better", ""),
    "mcnemar_p": ("chance of flips so uneven if both were equally good", ""),
}
SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


BOUND_OF = {"drop_high": "max_drop"}
"""The bound behind a limit, where it has another name."""
NOISE = "noise_"
"""In front of the name of a measurement: its noise at export."""


@dataclass(frozen=True)
class Limit:
    """One measurement beside what was allowed."""

    words: str
    measured: str
    allowed: str
    share: float | None
    """Measured over allowed; None where that is no number."""
    crossed: bool
    would_pass: str
    """The bound that would have passed; empty where it was not crossed."""
    noise: str
    """That the bound was derived from; empty where it was not."""
    noise_share: float | None
    """Noise over allowed."""
    headroom: str
    """Allowed over noise; empty where there is none."""
    by_hand: bool
    """Whether somebody set the bound in place of the derived one."""


@dataclass(frozen=True)
class Gate:
    """A verdict in words."""

    name: str
    status: str
    subject: str
    meaning: str
    detail: str
    limits: tuple[Limit, ...]
    others: tuple[tuple[str, str], ...]
    """What was measured besides: words and value."""
    needed: str
    """Samples that would decide it; empty where that is not known, or decided."""


@dataclass(frozen=True)
class Subject:
    """What was judged, and all gates that were asked of it."""

    name: str
    gates: tuple[Gate, ...]

    @property
    def passed(self) -> bool:
        """Whether every gate passed."""
        return all(gate.status == "passed" for gate in self.gates)

    @property
    def closed(self) -> str:
        """Why it was not even opened; empty where it was."""
        return self.gates[0].detail if all(gate.name == OPENING for gate in self.gates) else ""


def headline(check: CheckReport) -> tuple[str, str]:
    """Status and sentence of all gates together; a gate that was not run is never among the passed."""
    counts = Counter(verdict.status for verdict in check.verdicts)
    passed, failed, open_, missing = (counts[status] for status in ("passed", "failed", "undecided", "not run"))
    judged = passed + failed + open_
    rest = f", {open_} undecided" if failed and open_ else ""
    unproven = f"; {missing} not run" if missing else ""
    if failed:
        return "failed", f"Not proven faithful: {failed} of {_gates(judged)} failed{rest}{unproven}"
    if open_:
        return "undecided", f"Not proven faithful: {open_} of {_gates(judged)} undecided{unproven}"
    if not passed:
        return "not run", "Nothing is proven: no gate was run"
    if not check:
        return "not run", f"Not proven faithful: {_gates(passed)} passed{unproven}"
    if missing:
        return "passed", f"Faithful: {_gates(passed)} passed{unproven}"
    return "passed", f"Faithful: all {_gates(passed)} passed" if passed > 1 else "Faithful: the one gate passed"


def _gates(count: int) -> str:
    return f"{count} gate{'s' if count != 1 else ''}"


def remarks(check: CheckReport) -> list[tuple[str, str]]:
    """Status and sentence of everything that did not pass: what failed comes first, then what can't be told.

    What was not run for one and the same reason is one sentence.
    """
    order = ("failed", "undecided", "not run")
    grouped: dict[tuple[str, str], list[str]] = {}
    for verdict in sorted(check.verdicts, key=lambda one: order.index(one.status) if one.status in order else -1):
        if verdict.status in order:
            grouped.setdefault((verdict.status, _why(verdict)), []).append(_asked(verdict))
    return [(status, f"{' and '.join(names)}: {why}") for (status, why), names in grouped.items()]


def _asked(verdict: Verdict) -> str:
    return _subject(verdict) if verdict.gate == OPENING else f"{verdict.gate} of {_subject(verdict)}"


def _why(verdict: Verdict) -> str:
    crossed = [limit for limit in gate_from_verdict(verdict).limits if limit.crossed]
    if verdict.status == "failed" and crossed:
        told = "; ".join(f"{limit.words} {limit.measured}, allowed {limit.allowed}" for limit in crossed)
        return f"{told} ({verdict.detail})"
    if verdict.needed and f"{verdict.needed:,}" not in verdict.detail:
        return f"{verdict.detail}; {_samples(verdict.needed)} would decide it"
    return verdict.detail


def subjects(check: CheckReport) -> list[Subject]:
    """The verdicts by what was judged, in the order of the report."""
    grouped: dict[str, list[Verdict]] = {}
    for verdict in check.verdicts:
        grouped.setdefault(_subject(verdict), []).append(verdict)
    return [
        Subject(name, tuple(gate_from_verdict(verdict, tuple(check.overridden)) for verdict in verdicts))
        for name, verdicts in grouped.items()
    ]


def _subject(verdict: Verdict) -> str:
    """The bundle and its original are one: both are asked once, whoever runs the graphs."""
    if verdict.variant in {"-", "original"}:
        return "the bundle"
    return verdict.variant if verdict.runner == "-" else f"{verdict.variant} on {verdict.runner}"


def gate_from_verdict(verdict: Verdict, by_hand: Sequence[str] = ()) -> Gate:
    """A verdict in words, in the order it was measured. by_hand: bounds that somebody set, such as `fp32.rms`."""
    others = tuple(
        _measured(name, value)
        for name, value in verdict.measured.items()
        if name not in verdict.allowed and name.removeprefix(NOISE) not in verdict.allowed
    )
    return Gate(
        name=verdict.gate,
        status=verdict.status,
        subject=_subject(verdict),
        meaning=MEANINGS.get(verdict.gate, ""),
        detail=verdict.detail,
        limits=tuple(_limit(verdict, name, allowed, by_hand) for name, allowed in verdict.allowed.items()),
        others=others,
        needed=_samples(verdict.needed) if verdict.needed else "",
    )


def _limit(verdict: Verdict, name: str, allowed: float, by_hand: Sequence[str]) -> Limit:
    limit = limit_words(name, verdict.measured.get(name), allowed, verdict.measured.get(f"{NOISE}{name}"))
    if name not in verdict.would_pass:
        crossed, would_pass = False, ""
    else:
        bound = verdict.would_pass[name]
        crossed, would_pass = True, "no bound at all" if bound is None else _measured(name, rounded_up(bound))[1]
    set_by_hand = f"{verdict.variant}.{BOUND_OF.get(name, name)}" in by_hand
    return replace(limit, crossed=crossed, would_pass=would_pass, by_hand=set_by_hand)


def limit_words(name: str, value: float | None, allowed: float, noise: float | None = None) -> Limit:
    """A measurement beside its limit, and the noise that the limit came from."""
    words, measured = _measured(name, value)
    return Limit(
        words=words,
        measured=measured,
        allowed=_measured(name, allowed)[1],
        share=value / allowed if value is not None and allowed > 0 else None,
        crossed=value is None or value > allowed,
        would_pass="",
        noise="" if noise is None else number(noise),
        noise_share=noise / allowed if noise is not None and allowed > 0 else None,
        headroom=number(allowed / noise) if noise else "",
        by_hand=False,
    )


def _samples(count: int) -> str:
    return f"{count:,} samples"


def _measured(name: str, value: float | None) -> tuple[str, str]:
    """Words and value of a measurement; one without words of its own has its name."""
    words, unit = MEASURES.get(name, (name.replace("_", " "), ""))
    if name.startswith("batch_"):
        words = f"largest difference of a logit, batch {name.removeprefix('batch_')}"
    if name == "snr_db" and value is None:
        return words, "infinite, or not a number"
    told = f"{value:.2f}" if unit == "%" and value is not None else number(value)
    return words, f"{told}\N{NO-BREAK SPACE}{unit}" if unit and value is not None else told


def number(value: float | None) -> str:
    """Three significant digits; powers of ten where that is easier to read. None: not a number."""
    if value is None or math.isnan(value):
        return "not a number"
    if math.isinf(value):
        return "infinite"
    if value == 0:
        return "0"
    if 1e-3 <= abs(value) < 1e5:
        whole = float(value).is_integer() or abs(value) >= 100
        return (f"{value:,.0f}" if whole else f"{value:.3g}").replace("-", "−")
    mantissa, _, exponent = f"{value:.2e}".partition("e")
    return f"{mantissa} × 10{str(int(exponent)).translate(SUPERSCRIPTS)}".replace(" ", "\N{NO-BREAK SPACE}").replace(
        "-", "−"
    )


def machine_words(machine: Machine) -> str:
    """Processor, cores and GPUs in one line."""
    gpus = "".join(f", {gpu.name}" for gpu in machine.gpus)
    return f"{machine.cpu}, {machine.cores} core{'s' if machine.cores != 1 else ''}{gpus}"


def percent(share: float) -> str:
    """A share from 0 to 1 with two decimals; what is not quite all is not rounded up to it."""
    if math.isnan(share):
        return "not a number"
    text = f"{100 * share:.2f}"
    if text == "100.00" and share < 1:
        text = "> 99.99"
    return f"{text}\N{NO-BREAK SPACE}%"


def size(count: int) -> str:
    """Bytes in decimal units, three digits."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= scale:
            return f"{count / scale:.3g}\N{NO-BREAK SPACE}{unit}"
    return f"{count} bytes"
