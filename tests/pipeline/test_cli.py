"""The command line: one clear sentence and the right exit code for whatever a user does."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from trueport.pipeline import cli
from trueport.pipeline.run_folder import Run
from trueport.runtime.bundle import Bundle
from trueport.runtime.manifest import MANIFEST

TRUEPORT = [sys.executable, "-c", "from trueport.pipeline.cli import main; main()"]


def digit(path: Path, bundle: Path, index: int = 0) -> Path:
    """A real picture of the evaluation slice as a file."""
    Image.fromarray(Bundle.open(bundle).evaluation().images[index, :, :, 0]).save(path)
    return path


def test_help_lists_every_command(trueport: Any) -> None:
    code, out, _ = trueport("--help")
    assert code == 0
    for name in cli.COMMANDS:
        assert f"  {name}" in out


@pytest.mark.parametrize("command", list(cli.COMMANDS))
def test_every_command_has_help(trueport: Any, command: str) -> None:
    code, out, _ = trueport(command, "--help")
    assert code == 0
    assert out.startswith(f"Usage: trueport {command}")


def test_version_is_the_installed_one(trueport: Any) -> None:
    from importlib.metadata import version

    assert trueport("--version") == (0, f"trueport {version('trueport')}\n", "")


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (["frobnicate"], 2, "No such command"),
        (["train", "lenett", "--data", "digits"], 2, "unknown architecture 'lenett': did you mean lenet"),
        (["train", "lenet", "--data", "digit"], 2, "unknown data set or folder 'digit': did you mean digits?"),
        (["train", "lenet", "--data", "digits", "--set", "train.epoch=1"], 2, "did you mean epochs"),
        (
            ["train", "lenet", "--data", "digits", "--set", "train.epochs=none"],
            2,
            "train.epochs: expected a whole number",
        ),
        (["train", "--recipe", "digits", "--set", "train.optimizer=adm"], 2, "did you mean adam or adamw?"),
        (
            ["train", "--recipe", "digits", "--set", "export.precision=['fp23']"],
            2,
            "export.precision[0] 'fp23': did you",
        ),
        (["train", "--recipe", "digits", "--set", "name=a/b"], 2, "name: expected letters, digits, dots"),
        (["train", "lenet", "--data", "./absent"], 2, "there is no folder absent"),
        (["train"], 2, "expected an architecture and --data, such as `lenet --data digits`, or --recipe"),
        (["train", "alexnet", "--recipe", "digits"], 2, "the recipe digits is for lenet, found alexnet"),
        (["train", "--recipe", "digits", "--set", "train.epochs=0"], 2, "set model.init to a file or imagenet"),
        (["describe", "lenet", "--diagram", "x.jpg"], 2, "expected --diagram FILE.svg, found x.jpg"),
        (["run", "digit"], 2, "unknown recipe 'digit': did you mean digits?"),
        (["run", "absent.toml"], 2, "there is no recipe absent.toml"),
        (["export", "absent"], 2, "absent"),
        (["export", "absent", "--precision", "fp17"], 2, "unknown precision 'fp17'"),
        (["check", "absent"], 2, "absent is not a bundle"),
        (["bench", "absent"], 2, "absent is not a bundle"),
        (["predict", "absent", "x.png"], 2, "absent is not a bundle"),
        (["serve", "absent"], 2, "absent is not a bundle"),
        (["data", "split", "absent-folder"], 2, "unknown data set or folder"),
    ],
)
def test_bad_input_is_one_sentence(
    trueport: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], code: int, sentence: str
) -> None:
    monkeypatch.chdir(tmp_path)
    found, out, err = trueport(*arguments)
    assert found == code
    assert sentence in err
    assert out == ""
    assert "Traceback" not in err
    assert err.count("\n") == 1 or err.startswith("Usage:")
    assert list(tmp_path.iterdir()) == []


def test_bad_options_of_a_bundle_s_commands(trueport: Any, bundle_path: Path) -> None:
    for arguments, sentence in (
        (["check", bundle_path, "--runner", "onnxruntim:cpu"], "did you mean onnxruntime:cpu"),
        (["check", bundle_path, "--variant", "fp61"], "unknown variant 'fp61'"),
        (["check", bundle_path, "--data", "digits", "--explain"], "the bundle's own pictures: leave it or --data out"),
        (["check", bundle_path, "--self-test", "--junit", "x.xml", "--data", "digits"], "leave out --data, --junit"),
        (["bench", bundle_path, "--batch", "1,x"], "expected numbers such as 1,8,32"),
        (["bench", bundle_path, "--batch", "0"], "batch sizes must be at least 1"),
        (["bench", bundle_path, "--seconds", "0"], "above 0 seconds"),
        (["predict", bundle_path, "absent.png"], "absent.png does not exist"),
    ):
        code, out, err = trueport(*arguments)
        assert (code, out) == (2, "")
        assert sentence in err


def test_a_damaged_bundle_ends_with_4(trueport: Any, own_bundle: Path) -> None:
    (own_bundle / MANIFEST).write_bytes((own_bundle / MANIFEST).read_bytes().replace(b'"digits"', b'"fidget"', 1))
    for arguments in (["check", own_bundle], ["predict", own_bundle, "x.png"], ["bench", own_bundle]):
        code, _, err = trueport(*arguments)
        assert code == 4
        assert "changed since export" in err


def test_a_missing_gpu_ends_with_3_or_is_used(trueport: Any, bundle_path: Path) -> None:
    code, out, err = trueport("check", bundle_path, "--runner", "onnxruntime:cuda")
    assert (code == 3 and "trueport[cuda]" in err) or (code == 0 and "onnxruntime:cuda" in out)


def test_check_tells_people_and_machines(trueport: Any, bundle_path: Path, tmp_path: Path) -> None:
    code, out, _ = trueport("check", bundle_path, "--json", tmp_path / "check.json")
    assert code == 0
    assert "faithful: 8 passed" in out
    written = json.loads((tmp_path / "check.json").read_text())
    code, out, _ = trueport("check", bundle_path, "--json", "-")
    printed = json.loads(out)
    assert code == 0
    assert [verdict["status"] for verdict in printed["verdicts"]] == ["passed"] * 8
    assert printed["verdicts"] == written["verdicts"]


def test_bench_tells_people_and_machines(trueport: Any, bundle_path: Path) -> None:
    code, out, _ = trueport("bench", bundle_path, "--batch", "2", "--seconds", "0.1", "--json", "-")
    assert code == 0
    (result,) = json.loads(out)["batches"]
    assert result["batch"] == 2
    assert result["paired"]["ratio_low"] <= result["paired"]["ratio"] <= result["paired"]["ratio_high"]
    code, out, _ = trueport("bench", bundle_path, "--batch", "2", "--seconds", "0.1")
    assert code == 0
    assert "times faster" in out


def test_export_takes_a_run_and_says_what_it_made(trueport: Any, run_path: Path, tmp_path: Path) -> None:
    code, out, _ = trueport("export", run_path, "--out", tmp_path / "new.bundle")
    assert code == 0
    assert out.startswith(f"{tmp_path / 'new.bundle'}: digits 1, fp32, 10 classes")
    code, _, err = trueport("export", run_path, "--out", tmp_path / "new.bundle", "--precision", "fp17")
    assert code == 2
    assert "fp17" in err
    assert Bundle.open(tmp_path / "new.bundle").manifest.name == "digits"
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis").write_text("x")
    code, _, err = trueport("export", run_path, "--out", tmp_path / "home")
    assert code == 2
    assert "refusing to replace" in err


def test_predict_answers_files_folders_and_standard_input(
    trueport: Any, bundle_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = str(Bundle.open(bundle_path).evaluation().logits[0].argmax())
    file = digit(tmp_path / "a.png", bundle_path)
    (tmp_path / "deep").mkdir()
    digit(tmp_path / "deep" / "b.png", bundle_path, 1)
    code, out, _ = trueport("predict", bundle_path, file, "--top", "2")
    assert code == 0
    assert out.startswith(f"{file}: {expected} ")
    assert out.count("%") == 2
    code, out, _ = trueport("predict", bundle_path, tmp_path, "--json")
    answers = [json.loads(line) for line in out.splitlines()]
    assert [Path(answer["picture"]).name for answer in answers] == ["a.png", "b.png"]
    assert answers[0]["top"][0]["label"] == expected
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(file.read_bytes())))
    code, out, _ = trueport("predict", bundle_path, "-")
    assert code == 0
    assert out.startswith(f"-: {expected} ")


def test_one_bad_picture_fails_alone(trueport: Any, bundle_path: Path, tmp_path: Path) -> None:
    for index, name in enumerate(["a.png", "c.png"]):
        digit(tmp_path / name, bundle_path, index)
    (tmp_path / "b.png").write_bytes((tmp_path / "a.png").read_bytes()[:60])
    code, out, err = trueport("predict", bundle_path, tmp_path)
    assert code == 2
    assert [line.split(":")[0].rpartition("/")[2] for line in out.splitlines()] == ["a.png", "c.png"]
    assert "b.png" in err
    assert err.count("\n") == 1


def test_an_empty_folder_is_said_so(trueport: Any, bundle_path: Path, tmp_path: Path) -> None:
    code, _, err = trueport("predict", bundle_path, tmp_path)
    assert code == 2
    assert "has no pictures" in err


def test_a_port_in_use_is_one_sentence(trueport: Any, bundle_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        code, _, err = trueport("serve", bundle_path, "--http", port)
    assert code == 2
    assert str(port) in err
    assert "Traceback" not in err


def test_a_full_disk_is_one_sentence_and_the_old_bundle_stays(
    trueport: Any, run_path: Path, own_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = (own_bundle / MANIFEST).read_bytes()

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    code, _, err = trueport("export", run_path, "--out", own_bundle)
    monkeypatch.undo()
    assert code == 3
    *progress, said = err.splitlines()
    assert "No space left on device" in said
    assert progress == ["exporting fp32"]
    assert (own_bundle / MANIFEST).read_bytes() == before
    assert Bundle.open(own_bundle)
    assert [entry.name for entry in own_bundle.parent.iterdir()] == [own_bundle.name]


@pytest.mark.slow
def test_ctrl_c_in_training_keeps_the_checkpoint_and_ends_with_130(tmp_path: Path) -> None:
    run = tmp_path / "run"
    command = [*TRUEPORT, "train", "lenet", "--data", "digits", "--out", str(run), "--set", "train.epochs=200"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=os.environ | {"COLUMNS": "80"})
    try:
        deadline = time.monotonic() + 120
        while not (run / "last.safetensors").exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130, err
    assert "kept" in err
    assert "Traceback" not in err
    kept = len((run / "metrics.jsonl").read_text().splitlines())
    assert kept >= 1
    assert not (run / "run.json").exists()


def test_json_goes_into_devices_and_through_links(trueport: Any, bundle_path: Path, tmp_path: Path) -> None:
    (tmp_path / "link.json").symlink_to(tmp_path / "real.json")
    assert trueport("check", bundle_path, "--json", tmp_path / "link.json")[0] == 0
    assert (tmp_path / "link.json").is_symlink()
    assert json.loads((tmp_path / "real.json").read_text())["faithful"] is True
    os.mkfifo(tmp_path / "pipe")
    reader = subprocess.Popen(["cat", tmp_path / "pipe"], stdout=subprocess.PIPE)
    assert trueport("check", bundle_path, "--json", tmp_path / "pipe")[0] == 0
    assert json.loads(reader.communicate(timeout=10)[0])["faithful"] is True
    assert (tmp_path / "pipe").is_fifo()
    ours, theirs = os.pipe()  # as a shell's >(…) hands it over
    with os.fdopen(ours) as reading:
        assert trueport("check", bundle_path, "--json", f"/dev/fd/{theirs}")[0] == 0
        os.close(theirs)
        assert json.load(reading)["faithful"] is True


@pytest.mark.parametrize("command", ["check", "bench", "evaluate", "tune", "build"])
def test_an_output_that_can_t_be_written_is_refused_before_the_work(
    trueport: Any, bundle_path: Path, tmp_path: Path, command: str
) -> None:
    code, out, err = trueport(command, bundle_path, "--json", tmp_path)
    assert (code, out) == (2, "")
    assert err == f"trueport: {tmp_path} is a folder, expected a file to write\n"
    (tmp_path / "file").write_text("")
    code, out, err = trueport(command, bundle_path, "--json", tmp_path / "file" / "out.json")
    assert (code, out) == (2, "")
    assert "is no folder that may be written to" in err


def test_the_folder_of_a_run_is_told_from_its_bundle(trueport: Any, bundle_path: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "bundle").symlink_to(bundle_path)
    code, _, err = trueport("check", tmp_path / "run")
    assert code == 2
    assert err.endswith(f"it has no manifest.json; did you mean {tmp_path / 'run' / 'bundle'}?\n")


def test_weights_that_are_there_are_exported_as_they_are(
    trueport: Any, run_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    weights = run_path / "weights.safetensors"
    given = ["lenet", "--data", "digits", "--init", weights]
    code, out, err = trueport("export", *given, "--set", "export.golden=5", "--set", "preprocessing.size=32")
    assert code == 0, err
    bundle = Path("runs/lenet-digits-given/bundle")
    assert out.startswith(f"{bundle}: lenet-digits 1, fp32, 10 classes, ")
    assert len(Bundle.open(bundle).golden().images) == 5 + 3
    origin = Bundle.open(bundle).manifest.provenance
    assert origin.weights_sha256 == Run.open(run_path).info.weights_sha256
    assert origin.recipe["train"]["epochs"] == 0  # type: ignore[index]
    score = Run.open("runs/lenet-digits-given").info.test_score
    assert f"runs/lenet-digits-given: top-1 accuracy {score:.2%} on 359 held-out test pictures (as it was given" in err
    code, _, err = trueport("export", *given, "--set", "preprocessing.size=32", "--precision", "fp17")
    assert (code, "fp17" in err, "holds these" in err) == (2, True, False), "refused before the weights are measured"
    code, _, err = trueport("export", *given, "--set", "preprocessing.size=32", "--precision", ",")
    assert (code, "comma-separated, found ','" in err) == (2, True)
    code, _, err = trueport("export", *given, "--set", "preprocessing.size=32", "--out", bundle / "manifest.json" / "x")
    assert (code, "is no folder that may be written to" in err) == (2, True)
    code, _, err = trueport("export", *given, "--set", "preprocessing.size=32")
    assert (code, "holds these weights already" in err, "--afresh" in err) == (0, True, False)
    shutil.rmtree("runs/lenet-digits-given")
    shutil.copytree(run_path, "runs/lenet-digits-given")
    code, _, err = trueport("export", *given)
    assert (code, "lenet-digits-given holds a training" in err) == (2, True)
    code, _, err = trueport("export", "lenet", "--data", "digits")
    assert (code, "whose weights? Give --init a file or imagenet" in err) == (2, True)
    code, _, err = trueport("export", run_path, "--init", weights)
    assert (code, "is a folder: a run has its own data and weights" in err) == (2, True)
    code, _, err = trueport("export", run_path, "--set", "train.epochs=3")
    assert (code, "--set changes export.… and name alone now, found train.epochs=3" in err) == (2, True)


def test_scenarios_take_no_batches(trueport: Any, bundle_path: Path) -> None:
    code, _, err = trueport("bench", bundle_path, "--scenario", "single", "--batch", "8")
    assert code == 2
    assert "leave out one of both" in err


def test_a_reader_that_has_enough_is_no_error(bundle_path: Path, tmp_path: Path) -> None:
    file = digit(tmp_path / "a.png", bundle_path)
    for index in range(2000):  # more than a pipe holds; not as arguments, onnxruntime 1.30 can't load under so many
        (tmp_path / f"{index}.png").hardlink_to(file)
    command = [*TRUEPORT, "predict", str(bundle_path), str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout
        assert process.stderr
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 0


def test_a_defect_of_ours_is_told_from_a_failed_gate(trueport: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise RuntimeError("a defect")

    monkeypatch.setattr("trueport.pipeline.catalogue.data_table", broken)
    code, _, err = trueport("data", "list")
    assert code == 70
    assert "RuntimeError: a defect" in err
    assert err.rstrip().endswith("please report it")


def test_a_data_folder_may_have_any_name(trueport: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("\N{GRINNING FACE} [old]", "123", "a=b"):
        for label in "ab":
            (tmp_path / name / label).mkdir(parents=True)
            for index in range(5):
                Image.new("L", (8, 8), 20 * index).save(tmp_path / name / label / f"{index}.png")
        code, out, err = trueport("data", "split", f"./{name}")
        assert code == 0, err
        assert name in out
        code, out, err = trueport(
            "train", "lenet", "--data", f"./{name}", "--out", f"run-{name}", "--set", "train.epochs=1"
        )
        assert code == 0, err
        assert out.startswith(f"run-{name}: ")


def test_a_queue_smaller_than_a_batch_is_refused(trueport: Any, bundle_path: Path) -> None:
    code, _, err = trueport("serve", bundle_path, "--max-batch", "8", "--max-queue", "4")
    assert code == 2
    assert "max_queue_rows is 4" in err
