"""trueport check: is the port the model that was trained?"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from trueport.runtime.errors import EXIT_GATE_FAILED

from . import new_app

if TYPE_CHECKING:
    from ..check import CheckReport

app = new_app()


@app.command()
def check(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="A bundle folder.")],
    variant: Annotated[
        list[str], typer.Option(metavar="NAME", help="Repeatable; those made for the runner's device where not given.")
    ] = [],  # noqa: B006
    runner: Annotated[
        list[str],
        typer.Option(
            metavar="RUNNER", help="Repeatable; all: every one that this machine can open; written: the graphs alone."
        ),
    ] = ["onnxruntime:cpu"],  # noqa: B006
    data: Annotated[
        str | None,
        typer.Option(metavar="DATA", help="Labelled pictures in place of the evaluation slice; needs the original."),
    ] = None,
    bound: Annotated[
        list[str],
        typer.Option(metavar="VARIANT.BOUND=VALUE", help="Repeatable, such as int8-cpu.max_drop=2; it is recorded."),
    ] = [],  # noqa: B006
    explain: Annotated[
        bool, typer.Option("--explain", help="Trace what failed to its stage, its first tensors and its cause.")
    ] = False,
    rebuild: Annotated[
        Path | None,
        typer.Option(metavar="OUT", help="With --explain: write the bundle anew, with the layers in float it needs."),
    ] = None,
    self_test: Annotated[
        bool,
        typer.Option(
            "--self-test",
            help="Plant known faults into copies of the bundle: which are caught here? With --explain: and traced?",
        ),
    ] = False,
    threads: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Of one inference; all cores where not given.")
    ] = None,
    trust_code: Annotated[
        bool, typer.Option("--trust-code", help="Run the package.module:factory that the bundle's original is made by.")
    ] = False,
    json: Annotated[str | None, typer.Option(metavar="FILE", help="Write the report as JSON; - prints it.")] = None,
    junit: Annotated[str | None, typer.Option(metavar="FILE", help="Write JUnit's XML, a case for each gate.")] = None,
    markdown: Annotated[
        str | None, typer.Option(metavar="FILE", help="Write Markdown, as for a job's summary.")
    ] = None,
    sarif: Annotated[str | None, typer.Option(metavar="FILE", help="Write SARIF 2.1.0, as for code scanning.")] = None,
) -> None:
    """Prove it: parity, batch invariance, preprocessing, labels and accuracy. Exit code 1 where that is not proven.

    With torch installed the original is rebuilt and asked anew; without, its recorded answers are the reference.
    A variant that was not named and can't run here is told as not run, and never counted as passed. What samples are
    too few to tell is undecided, and not passed either.
    """
    from ..check import bounds_from_text, explained
    from ..check import check as checked_bundle
    from ..console import emit_json, refuse_unwritable, say
    from ..outputs import announce, refuse_shared, write_outputs

    refuse_shared(json=json, junit=junit, markdown=markdown, sarif=sarif)
    refuse_unwritable(json, junit, markdown, sarif)
    if rebuild and not explain:
        raise typer.BadParameter("it needs --explain, which finds the layers", param_hint="--rebuild")
    if self_test:
        others = {"--variant": variant, "--data": data, "--bound": bound, "--rebuild": rebuild}
        _refuse_beside_self_test(others | {"--junit": junit, "--markdown": markdown, "--sarif": sarif})
        _self_test(bundle, runner, threads, explain=explain, trust_code=trust_code, json=json)
        return
    if explain and data is not None:
        raise typer.BadParameter(
            "it finds stage and cause by the bundle's own pictures: leave it or --data out", param_hint="--explain"
        )
    checked = checked_bundle(
        bundle,
        variants=variant,
        runners=runner,
        threads=threads,
        trust_code=trust_code,
        bounds=bounds_from_text(bound),
        data=data,
    )
    try:
        if explain and (rebuild or not checked):
            checked = explained(bundle, checked, rebuild=rebuild, threads=threads, trust_code=trust_code, progress=say)
    finally:  # whatever becomes of the explanation or of a file, the verdicts are told
        taken = "-" in (json, junit, markdown, sarif)
        if not taken:
            _print(checked)
        emit_json(checked, json)
        write_outputs(checked, junit=junit, markdown=markdown, sarif=sarif)
        announce(checked, stream=sys.stderr if taken else None)
    if not checked:
        raise typer.Exit(EXIT_GATE_FAILED)


def _print(checked: CheckReport) -> None:
    from ..check import check_table
    from ..console import print_table

    print_table(check_table(checked))
    if checked.explanations:
        from ..explain import explanation_table

        print()
        print_table(explanation_table(checked.explanations))


def _refuse_beside_self_test(others: Mapping[str, object]) -> None:
    """Raise BadParameter for options that --self-test would pass over, by their names."""
    if given := [name for name, value in others.items() if value not in (None, [])]:
        fitting = "--runner, --explain, --threads, --trust-code and --json"
        raise typer.BadParameter(f"it takes {fitting} alone: leave out {', '.join(given)}", param_hint="--self-test")


def _self_test(
    bundle: Path, runners: list[str], threads: int | None, *, explain: bool, trust_code: bool, json: str | None
) -> None:
    from ..console import emit_json, print_table, say
    from ..self_test import self_test, self_test_table

    if len(runners) != 1:
        raise typer.BadParameter("it takes one runner at a time", param_hint="--self-test")
    report = self_test(
        bundle, runner=runners[0], threads=threads, trust_code=trust_code, explained=explain, progress=say
    )
    emit_json(report, json)
    if json != "-":
        print_table(self_test_table(report))
    if not report:
        raise typer.Exit(EXIT_GATE_FAILED)
