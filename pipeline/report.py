"""report: all that is known of a bundle's fidelity, in one HTML file that loads nothing: screens, phones, paper."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from trueport.runtime.atomic import write_text
from trueport.runtime.bundle import Bundle
from trueport.runtime.errors import UsageError, missing_extra
from trueport.runtime.runners import DEFAULT
from trueport.runtime.runners.reached import shown
from trueport.runtime.runners.written import WRITTEN

from .bench import BenchReport, bench_table, scenarios_table
from .check import CheckReport, check_bundle, overridden
from .drift import drift_of
from .explanation_words import told
from .run_folder import Run
from .wording import headline, machine_words, number, percent, remarks, size, subjects

try:
    import tomli_w
    from jinja2 import Environment, StrictUndefined

    from . import fidelity_plots, latency_plots, plots
    from .report_ports import asked_ports, both_wrong, changes, closeness, confusions, main_port, pictures
except ModuleNotFoundError as error:
    raise missing_extra(error.name or "jinja2", "train", "the report") from error

TEMPLATE, STYLE = "report.html.jinja", "report.css"
Decoded = TypeVar("Decoded", CheckReport, BenchReport)


def write_report(
    out: Path,
    run: Run | None,
    bundle: Bundle,
    check: CheckReport,
    bench: BenchReport | None,
    *,
    trust_code: bool = False,
    progress: Callable[[str], None] = lambda _: None,
) -> None:
    """Put the report at `out` in one step. Raises as `report_html` does."""
    write_text(out, report_html(run, bundle, check, bench, trust_code=trust_code, progress=progress))


def report_file(
    path: Path,
    out: Path,
    *,
    check_file: Path | None = None,
    bench_file: Path | None = None,
    run: Path | None = None,
    runners: Sequence[str] = (DEFAULT,),
    threads: int | None = None,
    trust_code: bool = False,
    progress: Callable[[str], None] = lambda _: None,
) -> None:
    """Put the report on the bundle at `path` into `out`.

    check_file, bench_file: JSON of those commands. Without the first the bundle is checked, on these runners, and what
    failed is traced; without the second nothing is said of speed. Raises UsageError for a file that is no such JSON or
    is of another bundle, and what `check` raises.
    """
    bundle = Bundle.open(path)
    trained = Run.open(run) if run else None
    timed = _decoded(bench_file, BenchReport, "bench") if bench_file else None
    checked = _decoded(check_file, CheckReport, "check") if check_file else None
    if checked is None:
        checked = check_bundle(path, runners=runners, threads=threads, trust_code=trust_code, progress=progress)
    write_report(out, trained, bundle, checked, timed, trust_code=trust_code, progress=progress)


def _decoded(file: Path, kind: type[Decoded], command: str) -> Decoded:
    try:
        return msgspec.json.decode(file.read_bytes(), type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise UsageError(
            f"expected the JSON of `trueport {command} --json` in {file}, found something else ({error}): write it anew"
        ) from error


def report_html(
    run: Run | None,
    bundle: Bundle,
    check: CheckReport,
    bench: BenchReport | None,
    *,
    trust_code: bool = False,
    progress: Callable[[str], None] = lambda _: None,
) -> str:
    """The report as HTML; the same inputs give the same bytes.

    run: None where the bundle came without its run. bench: None where nothing was timed. trust_code: run the code that
    the bundle names where its original needs that; the run's own is trusted. progress is told what is being asked.
    Every port that `check` opened answers the evaluation slice anew, and layers are compared where that can be done
    here; what can't be is told on the page. Raises UsageError where a report or the run is of another bundle.
    """
    refuse_foreign(run, bundle, check, bench)
    bundle = overridden(bundle, check.overridden)  # figures show the bounds that were judged by
    evaluation = bundle.evaluation()
    ports = asked_ports(bundle, evaluation, check, bench, progress)
    main = next((port for port in ports if port.answers is not None), None)
    html: str = _template().render(
        style=_resource(STYLE),
        manifest=bundle.manifest,
        labels=bundle.manifest.labels,
        several=evaluation.labels.ndim == 2,
        count=len(evaluation.labels),
        run=run.info if run else None,
        headline=headline(check),
        remarks=remarks(check),
        subjects=subjects(check),
        explanations=told(check.explanations),
        reference=check.reference,
        overridden=check.overridden,
        machine=machine_words(check.machine),
        ports=[closeness(port, index) for index, port in enumerate(ports)],
        main=main_port(main, bundle) if main else None,
        confusion=confusions(main.answers, bundle.manifest.labels) if main and main.answers else None,
        changed=[found for index, port in enumerate(ports) if (found := changes(port, index, bundle.manifest.labels))],
        pictures=pictures(ports, main, evaluation, bundle.manifest.labels),
        both_wrong=both_wrong(main, evaluation, bundle.manifest.labels),
        drift=_drift(bundle, run, trust_code, progress),
        speed=_speed(bench) if bench is not None else None,
        bench=bench,
        **_training(run),
        **_origin(bundle, check, bench),
    )
    return html


def refuse_foreign(run: Run | None, bundle: Bundle, check: CheckReport, bench: BenchReport | None) -> None:
    """Raise UsageError where one of them is not of this bundle."""
    manifest = bundle.manifest
    for kind, report in (("check", check), ("bench", bench)):
        if report is None:
            continue
        if (report.bundle, report.version) != (manifest.name, manifest.version):
            raise UsageError(
                f"expected the {kind} report of {manifest.name} {manifest.version}, found that of "
                f"{report.bundle} {report.version}: run `trueport {kind}` on {bundle.path}"
            )
        if report.bundle_sha256 not in ("", manifest.sha256):
            raise UsageError(
                f"expected the {kind} report of {bundle.path}, found that of another bundle of the same name: "
                f"run `trueport {kind}` on it"
            )
    if run and run.info.weights_sha256 != manifest.provenance.weights_sha256:
        raise UsageError(
            f"expected the run that {bundle.path} was exported from, found {run.path} with other weights: name the "
            "other run, or export this one"
        )


def _template() -> Any:
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"number": number, "percent": percent, "share": _share, "size": size, "whole": "{:,}".format}
    return environment.from_string(_resource(TEMPLATE))


def _resource(name: str) -> str:
    return (resources.files(__package__) / name).read_text(encoding="utf-8")


def _share(value: float | None) -> str:
    """In percent; what the sample says nothing about is none."""
    return "none" if value is None else percent(value)


def _drift(bundle: Bundle, run: Run | None, trust_code: bool, progress: Callable[[str], None]) -> dict[str, Any]:
    own = run is not None and run.info.arch == bundle.manifest.provenance.arch  # a run is the user's, and so its code
    drift = drift_of(bundle, trust_code or own, progress)
    return {"drift": drift, "svg": fidelity_plots.drift_svg(drift) if drift.layers else None}


def _speed(bench: BenchReport) -> dict[str, Any]:
    paired = any(result.paired for result in bench.batches)
    tables = [("Milliseconds of one call, and images a second", bench_table(bench))] if bench.batches else []
    if bench.scenarios is not None:
        tables.append(("Under load, in MLPerf's scenarios", scenarios_table(bench)))
    return {
        "tables": tables,
        "latency_svg": latency_plots.latency_svg(bench.batches) if bench.batches else None,
        "speedup_svg": latency_plots.speedup_svg(bench.batches) if paired else None,
        "distributed": any(result.port.quantiles for result in bench.batches),
        "single": bench.batches[0] if bench.batches else None,
        "subject": f"{bench.variant} on {bench.port.name}",
    }


def _training(run: Run | None) -> dict[str, Any]:
    metrics = run.metrics() if run else []
    if run is None or not any(line.epoch == run.info.best_epoch for line in metrics):
        return {"loss_svg": None, "score_svg": None}
    return {
        "loss_svg": plots.loss_svg(metrics, run.info.best_epoch),
        "score_svg": plots.score_svg(metrics, run.info.best_epoch, run.info.metric),
    }


def _origin(bundle: Bundle, check: CheckReport, bench: BenchReport | None) -> dict[str, Any]:
    manifest, here = bundle.manifest, check.machine.versions
    origin, longest = manifest.provenance, max(check.seconds.values(), default=0.0)
    return {
        "origin": origin,
        "here": check.machine,
        "runners": [
            *dict.fromkeys(
                (one.name, one.provider, one.device, one.threads, shown(one.layers) if one.layers else "")
                for one in check.runners
            )
        ],
        "seconds": [(name, spent, spent / longest if longest else 0.0) for name, spent in check.seconds.items()],
        "total_seconds": sum(check.seconds.values()),
        "commands": _commands(bundle, check, bench),
        "versions": [(key, origin.versions.get(key), here.get(key)) for key in {**origin.versions, **here}],
        "recipe": tomli_w.dumps(_without_none(origin.recipe)) if origin.recipe else "",
        "fingerprints": (
            ("bundle (manifest)", manifest.sha256),
            *((f"graph ({variant.file})", manifest.files[variant.file].sha256) for variant in manifest.variants),
            ("weights", origin.weights_sha256),
            (f"data ({origin.data})", origin.data_sha256),
            ("split", origin.split_sha256),
        ),
    }


def _commands(bundle: Bundle, check: CheckReport, bench: BenchReport | None) -> list[tuple[str, str]]:
    name = shlex.quote(str(bundle.path))
    ran = dict.fromkeys(report.name for report in check.runners if report.name != WRITTEN)
    runners = "".join(f" --runner {runner}" for runner in ran)
    bounds = "".join(f" --bound {key}={value:g}" for key, value in check.overridden.items())
    commands = [("Check it again", f"trueport check {name}{runners}{bounds} --json check.json")]
    if not check:
        commands.append(("Trace what failed", f"trueport check {name}{runners}{bounds} --explain"))
    timed = ""
    if bench is not None and bench.batches:
        batches, timed = ",".join(str(result.batch) for result in bench.batches), " --bench bench.json"
        commands.append((
            "Time it again",
            f"trueport bench {name} --variant {bench.variant} --runner {bench.port.name} --threads "
            f"{bench.port.threads} --batch {batches} --seconds {bench.seconds:g} --json bench.json",
        ))  # fmt: skip
    return [
        *commands,
        ("Make this page again", f"trueport report {name} --check check.json{timed}"),
        ("Classify a picture", f"trueport predict {name} picture.png"),
        ("Serve it over HTTP", f"trueport serve {name}"),
    ]


def _without_none(value: Any) -> Any:
    """TOML has no word for what is not set."""
    if isinstance(value, dict):
        return {key: _without_none(item) for key, item in value.items() if item is not None}
    return value
