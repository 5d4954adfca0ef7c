"""evaluate: the numbers are scikit-learn's, labels are matched by name, and only a few pictures are held at a time."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from trueport.pipeline import evaluate as module
from trueport.pipeline.cli import app
from trueport.pipeline.evaluate import evaluate
from trueport.pipeline.evaluation import EvaluationReport, draw_confusion, evaluation_tables, judged
from trueport.runtime import Bundle
from trueport.runtime.errors import UsageError
from trueport.runtime.preprocessing import prepare
from trueport.runtime.runners import open_runner

QUARTERS = ("top left", "top right", "bottom left", "bottom right")


def picture(file: Path, bright: int, level: int = 255) -> None:
    """One quarter brighter than the others."""
    pixels = np.zeros((2, 2), np.uint8)
    pixels.flat[bright] = level
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.repeat(5, axis=0).repeat(3, axis=1)).save(file)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Ten pictures a quarter, of which one lies in the folder of another: in the order of names, not of the bundle."""
    for index, name in enumerate(QUARTERS):
        for count in range(10):
            picture(tmp_path / "data" / name / f"{count}.png", index)
    (tmp_path / "data" / "top left" / "9.png").rename(tmp_path / "data" / "bottom left" / "wrong.png")
    return tmp_path / "data"


def invoke(*arguments: object) -> tuple[int, str, str]:
    done = CliRunner().invoke(app, ["evaluate", *map(str, arguments)])
    return done.exit_code, done.stdout, done.stderr


def test_a_bundle_without_data_answers_its_own_slice(one_label_bundle: Path) -> None:
    from sklearn.metrics import precision_recall_fscore_support

    report = evaluate(one_label_bundle)
    recorded = Bundle.open(one_label_bundle).evaluation()
    answers = recorded.logits.argmax(axis=1)
    each = precision_recall_fscore_support(recorded.labels, answers)
    assert report.top1 == pytest.approx(np.mean(answers == recorded.labels))
    assert 0.6 < np.mean(answers == recorded.labels) < 1
    for name, values in zip(("precision", "recall", "f1", "support"), each, strict=True):
        assert [getattr(it, name) for it in report.classes] == pytest.approx(values.tolist())
    assert (report.count, report.part, report.subject) == (120, "evaluation slice", "fp32 on onnxruntime:cpu")
    assert report.top5 is None
    assert sum(map(sum, report.confusion)) == 120
    assert report.mean_average_precision is None


def test_several_labels_have_their_own_measures(labels_bundle: Path) -> None:
    from sklearn.metrics import average_precision_score, f1_score

    report = evaluate(labels_bundle)
    recorded = Bundle.open(labels_bundle).evaluation()
    said = recorded.logits > 0
    assert report.mean_average_precision == pytest.approx(average_precision_score(recorded.labels, recorded.logits))
    assert report.micro
    assert report.micro.f1 == pytest.approx(f1_score(recorded.labels, said, average="micro"))
    assert report.macro.f1 == pytest.approx(f1_score(recorded.labels, said, average="macro"))
    assert report.exact_match == pytest.approx(np.mean((said == recorded.labels).all(axis=1)))
    assert report.decision_accuracy == pytest.approx(np.mean(said == recorded.labels))
    assert report.top1 is None
    assert report.confusion == ()
    text = " ".join(" ".join(row) for table in evaluation_tables(report) for row in table.rows)
    assert f"mAP {report.mean_average_precision:.2%}" in text


def test_labels_are_matched_by_name(one_label_bundle: Path, folder: Path) -> None:
    """Sorted by name the folders are in another order than the bundle's labels."""
    report = evaluate(one_label_bundle, data=str(folder))
    assert [it.label for it in report.classes] == list(QUARTERS)
    assert [it.support for it in report.classes] == [9, 10, 11, 10]
    assert report.top1 == pytest.approx(39 / 40)
    assert [(it.label, it.answer, it.count, it.support) for it in report.confusions()] == [
        ("bottom left", "top left", 1, 11)
    ]
    assert (report.data, report.part) == ("data", "all")


def test_a_class_that_the_model_does_not_know_is_named(one_label_bundle: Path, folder: Path) -> None:
    (folder / "top left").rename(folder / "upper left")
    with pytest.raises(UsageError, match=r"has the classes upper left, which quarters does not know .* top left"):
        evaluate(one_label_bundle, data=str(folder))


def test_a_label_without_pictures_is_no_failure(one_label_bundle: Path, folder: Path) -> None:
    (folder / "top left").rename(folder.parent / "elsewhere")
    report = evaluate(one_label_bundle, data=str(folder))
    assert report.unseen == ("top left",)
    assert report.classes[0].recall is None
    assert report.macro.recall == pytest.approx((1 + 10 / 11 + 1) / 3)
    assert any("top left" in note for table in evaluation_tables(report) for note in table.notes)


def test_data_of_another_task_is_refused(labels_bundle: Path, folder: Path) -> None:
    with pytest.raises(UsageError, match="data has one label a picture, quarters answers with several"):
        evaluate(labels_bundle, data=str(folder))


def test_a_picture_that_can_not_be_decoded_is_left_out_and_named(one_label_bundle: Path, folder: Path) -> None:
    (folder / "top left" / "broken.png").write_bytes(b"no picture")
    code, out, err = invoke(one_label_bundle, "--data", folder, "--json", "-")
    report = msgspec.json.decode(out, type=EvaluationReport)
    assert code == 2
    assert report.count == 40
    assert len(report.unreadable) == 1
    assert "top left/broken.png" in err


def test_only_a_few_batches_are_held(one_label_bundle: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BATCH", 2)
    held, most = 0, 0

    class Counting:
        def __init__(self, runner: object) -> None:
            self.runner = runner

        def __getattr__(self, name: str) -> object:
            return getattr(self.runner, name)

        def run(self, feeds: dict[str, np.ndarray]) -> object:
            nonlocal held, most
            most = max(most, held)
            held -= len(feeds["image"])
            return self.runner.run(feeds)  # type: ignore[attr-defined]

    def counted(*arguments: object) -> object:
        nonlocal held
        held += 1
        return prepare(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "prepare", counted)
    monkeypatch.setattr(module, "open_runner", lambda *arguments: Counting(open_runner(*arguments)))
    report = evaluate(one_label_bundle, data=str(folder))
    assert report.count == 40
    assert 2 <= most <= 2 * (module.AHEAD + 1)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--part", "validation"], "give --data for its part validation"),
        (["--data", "FOLDER", "--part", "test"], "data has no part test of its own"),
        (["--variant", "fp16"], "unknown variant 'fp16'"),
        (["--confusion", "matrix.bmp"], ".png, .svg, .pdf"),
        (["--data", "nowhere/at/all"], "there is no"),
    ],
)
def test_what_can_not_be_evaluated_is_one_sentence(
    one_label_bundle: Path, folder: Path, arguments: list[str], expected: str
) -> None:
    told = [str(folder) if argument == "FOLDER" else argument for argument in arguments]
    code, out, err = invoke(one_label_bundle, *told)
    assert (code, out) == (2, "")
    assert expected in err.splitlines()[-1]


def test_what_is_neither_run_nor_bundle_is_said_so(tmp_path: Path) -> None:
    code, _, err = invoke(tmp_path)
    assert code == 2
    assert "neither a bundle nor a finished run" in err


def test_the_command_prints_and_draws(one_label_bundle: Path, tmp_path: Path) -> None:
    plot, out = tmp_path / "matrix.png", tmp_path / "report.json"
    code, text, _ = invoke(one_label_bundle, "--confusion", plot, "--json", out)
    assert code == 0
    with Image.open(plot) as image:
        assert image.format == "PNG"
    report = json.loads(out.read_bytes())
    for expected in ("top-1", "calibration error", "images/s", "Classes", "Most frequent confusions", *QUARTERS):
        assert expected in text
    assert f"{report['top1']:.2%}" in text
    assert len(report["confusion"]) == 4


def test_several_labels_have_no_confusion_matrix(labels_bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="several labels"):
        draw_confusion(evaluate(labels_bundle), tmp_path / "matrix.png")


def test_many_classes_are_cut_to_the_worst() -> None:
    labels = tuple(f"class {index}" for index in range(200))
    truth = np.arange(200).repeat(3)
    logits = np.eye(200)[truth] * 20
    logits[:3] = np.eye(200)[7] * 20  # class 0 is always taken for 7
    logits[5] = np.nan
    fields = judged(logits, truth, labels)
    assert fields["non_finite"] == 1
    assert fields["top1"] == pytest.approx(596 / 600)
    assert fields["classes"][1].recall == pytest.approx(2 / 3)  # no answer is a wrong one
    report = msgspec.convert(
        {"name": "x", "task": "classification", "subject": "s", "data": "d", "part": "all", "unreadable": (),
         "seconds": 1.0, "images_per_s": 600.0,
         "runner": {"name": "r", "provider": "p", "device": "cpu", "threads": 1, "versions": {}},
         "machine": evaluate_machine(), **msgspec.to_builtins(fields)},
        EvaluationReport,
    )  # fmt: skip
    classes = evaluation_tables(report)[1]
    assert len(classes.rows) == 30
    assert classes.rows[0][0] == "class 0"
    assert "of 200" in classes.title
    assert report.confusions(1)[0].count == 3


def evaluate_machine() -> dict[str, object]:
    from trueport.runtime.machine import describe_machine

    plain: dict[str, object] = msgspec.to_builtins(describe_machine())
    return plain


def test_a_run_is_judged_on_its_test_part(run_path: Path, bundle_path: Path) -> None:
    report = evaluate(run_path)
    run = json.loads((run_path / "run.json").read_bytes())
    assert (report.subject, report.part, report.count) == ("original", "test", run["test_count"])
    assert report.top1 == pytest.approx(run["test_score"])
    assert (report.top5 or 0) >= (report.top1 or 1)
    of_bundle = evaluate(bundle_path, data="digits")  # what it was trained on: not all of it
    assert (of_bundle.part, of_bundle.count) == ("test", report.count)
    assert of_bundle.confusion == report.confusion
    train = evaluate(bundle_path, data="digits", part="train")
    assert train.count == run["train_count"]
    with pytest.raises(UsageError, match="--runner goes with a bundle"):
        evaluate(run_path, runner="onnxruntime:cpu")
