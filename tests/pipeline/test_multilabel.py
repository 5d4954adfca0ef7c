"""Several labels a picture, from the original through bundle, check, session and server to the report's answers."""

from __future__ import annotations

import asyncio
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from typer.testing import CliRunner

from trueport.export.bundle import Origin, write_bundle
from trueport.export.original import original_from_bundle
from trueport.pipeline.bench import bench
from trueport.pipeline.check import check
from trueport.pipeline.cli import app as commands
from trueport.pipeline.deployment import Deployment
from trueport.pipeline.disagreement import answers_of_both, samples
from trueport.pipeline.evaluate import evaluate
from trueport.pipeline.faults import FAULTS, DoesNotApplyError, Healthy
from trueport.pipeline.recipe import recipe_from_table
from trueport.pipeline.report import report_html
from trueport.pipeline.stages import outcome_table, run_stages
from trueport.runtime import Bundle, load
from trueport.runtime.errors import BundleError
from trueport.runtime.server import App

QUARTERS = ("top left", "top right", "bottom left", "bottom right")


def sigmoid(logits: NDArray[Any]) -> NDArray[Any]:
    return 1 / (1 + np.exp(-logits.astype(np.float64)))


def png(pixels: NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels[:, :, 0]).save(buffer, "PNG")
    return buffer.getvalue()


def ask(app: App, method: str, path: str, body: bytes = b"", query: bytes = b"") -> Any:
    """The JSON of an answer that is a 200."""
    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "http.request", "body": body}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": method, "path": path, "headers": [], "query_string": query}
    asyncio.run(app(scope, receive, send))
    assert sent[0]["status"] == 200, sent
    return json.loads(sent[1]["body"])


def test_labels_are_kept_as_marks(labels_bundle: Path) -> None:
    bundle = Bundle.open(labels_bundle)
    evaluation = bundle.evaluation()
    assert bundle.manifest.task == "multilabel"
    assert evaluation.labels.dtype == np.uint8
    assert evaluation.labels.shape == (120, 4)
    assert original_from_bundle(bundle).task == "multilabel"


def test_its_port_is_proven(labels_bundle: Path) -> None:
    report = check(labels_bundle)
    assert report, report.failed
    assert report.reference == "original"
    verdicts = {verdict.gate: verdict for verdict in report.verdicts}
    assert verdicts["parity"].measured["decision_agreement"] == 100
    assert "top1_agreement" not in verdicts["parity"].measured
    measured = verdicts["accuracy"].measured
    evaluation = Bundle.open(labels_bundle).evaluation()
    right = (evaluation.logits > 0) == (evaluation.labels > 0)
    assert measured["decisions_port"] == measured["decisions_original"] == pytest.approx(100 * right.mean())
    assert measured["exact_port"] == pytest.approx(100 * right.all(axis=1).mean())
    assert measured["overlap_port"] == measured["overlap_original"]
    assert measured["drop_points"] == 0
    assert verdicts["labels"].detail == "4 labels in the manifest and in the graphs", "no more was looked at"
    assert 0.2 < right.all(axis=1).mean() < 0.9


def test_nothing_is_planted_into_an_order_that_no_gate_looks_at(labels_bundle: Path, tmp_path: Path) -> None:
    bundle = Bundle.open(labels_bundle)
    healthy = Healthy(Deployment(bundle), bundle.variant(), "onnxruntime:cpu", tmp_path)
    with pytest.raises(DoesNotApplyError, match="several labels"):
        FAULTS["relabelled evaluation"].plant(healthy)


def test_scores_are_sigmoids_in_order(labels_bundle: Path) -> None:
    with load(labels_bundle) as session:
        evaluation = session.bundle.evaluation()
        several = session.classify(evaluation.images)
        assert session.submit(evaluation.images[0]).result(10) == several[0]
    for prediction, logits in zip(several, evaluation.logits, strict=True):
        order = np.argsort(-logits, kind="stable")
        assert [score.index for score in prediction.top] == order.tolist()
        assert [score.score for score in prediction.top] == pytest.approx(sigmoid(logits)[order].tolist(), abs=1e-4)
        assert {score.index for score in prediction.above()} == set(np.flatnonzero(logits > 0).tolist())
    assert any(sum(score.score for score in prediction.top) > 1.5 for prediction in several)


def test_extreme_logits_have_scores_without_a_warning(labels_bundle: Path) -> None:
    with load(labels_bundle) as session:
        best = session.predictions(np.array([[-1e4, 1e4, -100, 0]], np.float32))[0]
    assert [(score.index, score.score) for score in best.top][:2] == [(1, 1.0), (3, 0.5)]
    assert best.top[2].score == pytest.approx(np.exp(-100), rel=1e-4)


def test_the_server_tells_sigmoids_and_raw_logits(labels_bundle: Path) -> None:
    with load(labels_bundle) as session:
        app = session.asgi_app()
        pixels = session.bundle.evaluation().images[:1]
        logits = session.run(pixels)[0]
        order = np.argsort(-logits, kind="stable")
        answer = ask(app, "POST", "/classify", png(pixels[0]), b"top=3")
        assert [each["index"] for each in answer["predictions"]] == order[:3].tolist()
        assert [each["score"] for each in answer["predictions"]] == pytest.approx(sigmoid(logits)[order[:3]].tolist())
        request = {
            "inputs": [{"name": "image", "datatype": "UINT8", "shape": [1, 10, 6, 1], "data": pixels.ravel().tolist()}],
            "outputs": [{"name": "logits", "parameters": {"classification": 2}}],
        }
        told = ask(app, "POST", "/v2/models/quarters/infer", json.dumps(request).encode())["outputs"][0]["data"]
        assert told == [f"{logits[index]}:{index}:{QUARTERS[index]}" for index in order[:2]]
        config = ask(app, "GET", "/v2/models/quarters/config")
        assert config["parameters"]["task"]["string_value"] == "multilabel"
        assert config["input"][0]["dims"] == [10, 6, 1]
        assert ask(app, "GET", "/v2/models/quarters")["inputs"][0]["shape"] == [-1, 10, 6, 1]
        app.close()


def test_predict_prints_each_labels_own_score(labels_bundle: Path, tmp_path: Path) -> None:
    picture = tmp_path / "picture.png"
    picture.write_bytes(png(np.full((10, 6, 1), 255, np.uint8)))
    done = CliRunner().invoke(commands, ["predict", str(labels_bundle), str(picture)])
    assert done.exit_code == 0, done.output
    assert done.output.count("99.8%") == 4
    picture.write_bytes(png(np.repeat([[255], [0]], 5, axis=0).repeat(6, axis=1).astype(np.uint8)[..., np.newaxis]))
    done = CliRunner().invoke(commands, ["predict", str(labels_bundle), str(picture), "--above", "0.5"])
    assert done.output == f"{picture}: top left 99.8%, top right 99.8%\n"
    picture.write_bytes(png(np.zeros((10, 6, 1), np.uint8)))
    done = CliRunner().invoke(commands, ["predict", str(labels_bundle), str(picture), "--above", "0.5"])
    assert done.output == f"{picture}: no label\n"


def test_labels_of_another_kind_are_refused(labels_bundle: Path, tmp_path: Path) -> None:
    bundle = Bundle.open(labels_bundle)
    original, evaluation = original_from_bundle(bundle), bundle.evaluation()
    origin = Origin("made up", "", "", 0, {})
    for labels, expected in (
        (evaluation.labels.argmax(axis=1), r"expected labels of multilabel as uint8 \(120, 4\), found int64 \(120,\)"),
        (evaluation.labels[:, :3], r"found uint8 \(120, 3\)"),
        (evaluation.labels * 2, "expected labels from 0 to 1, found 0 to 2"),
    ):
        with pytest.raises(ValueError, match=expected):
            write_bundle(
                original, tmp_path / "out", name="x", origin=origin, golden=evaluation.images[:2], pictures=(),
                evaluation=(evaluation.images, labels),
            )  # fmt: skip
    assert not (tmp_path / "out").exists()


def test_a_bundle_of_contradicting_labels_is_refused(
    one_label_bundle: Path, labels_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, several = Bundle.open(one_label_bundle), Bundle.open(labels_bundle)
    monkeypatch.setattr(Bundle, "read", lambda _, name: (labels_bundle / name).read_bytes())
    assert len(several.evaluation().labels) == 120
    with pytest.raises(BundleError, match="expected labels of classification as int64"):
        one.evaluation()


def test_pictures_are_shown_with_all_labels(labels_bundle: Path) -> None:
    bundle = Bundle.open(labels_bundle)
    evaluation = bundle.evaluation()
    answers = answers_of_both(bundle, evaluation, "onnxruntime:cpu", "fp32")
    wrong = ((evaluation.logits > 0) != (evaluation.labels > 0)).any(axis=1)
    assert set(answers.both_wrong()) == set(np.flatnonzero(wrong).tolist())
    assert not answers.flips.any()
    for shown in samples(range(120), answers, evaluation.images, QUARTERS):
        row, logits = evaluation.labels[shown.index], evaluation.logits[shown.index]
        assert shown.label == (", ".join(np.array(QUARTERS)[row == 1]) or "no label")
        assert shown.original.label == (", ".join(np.array(QUARTERS)[logits > 0]) or "no label")
        assert shown.port.right == (not wrong[shown.index])
    nobody = next(iter(samples([int(np.argmin(evaluation.labels.sum(axis=1)))], answers, evaluation.images, QUARTERS)))
    assert nobody.label == "no label"


def test_the_report_tells_labels_in_the_place_of_classes(labels_bundle: Path) -> None:
    bundle = Bundle.open(labels_bundle)
    html = report_html(None, bundle, check(labels_bundle), bench(labels_bundle, batches=[1], seconds=0.05))
    evaluation = bundle.evaluation()
    right = ((evaluation.logits > 0) == (evaluation.labels > 0)).all(axis=1)
    assert "Pictures that the port gets right in every label" in html
    assert f"{right.sum()} of 120" in html
    assert "mean average precision" in html
    assert "average precision</th>" in html
    assert "Confusion matrix" not in html
    assert "same decision on a label" in html
    assert html.count("true labels <b>") >= min(10, int((~right).sum())) > 5


def test_a_proof_needs_no_square_picture(one_label_bundle: Path) -> None:
    report = check(one_label_bundle)
    assert report, report.failed
    with load(one_label_bundle) as session:
        images = session.bundle.evaluation().images
        wide = Image.fromarray(images[0, :, :, 0]).resize((60, 100), Image.Resampling.NEAREST)
        assert session.classify(wide)[0].label == session.classify(images[0])[0].label
        assert sum(score.score for score in session.classify(images[0])[0].top) == pytest.approx(1)


@pytest.mark.slow
def test_a_manifest_of_several_labels_goes_all_the_way(tmp_path: Path) -> None:
    """Train, export, check, evaluate and report, from a CSV file whose pictures have from none to three labels."""
    chance = np.random.default_rng(0)
    lines = ["image,labels"]
    for index in range(240):
        there = chance.random(3) < 0.4
        pixels = chance.integers(0, 40, (32, 32, 3))
        for label, (rows, columns) in enumerate(((slice(0, 14), slice(0, 14)), (slice(18, 32), slice(0, 32)),
                                                 (slice(0, 14), slice(18, 32)))):  # fmt: skip
            pixels[rows, columns, label] += 180 * int(there[label])
        Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / f"{index:03}.png")
        lines.append(f"{index:03}.png,{'|'.join(np.array(['red', 'green', 'blue'])[there])}")
    (tmp_path / "data.csv").write_text("\n".join(lines) + "\n")
    recipe = recipe_from_table(
        {"name": "blocks", "data": {"source": str(tmp_path / "data.csv")}},
        ["train.epochs=8", "bench.seconds=0.1", "bench.batch=[1]"],
    )
    outcome = run_stages(recipe, tmp_path / "run")
    assert outcome.check, outcome.check.failed
    assert outcome.bundle.manifest.task == "multilabel"
    assert outcome.run.info.metric == "mean average precision"
    of_run, of_bundle = evaluate(outcome.run.path), evaluate(outcome.bundle.path, data=str(tmp_path / "data.csv"))
    assert of_run.mean_average_precision == pytest.approx(outcome.run.info.test_score)
    assert (of_bundle.part, of_bundle.count) == ("test", of_run.count)
    assert of_bundle.exact_match == of_run.exact_match
    assert (of_bundle.mean_average_precision or 0) > 0.9
    told = {row[0]: row[1] for row in outcome_table(outcome).rows}
    assert "mean average precision" in told
    assert "is taken for" in told["sample"]
