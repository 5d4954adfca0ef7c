"""The report: one file, the numbers in it, nothing loaded from elsewhere."""

from __future__ import annotations

import hashlib
import io
import sys
from collections.abc import Mapping
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray

from trueport.pipeline import disagreement, fidelity_plots, latency_plots, plots, report, wording
from trueport.pipeline.bench import BatchBench, BenchReport
from trueport.pipeline.check import CheckReport, proven
from trueport.pipeline.disagreement import Answers, data_uri
from trueport.pipeline.report import report_html, write_report
from trueport.pipeline.run_folder import METRICS, EpochMetrics, Run, RunInfo, write_metrics
from trueport.pipeline.scenarios import Scenarios, SingleStream
from trueport.pipeline.wording import headline, number, percent, size
from trueport.runtime.bundle import EVALUATION, GOLDEN, Bundle, sealed
from trueport.runtime.errors import MissingError, UsageError
from trueport.runtime.explanation import Departure, Explanation, StageResult
from trueport.runtime.machine import Machine
from trueport.runtime.manifest import (
    MANIFEST,
    Bounds,
    FileEntry,
    Manifest,
    Normalisation,
    Preprocessing,
    Provenance,
    TensorSpec,
    Variant,
)
from trueport.runtime.runner import Array, RunnerReport
from trueport.runtime.scores import softmax
from trueport.runtime.timing import LatencySummary, Paired
from trueport.runtime.verdict import Verdict, judged, not_run, undecided

DIGEST = "ab" * 32
BOUNDS = Bounds(max_abs=4e-5, rms=8e-6, noise_max_abs=5e-6, noise_rms=1e-6, noise_from=("float32, 1 threads, batch 1",))
ORIGINAL = np.array(
    [[4, 1, 0], [3, 2, 1], [0, 5, 1], [1, 2, 0], [0, 1, 3], [2, 0, 1], [0, 1.5, 1], [1, 0, 6]], np.float32
)
LABELS = np.array([0, 0, 1, 1, 2, 2, 2, 2])
CLOSE = ORIGINAL + np.arange(24, dtype=np.float32).reshape(8, 3) * np.float32(1e-6)
MACHINE = Machine(
    key="0123456789ab", os="Linux-6", python="3.11.7", architecture="x86_64", cpu="A <fast> processor",
    logical_cores=4, physical_cores=2, quota_cores=None, cores=2, instruction_sets=("avx2",), memory_gib=8.0, gpus=(),
    versions={"trueport": "0.1.0", "onnxruntime": "9.9.9"},
)  # fmt: skip
PORT = RunnerReport(name="onnxruntime:cpu", provider="CPUExecutionProvider", device="cpu", threads=2, versions={})
TORCH = RunnerReport(name="original", provider="torch eager", device="cpu", threads=2, versions={})


class Page(HTMLParser):
    """What a browser would find: tags, ids, what would be loaded, and the text."""

    VOID = frozenset({"meta", "img", "br", "link", "hr", "input", "col"})

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.texts: list[str] = []
        self.images: list[dict[str, str | None]] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.note(tag, dict(attrs))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.note(tag, dict(attrs))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.texts.append(data)

    def note(self, tag: str, attributes: dict[str, str | None]) -> None:
        self.tags.append(tag)
        self.ids += [attributes["id"] or ""] if "id" in attributes else []
        self.links += [attributes[key] or "" for key in ("src", "href", "xlink:href", "data") if key in attributes]
        if tag == "img":
            self.images.append(attributes)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())


class FakeRunner:
    """A port that answers picture i with row i of the logits."""

    inputs = (TensorSpec("image", "uint8", (-1, 4, 4, 1)),)
    outputs = (TensorSpec("logits", "float32", (-1, 3)),)

    def __init__(self, logits: NDArray[Any]) -> None:
        self.logits = logits
        self.closed = False

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        return {"logits": self.logits[feeds["image"][:, 0, 0, 0]]}

    def report(self) -> RunnerReport:
        return PORT

    def close(self) -> None:
        self.closed = True


def npz(**arrays: NDArray[Any]) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **arrays)
    return buffer.getvalue()


def make_bundle(
    folder: Path,
    labels: tuple[str, ...] = ("ant", "bee", "cat"),
    logits: NDArray[np.float32] = ORIGINAL,
    truth: NDArray[np.int64] = LABELS,
) -> Bundle:
    """A bundle of pictures whose first pixel is their index; the graph is never opened."""
    images = np.zeros((len(logits), 4, 4, 1), np.uint8)
    images[:, 0, 0, 0] = np.arange(len(logits))
    files = {
        "model.fp32.onnx": b"graph",
        GOLDEN: npz(images=images),
        EVALUATION: npz(images=images, labels=truth, logits=logits),
    }
    manifest = Manifest(
        name="insects",
        version="1",
        inputs=(TensorSpec("image", "uint8", (-1, 4, 4, 1)),),
        outputs=(TensorSpec("logits", "float32", (-1, len(labels))),),
        preprocessing=Preprocessing(height=4, width=4, mode="L"),
        normalisation=Normalisation((0.5,), (0.5,)),
        labels=labels,
        variants=(
            Variant(
                name="fp32",
                format="onnx",
                precision="fp32",
                reached={"fp32": 1},
                file="model.fp32.onnx",
                bounds=BOUNDS,
            ),
        ),
        provenance=Provenance(
            arch="lenet", arch_args={}, weights_sha256=DIGEST, data="insects", data_sha256=DIGEST, split_sha256=DIGEST,
            seed=0, created="2026-01-02T03:04:05+00:00", versions={"trueport": "0.1.0", "onnxruntime": "1.2.3"},
            recipe={"name": "insects", "train": {"epochs": 3, "device": None}},
        ),
        files={name: FileEntry(hashlib.sha256(data).hexdigest(), len(data)) for name, data in files.items()},
    )  # fmt: skip
    folder.mkdir()
    for name, data in (files | {MANIFEST: sealed(manifest)}).items():
        (folder / name).write_bytes(data)
    return Bundle.open(folder)


def make_run(folder: Path, epochs: int = 3) -> Run:
    info = RunInfo(
        task="classification", arch="lenet", arch_args={}, labels=("ant", "bee", "cat"),
        preprocessing=Preprocessing(height=4, width=4, mode="L"), normalisation=Normalisation((0.5,), (0.5,)),
        data="insects", data_sha256="", split_sha256="", weights_sha256=DIGEST, seed=0, epochs=epochs, best_epoch=1,
        metric="top-1 accuracy",
        validation_score=0.5, validation_loss=0.7, test_score=0.625, test_loss=0.6, train_count=50,
        validation_count=10, test_count=8, parameters=61_706, seconds=12.0, device="cpu", versions={}, recipe={},
    )  # fmt: skip
    lines = [
        EpochMetrics(
            epoch=epoch, learning_rate=1e-3, train_loss=1 / epoch, validation_loss=0.7 * epoch,
            validation_score=0.5, seconds=1.0, images_per_s=100.0,
        )
        for epoch in range(1, epochs + 1)
    ]  # fmt: skip
    folder.mkdir()
    write_metrics(folder / METRICS, lines)
    return Run(folder, info)


def latency(median_ms: float, rows: int = 1, p90_ms: float | None = None) -> LatencySummary:
    return LatencySummary(
        count=100, rows=rows, min_ms=median_ms / 2, median_ms=median_ms, mean_ms=median_ms, p90_ms=p90_ms, p99_ms=None,
        images_per_s=rows * 1000 / median_ms,
    )  # fmt: skip


def make_bench(with_original: bool = True) -> BenchReport:
    batches = []
    for rows, ratio in ((1, 4.37), (32, 1.02)):
        a, b = latency(ratio * rows, rows, 5 * rows), latency(float(rows), rows)
        low, high = 0.95 * ratio, 1.05 * ratio
        paired = Paired(a=a, b=b, ratio=ratio, ratio_low=low, ratio_high=high, noise=0.2, blocks=9)
        batches.append(BatchBench(batch=rows, port=b, paired=paired if with_original else None))
    return BenchReport(
        bundle="insects", version="1", variant="fp32", machine=MACHINE, port=PORT,
        original=TORCH if with_original else None,
        original_not_run="" if with_original else "not run: torch is not here", seconds=2.0, other_load=0.0,
        batches=tuple(batches),
    )  # fmt: skip


PASSED = (
    judged("preprocessing", "-", "-", {"max_levels": 0.0}, {"max_levels": 0.0}, "4 golden pictures"),
    judged("parity", "fp32", "onnxruntime:cpu", {"max_abs": 2.3e-5, "snr_db": 120.5}, {"max_abs": 4e-5}, "67 inputs"),
)
FAILED = judged(
    "parity",
    "fp32",
    "onnxruntime:cpu",
    {"max_abs": 6e-3, "rms": float("nan")},
    {"max_abs": 4e-5, "rms": 8e-6},
    "67 inputs",
)
UNDECIDED = undecided(
    "accuracy", "fp32", "onnxruntime:cpu", {"drop_high": 2.0}, {"drop_high": 0.5}, "8 held-out samples", 1234
)
MISSING = not_run("labels", "-", "-", "nobody asked")
NOT_RUN = not_run("recording", "original", "original", "the original needs torch, which is not installed")


def make_check(*verdicts: Verdict) -> CheckReport:
    return CheckReport(
        bundle="insects",
        version="1",
        faithful=proven(verdicts),
        machine=MACHINE,
        reference="original",
        runners=(PORT,),
        verdicts=verdicts,
    )


@pytest.fixture
def port(monkeypatch: pytest.MonkeyPatch) -> FakeRunner:
    """Its logits are close to the original's unless a test changes them."""
    runner = FakeRunner(CLOSE)
    monkeypatch.setattr(disagreement, "open_runner", lambda *_: runner)
    return runner


@pytest.fixture
def no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing is most of a report's time: tests of what stands around the figures do without."""
    for module in (plots, fidelity_plots, latency_plots):
        monkeypatch.setattr(module, "svg", lambda name, *_, **__: f'<svg id="{name}"></svg>')


@pytest.mark.usefixtures("port")
def test_the_page_is_whole_and_loads_nothing(tmp_path: Path) -> None:
    html = report_html(make_run(tmp_path / "run"), make_bundle(tmp_path / "b"), make_check(*PASSED), make_bench())
    page = Page(html)
    assert len(page.ids) == len(set(page.ids))
    assert all(link.startswith(("#", "data:image/png;base64,")) for link in page.links)
    assert {link[1:] for link in page.links if link.startswith("#")} <= set(page.ids)
    assert not {"script", "link", "iframe", "object", "base"} & set(page.tags)
    assert "@import" not in html
    assert html.count("url(") == html.count("url(#")
    assert page.tags.count("svg") == 6
    assert all(image["alt"] for image in page.images)
    assert html.count('role="img" aria-label="') == 6


def test_numbers_are_those_of_the_reports(tmp_path: Path, port: FakeRunner) -> None:
    bundle = make_bundle(tmp_path / "b")
    text = Page(report_html(make_run(tmp_path / "run"), bundle, make_check(*PASSED), make_bench())).text
    assert "✓ Faithful: all 2 gates passed" in text
    assert "2.30 × 10⁻⁵ 4.00 × 10⁻⁵" in text  # measured, allowed
    assert "120 dB" in text
    assert "75.00 % 6 of 8; original 75.00 %; no answer differs; fp32 on onnxruntime:cpu" in text
    assert "4.37 times faster than the original, 95 % interval 4.15 to 4.59" in text
    assert "no difference shown beyond the noise at batch 32" in text
    assert "5 bytes" in text  # of the graph
    assert "61,706 parameters" in text
    assert "A <fast> processor, 2 cores" in text
    assert "2026-01-02 03:04 UTC" in text
    assert "onnxruntime 1.2.3 9.9.9 differs" in text
    assert bundle.manifest.sha256 in text
    assert "epochs = 3" in text
    assert "trueport bench" in text
    assert "best: epoch 1" in text
    assert port.closed


@pytest.mark.usefixtures("port")
def test_the_same_inputs_give_the_same_bytes(tmp_path: Path) -> None:
    inputs = make_run(tmp_path / "run"), make_bundle(tmp_path / "b"), make_check(*PASSED), make_bench()
    out = tmp_path / "new" / "report.html"
    write_report(out, *inputs)
    assert out.read_text(encoding="utf-8") == report_html(*inputs)


@pytest.mark.usefixtures("port")
def test_names_from_outside_are_text_and_nothing_else(tmp_path: Path) -> None:
    labels = ("<script>alert(1)</script>", 'a"&$x^2$', "蝴蝶")
    bundle = make_bundle(tmp_path / "b", labels)
    html = report_html(None, bundle, make_check(*PASSED), make_bench())
    page = Page(html)
    assert "script" not in page.tags
    assert "<script>alert(1)</script>" in page.text
    assert "<script>alert…" in page.text  # in the confusion matrix
    assert page.text.count('a"&$x^2$') >= 2
    assert "蝴蝶" in page.text


@pytest.mark.usefixtures("port", "no_figures")
def test_without_a_run_there_are_no_curves_and_it_says_so(tmp_path: Path) -> None:
    page = Page(report_html(None, make_bundle(tmp_path / "b"), make_check(*PASSED), make_bench()))
    assert "came without the run that trained it" in page.text
    assert "validation accuracy" not in page.text.lower()
    assert page.tags.count("svg") == 4


@pytest.mark.usefixtures("port", "no_figures")
def test_a_run_without_its_metrics_still_has_a_report(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    (run.path / METRICS).unlink()
    page = Page(report_html(run, make_bundle(tmp_path / "b"), make_check(*PASSED), make_bench()))
    assert "lost its record of the epochs" in page.text


@pytest.mark.usefixtures("port", "no_figures")
def test_a_port_under_load_has_no_batches_but_a_table(tmp_path: Path) -> None:
    scenarios = Scenarios(single=SingleStream(latency=latency(2.0), p90_ms=3.5))
    bench = msgspec.structs.replace(make_bench(False), batches=(), scenarios=scenarios)
    page = Page(report_html(None, make_bundle(tmp_path / "b"), make_check(*PASSED), bench))
    assert "Under load, in MLPerf's scenarios" in page.text
    assert "100 queries, one after the other p90 3.5 ms" in page.text
    assert "Milliseconds of one call" not in page.text
    assert page.tags.count("svg") == 2


@pytest.mark.usefixtures("port", "no_figures")
def test_verdicts_on_speed_stand_with_the_speed(tmp_path: Path) -> None:
    slower = judged("latency", "fp32", "onnxruntime:cpu", {"slowdown": 1.2}, {"slowdown": 1.1}, "slower than before")
    bench = msgspec.structs.replace(make_bench(), verdicts=(slower,))
    page = Page(report_html(None, make_bundle(tmp_path / "b"), make_check(*PASSED), bench))
    assert "✗ failed latency: slower than before" in page.text


@pytest.mark.usefixtures("port", "no_figures")
def test_without_the_original_there_is_no_ratio(tmp_path: Path) -> None:
    page = Page(report_html(None, make_bundle(tmp_path / "b"), make_check(*PASSED), make_bench(False)))
    assert "1 ms 1,000 images/s; no original to compare with" in page.text
    assert "not run: torch is not here" in page.text
    assert "times faster" not in page.text
    assert page.tags.count("svg") == 3


@pytest.mark.usefixtures("port", "no_figures")
def test_a_failed_gate_leads_the_page_and_names_what_it_crossed(tmp_path: Path) -> None:
    check = make_check(PASSED[0], FAILED, NOT_RUN)
    html = report_html(None, make_bundle(tmp_path / "b"), check, make_bench())
    text = Page(html).text
    assert text.index("✗ Not proven faithful: 1 of 2 gates failed; 1 not run") < text.index("How close")
    assert "not proven to be the model that was trained" in text
    assert "✗ 150 times what is allowed 6.00 × 10⁻³ 4.00 × 10⁻⁵".replace("6.00 × 10⁻³", "0.006") in text
    assert "✗ over the limit not a number 8.00 × 10⁻⁶" in text
    assert "○ not run" in text
    assert "To prove: the original, rebuilt here" in text
    assert "needs torch, which is not installed" in text


@pytest.mark.parametrize(
    ("verdicts", "expected"),
    [
        ((), ("not run", "Nothing is proven: no gate was run")),
        ((NOT_RUN,), ("not run", "Nothing is proven: no gate was run")),
        ((PASSED[0],), ("passed", "Faithful: the one gate passed")),
        ((*PASSED, NOT_RUN), ("passed", "Faithful: 2 gates passed; 1 not run")),
        ((FAILED, NOT_RUN, NOT_RUN), ("failed", "Not proven faithful: 1 of 1 gate failed; 2 not run")),
        ((PASSED[0], UNDECIDED), ("undecided", "Not proven faithful: 1 of 2 gates undecided")),
        ((FAILED, UNDECIDED), ("failed", "Not proven faithful: 1 of 2 gates failed, 1 undecided")),
        ((PASSED[0], MISSING), ("not run", "Not proven faithful: 1 gate passed; 1 not run")),
    ],
)
def test_headline(verdicts: tuple[Verdict, ...], expected: tuple[str, str]) -> None:
    check = make_check(*verdicts)
    assert headline(check) == expected
    assert (expected[0] == "passed") is bool(check)


@pytest.mark.usefixtures("no_figures")
def test_flips_come_first_and_are_marked(tmp_path: Path, port: FakeRunner) -> None:
    port.logits = CLOSE.copy()
    port.logits[3] = [2, 1.9, 0]  # bee becomes ant
    port.logits[0] += 3  # far off, same answer
    page = Page(report_html(None, make_bundle(tmp_path / "b"), make_check(*PASSED), make_bench()))
    assert "1 of 8 pictures get another answer" in page.text
    shown = [str(image["alt"]).partition(" of")[0] for image in page.images]
    assert shown[:2] == ["Picture 3", "Picture 0"]
    assert page.text.count("answers differ") == 1
    assert "logits differ by up to 3 · picture 0" in page.text
    assert "62.50 % 5 of 8; original 75.00 %; one answer differs; fp32 on onnxruntime:cpu" in page.text


@pytest.mark.usefixtures("no_figures")
def test_pictures_that_both_get_wrong_are_kept_apart(tmp_path: Path, port: FakeRunner) -> None:
    html = report_html(None, make_bundle(tmp_path / "b"), make_check(*PASSED), make_bench())
    wrong = [image["alt"] for image in Page(html).images][-2:]
    assert wrong == [f"Picture {index} of the evaluation slice, a true cat" for index in (5, 6)]
    assert html.count('<li class="sample both">') == 2
    assert html.index("Wrong in both") < html.index('<li class="sample both">')


@pytest.mark.usefixtures("no_figures")
def test_an_exact_port_has_nothing_to_draw(tmp_path: Path, port: FakeRunner) -> None:
    port.logits = ORIGINAL
    page = Page(report_html(None, make_bundle(tmp_path / "b"), make_check(*PASSED), make_bench()))
    assert "Nowhere: all 8 pictures get the same logits" in page.text
    assert "there is nothing to draw" in page.text
    assert "No cell of any confusion matrix has changed" in page.text
    assert page.tags.count("svg") == 3


@pytest.mark.usefixtures("no_figures")
def test_a_port_that_answers_no_numbers_is_told_of(tmp_path: Path, port: FakeRunner) -> None:
    port.logits = np.full_like(ORIGINAL, np.nan)
    page = Page(report_html(None, make_bundle(tmp_path / "b"), make_check(FAILED), make_bench()))
    assert "24 logits of the port are not numbers" in page.text
    assert "logits differ by up to infinite" in page.text


@pytest.mark.usefixtures("port", "no_figures")
def test_undecided_has_a_look_of_its_own_and_names_the_samples(tmp_path: Path) -> None:
    html = report_html(None, make_bundle(tmp_path / "b"), make_check(*PASSED, UNDECIDED), None)
    text = Page(html).text
    assert "? Not proven faithful: 1 of 3 gates undecided" in text
    assert "It can’t be told: 1,234 samples would decide it." in text
    assert text.index("8 held-out samples; 1,234 samples would decide it") < text.index("Gates")
    assert '<li class="gate undecided">' in html
    assert "The samples do not tell" in text


@pytest.mark.usefixtures("port", "no_figures")
def test_bounds_stand_beside_their_noise_or_the_hand_that_set_them(tmp_path: Path) -> None:
    measured = {"max_abs": 2e-5, "noise_max_abs": 5e-6, "rms": 9.004e-6, "noise_rms": 1e-6}
    verdict = judged("parity", "fp32", "onnxruntime:cpu", measured, {"max_abs": 4e-5, "rms": 8e-6}, "67 inputs")
    check = msgspec.structs.replace(make_check(verdict), overridden={"fp32.max_abs": 4e-5})
    text = Page(report_html(None, make_bundle(tmp_path / "b"), check, None)).text
    assert "bound set by hand noise at export 5.00 × 10⁻⁶, the bound is 8 times that" in text
    assert "noise at export 1.00 × 10⁻⁶, the bound is 8 times that; would have passed with 9.05 × 10⁻⁶" in text
    assert text.count("bound set by hand") == 1
    assert "--bound fp32.max_abs=4e-05" in text
    by_hand = msgspec.structs.replace(make_check(), overridden={"fp32.max_abs": 0.125})
    bundle = make_bundle(tmp_path / "c")
    assert "allowed 0.125" in Page(report_html(None, bundle, by_hand, make_bench())).text


@pytest.mark.usefixtures("port", "no_figures")
@pytest.mark.parametrize("confirmed", [True, False])
def test_explanations_lead_to_the_first_stage_that_departs(tmp_path: Path, confirmed: bool) -> None:
    explanation = Explanation(
        variant="fp32",
        runner="onnxruntime:cpu",
        gates=("parity",),
        stage="onnx",
        stages=(
            StageResult(stage="export", status="agrees", measured={"rms": 0.0}, allowed={"rms": 1.0}, detail="67 rows"),
            StageResult(stage="onnx", status="departs", measured={"rms": None}, allowed={"rms": 8e-6}, detail="NaN"),
            StageResult(stage="runner", status="departs", detail="so does this"),
        ),
        first=(Departure(layer="conv1", tensor="relu", max_abs=1e-3, allowed=1e-6, detail="Conv node"),),
        cause="the bias of <conv1> is lost",
        confirmed=confirmed,
        remedy="export again",
        float_layers=("conv1", "fc"),
    )  # fmt: skip
    check = msgspec.structs.replace(make_check(PASSED[0], FAILED), explanations=(explanation,))
    html = report_html(None, make_bundle(tmp_path / "b"), check, None)
    text = Page(html).text
    assert text.index("What it comes from") < text.index("All gates, by what was judged")
    assert "It departs first at onnx : the fp32 graph as it is written" in text
    assert html.count('class="departs first"') == 1
    assert "conv1 0.001 1.00 × 10⁻⁶ 1,000 tensor relu : Conv node" in text
    assert ("Cause shown the bias of <conv1> is lost" in text) is confirmed
    assert ("usual cause, not shown the bias" in text) is not confirmed
    assert "Keep in float conv1 , fc" in text
    assert "not a number, allowed" in text


@pytest.mark.usefixtures("no_figures")
def test_changed_answers_are_told_cell_by_cell(tmp_path: Path, port: FakeRunner) -> None:
    port.logits = CLOSE.copy()
    port.logits[2] = [0, 1, 5]  # a bee that only the original knows
    port.logits[5] = [0, 1, 3]  # a cat that only the port knows
    port.logits[6] = [9, 1, 0]  # a cat that neither knows
    html = report_html(None, make_bundle(tmp_path / "b"), make_check(*PASSED), make_bench())
    text = Page(html).text
    for told in ("bee bee cat 1 lost", "cat ant cat 1 won", "cat bee ant 1 wrong in both"):
        assert told in text
    assert text.count("answers differ: lost") == text.count("answers differ: won") == 1
    assert html.count('<span class="flip same">answers differ</span>') == 2  # also among those wrong in both
    changes = Answers(LABELS, ORIGINAL.astype(np.float64), port.logits.astype(np.float64)).changes()
    assert changes.tolist() == [[0, 0, 0], [0, -1, 1], [0, -1, 1]]


@pytest.mark.usefixtures("no_figures")
def test_changes_that_cancel_each_other_out_are_told(tmp_path: Path, port: FakeRunner) -> None:
    """Cats 5 and 6 are an ant and a bee to the original, a bee and an ant to the port."""
    port.logits = CLOSE.copy()
    port.logits[[5, 6]] = CLOSE[[6, 5]]
    html = report_html(None, make_bundle(tmp_path / "b"), make_check(*PASSED), None)
    assert "They cancel each other out in the confusion matrix." in html
    assert "<td>ant</td><td>bee</td>" in html


def test_the_changes_leave_out_classes_that_have_none() -> None:
    changes = np.zeros((40, 40), np.int64)
    changes[7, 8], changes[7, 7] = 2, -2
    page = Page(fidelity_plots.changes_svg(changes, [f"class {index}" for index in range(40)]))
    assert {"class 7", "class 8", "+2", "−2"} <= set(page.texts)
    assert "class 9" not in page.texts
    with pytest.raises(ValueError, match="expected a cell that has changed"):
        fidelity_plots.changes_svg(np.zeros((2, 2), np.int64), ("a", "b"))


def test_a_port_that_can_not_be_asked_is_told_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> FakeRunner:
        raise MissingError("this machine has no such device")

    monkeypatch.setattr(disagreement, "open_runner", refuse)
    page = Page(report_html(None, make_bundle(tmp_path / "b"), make_check(*PASSED), None))
    assert "fp32 on onnxruntime:cpu could not be asked here: this machine has no such device" in page.text
    assert page.text.count("No port could be asked here") == 3
    assert page.tags.count("svg") == 0
    assert "How fast it is" not in page.text


@pytest.mark.usefixtures("no_figures")
def test_a_port_that_refuses_batches_is_asked_row_by_row(tmp_path: Path, port: FakeRunner) -> None:
    answer = port.run

    def alone(feeds: Mapping[str, Array]) -> dict[str, Array]:
        if len(feeds["image"]) > 1:
            raise RuntimeError("the batch is frozen")
        return answer(feeds)

    port.run = alone  # type: ignore[method-assign]
    assert "6 of 8; original" in Page(report_html(None, make_bundle(tmp_path / "b"), make_check(*PASSED), None)).text
    port.logits = port.logits[:, :2]
    page = Page(report_html(None, make_bundle(tmp_path / "c"), make_check(*PASSED), None))
    assert "it can't answer: expected logits [8, 3], found [8, 2]" in page.text


@pytest.mark.usefixtures("port", "no_figures")
def test_what_was_not_run_for_one_reason_is_one_sentence(tmp_path: Path) -> None:
    closed = [not_run("opening", name, "onnxruntime:cpu", "it needs a GPU") for name in ("fp16", "bf16")]
    page = Page(report_html(None, make_bundle(tmp_path / "b"), make_check(*PASSED, *closed), None))
    assert "not run fp16 on onnxruntime:cpu and bf16 on onnxruntime:cpu: it needs a GPU" in page.text


@pytest.mark.usefixtures("port", "no_figures")
def test_the_time_of_the_check_is_told(tmp_path: Path) -> None:
    check = msgspec.structs.replace(make_check(*PASSED), seconds={"original": 3.04, "fp32 on onnxruntime:cpu": 0.96})
    text = Page(report_html(None, make_bundle(tmp_path / "b"), check, None)).text
    assert "Seconds of each part of the check, 4.0 together" in text
    assert "original 3.0" in text


def test_latency_shows_the_distribution_and_the_interval_of_the_median() -> None:
    plain = make_bench().batches
    quantiles = tuple((share / 10, 0.5 + share / 10) for share in range(1, 10))
    side = msgspec.structs.replace(plain[0].port, quantiles=quantiles, median_low_ms=0.9, median_high_ms=1.2)
    told = latency_plots.latency_svg((msgspec.structs.replace(plain[0], port=side), *plain[1:]))
    assert "port 1 (0.9 to 1.2)" in told
    filled = "fill: var(--port); opacity: 0.35"
    assert told.count(filled) == len(quantiles) - 1
    assert filled not in latency_plots.latency_svg(plain)
    same = msgspec.structs.replace(side, quantiles=((0.1, 1.0), (0.5, 1.0), (0.9, 1.0)))  # a clock that ticks
    assert latency_plots.latency_svg((msgspec.structs.replace(plain[0], port=same),)).count(filled) == 2


def test_colours_can_be_read_on_what_they_stand_on() -> None:
    import re
    from importlib import resources

    css = (resources.files("trueport.pipeline") / report.STYLE).read_text(encoding="utf-8")
    themes = [dict(re.findall(r"--(\w+): (#\w+)", block)) for block in re.findall(r":root \{([^}]*)\}", css)]
    assert len(themes) == 2  # light and dark

    def luminance(colour: str) -> float:
        digits = colour[1:] if len(colour) == 7 else "".join(2 * digit for digit in colour[1:])
        parts = np.array([int(digits[index : index + 2], 16) for index in (0, 2, 4)]) / 255
        linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
        return float(linear @ [0.2126, 0.7152, 0.0722])

    for theme in themes:
        for name in ("ink", "soft", "wrong", "good", "open", "port", "accent"):
            for ground in ("ground", "card"):
                dark, light = sorted((luminance(theme[name]), luminance(theme[ground])))
                assert (light + 0.05) / (dark + 0.05) >= 4.5, (name, ground)  # WCAG 2.2, 1.4.3


@pytest.mark.usefixtures("port")
def test_a_report_of_another_bundle_is_refused(tmp_path: Path) -> None:
    bundle, check, bench = make_bundle(tmp_path / "b"), make_check(*PASSED), make_bench()
    with pytest.raises(UsageError, match="expected the check report of insects 1, found that of birds 1"):
        report_html(None, bundle, msgspec.structs.replace(check, bundle="birds"), bench)
    with pytest.raises(
        UsageError, match="found that of birds"
    ):  # an unfaithful report is falsy, and foreign all the same
        report_html(None, bundle, msgspec.structs.replace(make_check(FAILED), bundle="birds"), None)
    with pytest.raises(UsageError, match="expected the check report of insects 1, found that of insects 2"):
        report_html(None, bundle, msgspec.structs.replace(check, version="2"), None)
    with pytest.raises(UsageError, match=r"expected the bench report of .*, found that of another bundle"):
        report_html(None, bundle, check, msgspec.structs.replace(bench, bundle_sha256="cd" * 32))
    with pytest.raises(UsageError, match=r"expected the check report of .*, found that of another bundle"):
        report_html(None, bundle, msgspec.structs.replace(check, bundle_sha256="cd" * 32), bench)
    run = make_run(tmp_path / "run")
    foreign = Run(run.path, msgspec.structs.replace(run.info, weights_sha256="cd" * 32))
    with pytest.raises(UsageError, match=r"found .* with other weights"):
        report_html(foreign, bundle, check, None)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib

    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(MissingError, match=r"jinja2, which is not installed: pip install 'trueport\[train\]'"):
        importlib.reload(report)


@pytest.mark.parametrize("classes", [2, 12, 100])
def test_confusion_of_few_and_many_classes(classes: int) -> None:
    matrix = np.eye(classes, dtype=np.int64) * 7
    matrix[0, 1] = 3
    labels = [f"a rather long class name {index}" if index % 2 else f"class {index}" for index in range(classes)]
    page = Page(plots.confusion_svg(matrix, labels))
    assert page.texts.count("class 0") == 2
    assert ("3" in page.texts) is (classes <= plots.COUNTED_CLASSES)
    assert page.text.count("…") >= 2


def test_a_difference_beyond_the_bound_is_said_in_the_alternative_text() -> None:
    inside = fidelity_plots.differences_svg(np.array([0, 1e-6, 2e-6]), BOUNDS)
    assert "2.00 × 10⁻⁶, within the allowed 4.00 × 10⁻⁵".replace(" ×", "\xa0×").replace("× ", "×\xa0") in inside
    assert "beyond the allowed" in fidelity_plots.differences_svg(np.array([np.nan, 1e-6, 1.0]), BOUNDS)
    with pytest.raises(ValueError, match="above zero"):
        fidelity_plots.differences_svg(np.array([0.0, np.nan]), BOUNDS)


def test_every_difference_is_in_the_histogram() -> None:
    powers = 2.0 ** np.arange(-24, -15, dtype=np.float64)  # each on the edge of a bin
    shapes = fidelity_plots.differences_svg(powers, BOUNDS).split("<path ")
    assert sum("fill: var(--port); opacity: 0.6" in shape for shape in shapes) == len(powers)


def test_worst_ranks_flips_then_differences_and_leaves_out_equals() -> None:
    original = np.array([[2.0, 1], [2, 1], [2, 1], [2, 1], [2, 1]])
    port = np.array([[2.0, 1], [2.5, 1], [1.4, 1.5], [np.nan, 1], [0, 9]])
    answers = Answers(np.zeros(5, np.int64), original, port)
    assert answers.worst()[:2] == [4, 2]
    assert set(answers.worst()) == {1, 2, 3, 4}
    assert answers.largest.tolist() == [0, 0.5, pytest.approx(0.6), np.inf, 8]
    assert answers.both_wrong() == []
    assert answers.confusion().tolist() == [[3, 2], [0, 0]]


def test_softmax_of_extremes() -> None:
    np.testing.assert_allclose(softmax(np.array([1e4, 1e4])), [0.5, 0.5])
    assert np.isnan(softmax(np.array([np.nan, 1.0]))).all()


def test_pictures_are_png_and_not_large() -> None:
    import base64

    from PIL import Image

    uri = data_uri(np.random.default_rng(0).integers(0, 256, (300, 200, 3), dtype=np.uint8))
    image = Image.open(io.BytesIO(base64.b64decode(uri.removeprefix("data:image/png;base64,"))))
    assert (image.format, image.mode, max(image.size)) == ("PNG", "RGB", disagreement.LARGEST_PX)
    grey = data_uri(np.arange(16, dtype=np.uint8).reshape(4, 4, 1))
    small = Image.open(io.BytesIO(base64.b64decode(grey.partition(",")[2])))
    assert np.array_equal(np.asarray(small), np.arange(16).reshape(4, 4))


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "not a number"),
        (float("nan"), "not a number"),
        (float("-inf"), "infinite"),
        (0.0, "0"),
        (7.0, "7"),
        (0.1234, "0.123"),
        (-0.768, "−0.768"),
        (31337.4, "31,337"),
        (3.81e-6, "3.81 × 10⁻⁶"),
        (1.5e12, "1.50 × 10¹²"),
    ],
)
def test_number(value: float | None, text: str) -> None:
    assert number(value).replace("\xa0", " ") == text


def test_shares_and_sizes() -> None:
    assert percent(0.96936).replace("\xa0", " ") == "96.94 %"
    assert percent(0.999999).replace("\xa0", " ") == "> 99.99 %"
    assert percent(1.0).replace("\xa0", " ") == "100.00 %"
    assert [size(count).replace("\xa0", " ") for count in (12, 502_106, 45_000_000, 2_100_000_000)] == [
        "12 bytes",
        "502 kB",
        "45 MB",
        "2.1 GB",
    ]


def test_every_measurement_of_the_gates_has_words() -> None:
    from trueport.runtime import comparison

    original = np.array([[1.0, 2.0], [3.0, 0.0]], np.float32)
    names: dict[str, Any] = {"variant": "fp32", "runner": "onnxruntime:cpu"}
    verdicts = [
        comparison.parity(original, original, BOUNDS, detail="", **names),
        comparison.accuracy(original, original, np.array([1, 0]), BOUNDS, **names),
        comparison.parity(original, original, BOUNDS, detail="", task="multilabel", **names),
        comparison.decisions(original, original, np.ones((2, 2), np.uint8), BOUNDS, **names),
        comparison.preprocessing_identity([np.zeros((1, 1, 1), np.uint8)], np.zeros((1, 1, 1, 1), np.uint8)),
    ]
    for verdict in verdicts:
        assert verdict.gate in wording.MEANINGS
        assert set(verdict.measured) <= set(wording.MEASURES)
