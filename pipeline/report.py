"""report: all that the main job found out, in one HTML file that loads nothing, for screens, phones and paper."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trueport.runtime.atomic import write_text
from trueport.runtime.bundle import Bundle
from trueport.runtime.errors import UsageError, missing_extra

from .bench import BenchReport, bench_table
from .check import CheckReport
from .disagreement import Answers, answers_of_both, samples
from .evaluation import judged
from .run_folder import Run
from .wording import gate_from_verdict, headline, machine_words, number, percent, size

try:
    import tomli_w
    from jinja2 import Environment, StrictUndefined

    from . import plots
except ModuleNotFoundError as error:
    raise missing_extra(error.name or "jinja2", "train", "the report") from error

TEMPLATE = "report.html.jinja"
SHOWN = 10
"""Most pictures, and most kinds of confusion, in each list."""


def write_report(out: Path, run: Run | None, bundle: Bundle, check: CheckReport, bench: BenchReport) -> None:
    """Put the report at `out` in one step. Raises as `report_html` does."""
    write_text(out, report_html(run, bundle, check, bench))


def report_html(run: Run | None, bundle: Bundle, check: CheckReport, bench: BenchReport) -> str:
    """The report as HTML; the same inputs give the same bytes. run: None where the bundle came without its run.

    The port, in the variant and on the runner of `bench`, answers the evaluation slice anew.
    Raises UsageError where a report is of another bundle, MissingError where this machine lacks that runner.
    """
    for kind, report in (("check", check), ("bench", bench)):
        if report.bundle != bundle.manifest.name:
            raise UsageError(
                f"expected the {kind} report of {bundle.manifest.name}, found that of {report.bundle}: "
                f"run `trueport {kind}` on {bundle.path}"
            )
    evaluation = bundle.evaluation()
    answers = answers_of_both(bundle, evaluation, bench.port.name, bench.variant)
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"number": number, "percent": percent, "share": _share, "size": size}
    template = environment.from_string((resources.files(__package__) / TEMPLATE).read_text(encoding="utf-8"))
    return template.render(
        manifest=bundle.manifest,
        run=run.info if run else None,
        headline=headline(check),
        gates=[gate_from_verdict(verdict) for verdict in check.verdicts],
        reference=check.reference,
        subject=f"{bench.variant} on {bench.port.name}",
        variant=bundle.variant(bench.variant),
        file=bundle.manifest.files[bundle.variant(bench.variant).file],
        machine=machine_words(check.machine),
        machine_key=check.machine.key,
        count=len(answers.labels),
        several=answers.several,
        port_accuracy=float(np.mean(answers.right(answers.port))),
        original_accuracy=float(np.mean(answers.right(answers.original))),
        wrong=int(np.sum(~answers.right(answers.port))),
        flips=int(answers.flips.sum()),
        judged=judged(answers.port, answers.labels, bundle.manifest.labels),
        **_parity(answers, bundle, bench),
        **_confusions(answers, bundle.manifest.labels),
        **_pictures(answers, evaluation.images, bundle.manifest.labels),
        **_speed(bench),
        **_training(run),
        **_origin(bundle, check, bench),
    )


def _share(value: float | None) -> str:
    """In percent; what the sample says nothing about is none."""
    return "none" if value is None else percent(value)


def _parity(answers: Answers, bundle: Bundle, bench: BenchReport) -> dict[str, Any]:
    differences = answers.differences
    some = bool((differences[np.isfinite(differences)] > 0).any())
    bounds = bundle.variant(bench.variant).bounds
    return {
        "bounds": bounds,
        "equal_logits": float(np.mean(differences == 0)),
        "broken_logits": int(np.sum(~np.isfinite(differences))),
        "differences_svg": plots.differences_svg(differences, bounds) if some else None,
        "largest_difference": float(answers.largest.max()),
    }


def _confusions(answers: Answers, labels: Sequence[str]) -> dict[str, Any]:
    if answers.several:
        return {"confusion_svg": None, "confusions": [], "confusion_kinds": 0}
    matrix = answers.confusion()
    wrong = matrix - np.diag(np.diag(matrix))
    order = np.argsort(-wrong, axis=None, kind="stable")[:SHOWN]
    pairs = [(int(index) // len(labels), int(index) % len(labels)) for index in order]
    return {
        "confusion_svg": plots.confusion_svg(matrix, labels),
        "confusions": [
            (labels[true], labels[answer], int(wrong[true, answer]), int(matrix[true].sum()))
            for true, answer in pairs
            if wrong[true, answer]
        ],
        "confusion_kinds": int(np.count_nonzero(wrong)),
    }


def _pictures(answers: Answers, images: NDArray[np.uint8], labels: Sequence[str]) -> dict[str, Any]:
    worst, wrong = answers.worst(), answers.both_wrong()
    return {
        "differing": len(worst),
        "worst": list(samples(worst[:SHOWN], answers, images, labels)),
        "both_wrong_count": len(wrong),
        "both_wrong": list(samples(wrong[:SHOWN], answers, images, labels)),
    }


def _speed(bench: BenchReport) -> dict[str, Any]:
    paired = any(result.paired for result in bench.batches)
    return {
        "bench": bench,
        "bench_table": bench_table(bench),
        "latency_svg": plots.latency_svg(bench.batches),
        "speedup_svg": plots.speedup_svg(bench.batches) if paired else None,
        "single": bench.batches[0],
    }


def _training(run: Run | None) -> dict[str, Any]:
    metrics = run.metrics() if run else []
    if run is None or not any(line.epoch == run.info.best_epoch for line in metrics):
        return {"loss_svg": None, "score_svg": None}
    return {
        "loss_svg": plots.loss_svg(metrics, run.info.best_epoch),
        "score_svg": plots.score_svg(metrics, run.info.best_epoch, run.info.metric),
    }


def _origin(bundle: Bundle, check: CheckReport, bench: BenchReport) -> dict[str, Any]:
    origin, here = bundle.manifest.provenance, check.machine.versions
    name = shlex.quote(str(bundle.path))
    runners = "".join(f" --runner {name}" for name in dict.fromkeys(report.name for report in check.runners))
    batches = ",".join(str(result.batch) for result in bench.batches)
    return {
        "origin": origin,
        "commands": (
            ("Check it again", f"trueport check {name}{runners}"),
            (
                "Time it again",
                f"trueport bench {name} --variant {bench.variant} --runner {bench.port.name} --threads "
                f"{bench.port.threads} --batch {batches} --seconds {bench.seconds:g}",
            ),
            ("Classify a picture", f"trueport predict {name} picture.png"),
            ("Serve it over HTTP", f"trueport serve {name}"),
        ),
        "versions": [(key, origin.versions.get(key), here.get(key)) for key in {**origin.versions, **here}],
        "recipe": tomli_w.dumps(_without_none(origin.recipe)) if origin.recipe else "",
        "fingerprints": (
            ("bundle (manifest)", bundle.manifest.sha256),
            (
                f"graph ({bundle.variant(bench.variant).file})",
                bundle.manifest.files[bundle.variant(bench.variant).file].sha256,
            ),
            ("weights", origin.weights_sha256),
            (f"data ({origin.data})", origin.data_sha256),
            ("split", origin.split_sha256),
        ),
    }


def _without_none(value: Any) -> Any:
    """TOML has no word for what is not set."""
    if isinstance(value, dict):
        return {key: _without_none(item) for key, item in value.items() if item is not None}
    return value
