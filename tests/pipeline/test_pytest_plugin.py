"""The pytest plugin in fresh processes, and assert_faithful on a healthy bundle and on applications that are not."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from trueport.export.original import original_from_bundle
from trueport.pipeline import check as check_module
from trueport.pipeline.testing import assert_faithful
from trueport.runtime.bundle import Bundle
from trueport.runtime.errors import UsageError
from trueport.runtime.preprocessing import prepare as prepared
from trueport.runtime.runner import Runner
from trueport.runtime.runners import open_runner

HEAVY = {"msgspec", "numpy", "onnxruntime", "PIL", "rich", "torch", "typer"}
WANTS = "def test_it(trueport_bundle): assert trueport_bundle.manifest.labels\n"


def run_pytest(folder: Path, test: str, *options: str, alone: bool = True) -> subprocess.CompletedProcess[str]:
    """alone: without the plugins of others, which take seconds to be imported; else as entry points bring them."""
    (folder / "test_own.py").write_text(test, encoding="utf-8")
    command = [sys.executable, "-W", "error", "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    if alone:
        command += ["-p", "trueport.pipeline.pytest_plugin"]
        environment["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    return subprocess.run(
        [*command, *options], cwd=folder, env=environment, capture_output=True, text=True, timeout=120, check=False
    )


# The fixture


def test_the_plugin_is_an_entry_point() -> None:
    (found,) = (point for point in metadata.entry_points(group="pytest11") if point.name == "trueport")
    assert found.value == "trueport.pipeline.pytest_plugin"


def test_the_plugin_costs_nothing_where_it_is_not_used(tmp_path: Path) -> None:
    test = "import sys\ndef test_it(pytestconfig):\n    assert pytestconfig.pluginmanager.has_plugin('trueport')\n"
    test += f"    assert not {HEAVY!r} & set(sys.modules)\n"
    done = run_pytest(tmp_path, test, alone=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "warning" not in done.stdout


def test_the_bundle_of_the_command_line_and_of_the_configuration(bundle_path: Path, tmp_path: Path) -> None:
    (tmp_path / "here").symlink_to(bundle_path)
    named = run_pytest(tmp_path, WANTS, "--trueport-bundle", "here")
    assert named.returncode == 0, named.stdout + named.stderr
    below = tmp_path / "below"
    below.mkdir()
    (tmp_path / "pytest.ini").write_text("[pytest]\ntrueport_bundle = here\n", encoding="utf-8")
    written = run_pytest(below, WANTS)
    assert written.returncode == 0, written.stdout + written.stderr


def test_a_bundle_that_nobody_named_is_a_usage_error_only_where_it_is_needed(tmp_path: Path) -> None:
    others = f"{WANTS}def test_other(): pass\n"
    done = run_pytest(tmp_path, others)
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert "give --trueport-bundle PATH" in done.stderr
    assert "passed" not in done.stdout
    for options in (("-k", "other"), ("--collect-only",)):
        done = run_pytest(tmp_path, others, *options)
        assert done.returncode == 0, done.stdout + done.stderr


def test_what_is_no_bundle_is_told_in_a_sentence(tmp_path: Path) -> None:
    done = run_pytest(tmp_path, WANTS, "--trueport-bundle", "nowhere")
    assert done.returncode == pytest.ExitCode.TESTS_FAILED
    assert "nowhere is not a bundle: it has no manifest.json" in done.stdout
    assert "Traceback" not in done.stdout
    assert "bundle.py" not in done.stdout


def test_the_base_install_is_enough(bundle_path: Path, tmp_path: Path) -> None:
    test = """
import sys
sys.modules |= dict.fromkeys(("torch", "onnx", "safetensors", "sklearn"))
import pytest
from trueport.pipeline.testing import assert_faithful

def test_it(trueport_bundle):
    assert assert_faithful(trueport_bundle).reference == "recording"

def test_wrong(trueport_bundle):
    with pytest.raises(AssertionError, match="first departs at the stage "):
        assert_faithful(trueport_bundle, bounds={"fp32.max_abs": 0}, explain=True)
"""
    done = run_pytest(tmp_path, test, "--trueport-bundle", str(bundle_path))
    assert done.returncode == 0, done.stdout + done.stderr


# assert_faithful


@pytest.fixture(scope="module")
def bundle(bundle_path: Path) -> Bundle:
    return Bundle.open(bundle_path)


@pytest.fixture(scope="module")
def runner(bundle: Bundle) -> Iterator[Runner]:
    opened = open_runner(bundle)
    yield opened
    opened.close()


def test_a_healthy_bundle_is_faithful(bundle_path: Path) -> None:
    report = assert_faithful(str(bundle_path), runners=["onnxruntime:cpu"], variants=["fp32"])
    assert report
    assert {verdict.runner for verdict in report.verdicts if verdict.gate == "parity"} == {"onnxruntime:cpu"}


def test_an_application_that_does_it_right_is_faithful(bundle: Bundle, runner: Runner) -> None:
    report = assert_faithful(
        bundle,
        prepare=lambda encoded: prepared(encoded, bundle.manifest.preprocessing),
        infer=lambda images: runner.run({"image": images})["logits"].tolist(),
        labels=list(bundle.manifest.labels),
    )
    assert report
    (parity,) = (verdict for verdict in report.verdicts if verdict.gate == "parity")
    assert (parity.variant, parity.runner) == ("fp32", "application")
    (contract,) = (verdict for verdict in report.verdicts if verdict.gate == "contract")
    assert contract.detail == "the application's own function", "what it runs on is not made up"


def test_the_trained_module_itself_may_be_the_original(bundle: Bundle) -> None:
    module = original_from_bundle(bundle).module
    assert assert_faithful(bundle, original=module.train()).reference == "original"
    assert not module.training
    with torch.no_grad():
        next(module.parameters()).mul_(1.1)
    with pytest.raises(AssertionError) as caught:
        assert_faithful(bundle, original=module, explain=True)
    told = " ".join(str(caught.value).split())
    assert "failed: recording of original" in told
    assert "first departs at the stage original: " in told
    assert "causes this: the original that the application brought does not answer what was recorded" in told


def swapped(encoded: bytes, bundle: Bundle) -> NDArray[np.uint8]:
    return prepared(encoded, bundle.manifest.preprocessing)[:, ::-1]


def test_an_application_that_does_it_wrong_is_told_what_is_wrong(bundle: Bundle, runner: Runner) -> None:
    with pytest.raises(AssertionError) as caught:
        assert_faithful(
            bundle,
            prepare=lambda encoded: swapped(encoded, bundle),
            infer=lambda images: 1.01 * runner.run({"image": images})["logits"],
            labels=bundle.manifest.labels[::-1],
            explain=True,
        )
    told = str(caught.value)
    assert told.startswith(f"{bundle.manifest.name} {bundle.manifest.version}: NOT PROVEN FAITHFUL: ")
    for gate in ("preprocessing of the bundle", "labels of the bundle", "parity of fp32 on application"):
        assert f"failed: {gate}" in told
    assert "max levels would have passed with " in told
    assert "max abs would have passed with " in told
    assert "passed: " not in told
    assert "first departs at the stage preprocessing: " in told
    assert "first departs at the stage runner: " in told
    assert "not explained" not in told


def test_what_an_application_raises_is_a_verdict(bundle: Bundle) -> None:
    def broken(images: NDArray[np.uint8]) -> NDArray[np.float32]:
        raise RuntimeError("out of memory")

    with pytest.raises(AssertionError, match=r"failed: parity of fp32 on application.*\n.*out of memory"):
        assert_faithful(bundle, infer=broken)


def test_infer_takes_the_place_of_one_variant_and_its_runner(bundle: Bundle) -> None:
    for wrong in ({"runners": ["onnxruntime:cpu"]}, {"variants": ["fp32", "int8"]}):
        with pytest.raises(UsageError, match="expected no runners and at most one variant"):
            assert_faithful(bundle, infer=lambda images: images, **wrong)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="unknown variant 'int8'"):
        assert_faithful(bundle, infer=lambda images: images, variants=["int8"])


def test_other_pictures_are_not_explained(bundle: Bundle) -> None:
    with pytest.raises(UsageError, match="by the bundle's own pictures: expected no data beside it"):
        assert_faithful(bundle, data="digits", explain=True)


def test_the_command_line_knows_no_application(bundle_path: Path) -> None:
    with pytest.raises(UsageError, match="unknown runner 'application'"):
        check_module.check(bundle_path, runners=["application"])
