"""The whole main job: every stage once, nothing twice, and only what changed again."""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from trueport.pipeline import report, stages
from trueport.pipeline.bench import BenchReport
from trueport.pipeline.check import check_bundle
from trueport.pipeline.console import Table
from trueport.pipeline.recipe import Recipe, load_recipe
from trueport.pipeline.run_folder import Run
from trueport.pipeline.stages import BENCH_JSON, CHECK_JSON, RECORD, REPORT, STAGES, Outcome, outcome_table, run_stages
from trueport.runtime.bundle import WEIGHTS, Bundle
from trueport.runtime.errors import UsageError


@pytest.fixture(scope="module")
def short(recipe: Recipe) -> Recipe:
    data = msgspec.structs.replace(recipe.data, validation=0.6, test=0.2)
    train = msgspec.structs.replace(recipe.train, epochs=2)
    bench = msgspec.structs.replace(recipe.bench, batch=(1, 4), seconds=0.1)
    return msgspec.structs.replace(recipe, data=data, train=train, bench=bench)


def test_what_export_found_doubtful_is_told_by_both_commands(
    trueport: Any, bundle_path: Path, run_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sound = Bundle.open(bundle_path).manifest
    doubtful = msgspec.structs.replace(sound.variants[0], warnings=("a range is wide", "another"))
    bundle = Bundle(bundle_path, msgspec.structs.replace(sound, variants=(doubtful,)))
    monkeypatch.setattr("trueport.pipeline.export_run.export_run", lambda *_: (bundle_path, bundle.manifest))
    monkeypatch.setattr(stages, "run_stages", lambda *_, **__: SimpleNamespace(bundle=bundle, check=True))
    monkeypatch.setattr(stages, "outcome_table", lambda _: Table("digits", ("", ""), ()))
    for command in (("export", run_path), ("run", "digits")):
        code, _, err = trueport(*command)
        assert (code, err) == (0, "warning: fp32: a range is wide\nwarning: fp32: another\n")


@pytest.fixture(scope="module")
def done(short: Recipe, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Outcome, list[str]]:
    said: list[str] = []
    out = tmp_path_factory.mktemp("stages") / "demo"
    return out, run_stages(short, out, say=said.append), said


@pytest.fixture
def own(done: tuple[Path, Outcome, list[str]], tmp_path: Path) -> Path:
    return Path(shutil.copytree(done[0], tmp_path / "demo"))


@pytest.fixture
def quick(done: tuple[Path, Outcome, list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    """Export, bench and report leave what they left before: which of them are done is then quickly seen."""
    first, outcome, _ = done
    seconds = itertools.count(1.0)

    def export_run(_: Path, out: Path, *__: object) -> None:
        shutil.rmtree(out, ignore_errors=True)
        shutil.copytree(first / stages.BUNDLE, out, ignore=shutil.ignore_patterns("reports"))

    monkeypatch.setattr(stages, "export_run", export_run)

    def bench(*_: object, **__: object) -> BenchReport:
        return msgspec.structs.replace(outcome.bench, seconds=next(seconds))  # no two measurements are alike

    monkeypatch.setattr(stages, "bench", bench)
    monkeypatch.setattr(report, "write_report", lambda path, *_: path.write_text("told"))


def worked(recipe: Recipe, out: Path) -> list[str]:
    """Which stages were done, the others having been skipped."""
    said: list[str] = []
    run_stages(recipe, out, say=said.append)
    skipped = [line.split()[1].rstrip(":") for line in said if "skipped" in line]
    finished = [line.split()[1].rstrip(":") for line in said if ": done in" in line]
    assert sorted(skipped + finished) == sorted(STAGES)
    return finished


def test_every_stage_leaves_what_it_is_for(done: tuple[Path, Outcome, list[str]]) -> None:
    out, outcome, said = done
    for name in (
        "run.json",
        "weights.safetensors",
        "metrics.jsonl",
        "bundle/manifest.json",
        CHECK_JSON,
        BENCH_JSON,
        REPORT,
    ):
        assert (out / name).is_file(), name
    assert outcome.check
    assert [line.split()[1] for line in said if ": done in" in line] == [f"{stage}:" for stage in STAGES]
    assert [result.batch for result in outcome.bench.batches] == [1, 4]


def test_the_table_at_the_end_holds_the_numbers(done: tuple[Path, Outcome, list[str]]) -> None:
    _, outcome, _ = done
    told = {row[0]: row[1] for row in outcome_table(outcome).rows}
    assert f"{outcome.run.info.test_score:.2%}" in told["accuracy"]
    assert told["verdict"].startswith("faithful: 8 passed")
    assert "is taken for" in told["sample"]
    assert told["report"].endswith("report.html")


@pytest.mark.usefixtures("quick")
def test_nothing_is_done_twice(short: Recipe, own: Path) -> None:
    assert worked(short, own) == []


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    ("section", "change", "stages_done"),
    [
        ("train", {"seed": 7}, ["train", "export", "check", "bench", "report"]),
        ("export", {"golden": 8}, ["export", "check", "bench", "report"]),
        ("bench", {"batch": (2,)}, ["bench", "report"]),
    ],
)
def test_a_changed_recipe_repeats_what_depends_on_it(
    short: Recipe, own: Path, section: str, change: dict[str, object], stages_done: list[str]
) -> None:
    changed = msgspec.structs.replace(getattr(short, section), **change)
    assert worked(msgspec.structs.replace(short, **{section: changed}), own) == stages_done


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    ("lost", "stages_done"),
    [
        (REPORT, ["report"]),
        (BENCH_JSON, ["bench", "report"]),
        (f"bundle/{WEIGHTS}", ["export", "check", "bench", "report"]),
        ("bundle", ["export", "check", "bench", "report"]),
        (RECORD, ["train", "export", "check", "bench", "report"]),
    ],
)
def test_what_was_lost_is_made_again(short: Recipe, own: Path, lost: str, stages_done: list[str]) -> None:
    path = own / lost
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert worked(short, own) == stages_done


@pytest.mark.usefixtures("quick")
def test_an_interrupted_stage_is_done_again(short: Recipe, own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (own / CHECK_JSON).unlink()

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(stages, "check_bundle", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run_stages(short, own)
    assert "check" in worked(short, own)
    assert worked(short, own) == []


def test_a_folder_of_something_else_is_not_touched(short: Recipe, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(UsageError, match="is not empty"):
        run_stages(short, tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.usefixtures("quick")
def test_a_failed_gate_is_reported_to_the_end(own: Path, short: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    (own / CHECK_JSON).unlink()

    def failing(*arguments: object, **options: object) -> object:
        report = check_bundle(*arguments, **options)  # type: ignore[arg-type]
        failed = msgspec.structs.replace(report.verdicts[0], status="failed")
        return msgspec.structs.replace(report, verdicts=(failed, *report.verdicts[1:]), faithful=False)

    monkeypatch.setattr(stages, "check_bundle", failing)
    outcome = run_stages(short, own)
    assert not outcome.check
    assert outcome.report.is_file()
    assert not run_stages(short, own).check


def test_what_changed_afterwards_is_in_run_and_bundle(own: Path, short: Recipe) -> None:
    export = msgspec.structs.replace(short.export, golden=5)
    changed = msgspec.structs.replace(short, name="renamed", export=export)
    outcome = run_stages(changed, own)
    assert outcome.bundle.manifest.name == "renamed"
    assert len(outcome.bundle.golden().images) == 5 + 3
    assert Run.open(own).recipe() == changed
    assert load_recipe(own / "recipe.toml") == changed
    assert worked(changed, own) == []


def test_afresh_does_everything_again(own: Path, short: Recipe) -> None:
    said: list[str] = []
    run_stages(short, own, afresh=True, say=said.append)
    assert not any("skipped" in line for line in said)
    assert worked(short, own) == []


def test_one_of_several_processes_is_refused(short: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UsageError, match="let them `trueport train` into"):
        run_stages(short, tmp_path / "out")
    assert not (tmp_path / "out").exists()
