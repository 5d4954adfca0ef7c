"""docs/ci.md and action.yml: what can be run is run, the action's scripts too, the rest is compared with the code."""

from __future__ import annotations

import hashlib
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import msgspec
import onnx
import pytest
import yaml
from onnx import numpy_helper

from trueport.pipeline.outputs import github, sarif, told
from trueport.runtime.bundle import sealed
from trueport.runtime.manifest import MANIFEST, FileEntry, Manifest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/ci.md").read_text(encoding="utf-8")
ACTION: dict[str, Any] = yaml.safe_load((ROOT / "action.yml").read_text(encoding="utf-8"))
STEPS = {step["id"]: step for step in ACTION["runs"]["steps"]}
SCRIPTS = Path(sys.executable).parent
REPORTS = {"json", "junit", "markdown", "sarif"}
BASH = shutil.which("bash")
TIMEOUT_S = 120

on_bash = pytest.mark.skipif(BASH is None, reason="bash is not installed: the action's scripts are not run")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


def run(command: list[str], folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    path = f"{SCRIPTS}{os.pathsep}{os.environ['PATH']}"
    # Where these tests themselves run on GitHub, their job must not be annotated.
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("GITHUB_", "PYTEST_"))}
    environment |= {"PATH": path, "OMP_NUM_THREADS": "1"} | variables
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
    )


@pytest.fixture(scope="module", autouse=True)
def without_torch(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Jobs without torch, as most are: the recording is the reference, and nobody waits for its import."""
    folder = tmp_path_factory.mktemp("site")
    (folder / "sitecustomize.py").write_text("import sys\nsys.modules['torch'] = None\n", encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(folder))
        yield


@pytest.fixture(scope="module")
def folder(bundle_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the page's reader has: the demo's bundle."""
    folder = tmp_path_factory.mktemp("reader")
    (folder / "runs/demo").mkdir(parents=True)
    (folder / "runs/demo/bundle").symlink_to(bundle_path)
    return folder


# The page


def test_every_console_block_and_the_test_in_it_run(folder: Path) -> None:
    (test,) = blocks("python")
    (folder / "test_model.py").write_text(test, encoding="utf-8")
    for line in "".join(blocks("console")).splitlines():
        assert line.startswith("$ ")
        done = run(shlex.split(line[2:]), folder)
        assert done.returncode == 0, done.stdout + done.stderr
    assert "2 passed" in done.stdout
    assert {file.name for file in folder.glob("trueport.*")} == {
        f"trueport.{kind}" for kind in ("json", "xml", "md", "sarif")
    }


def test_what_gitlab_and_jenkins_run_writes_what_they_read(folder: Path) -> None:
    (gitlab,) = (yaml.safe_load(text) for text in blocks("yaml") if "script:" in text)
    (job,) = gitlab.values()
    (jenkins,) = blocks("groovy")
    commands = [line for line in job["script"] if line.startswith("trueport")] + re.findall(r"sh '(.*?)'", jenkins)
    read = [[job["artifacts"]["reports"]["junit"], *job["artifacts"]["paths"]], re.findall(r"junit '(.*?)'", jenkins)]
    assert job["artifacts"]["when"] == "always"
    for command, files in zip(commands, read, strict=True):
        for file in files:
            (folder / file).unlink(missing_ok=True)
        assert run(shlex.split(command), folder).returncode == 0
        assert all((folder / file).stat().st_size for file in files)


def test_the_workflow_gives_inputs_and_takes_outputs_that_the_action_has() -> None:
    (workflow,) = (yaml.safe_load(text) for text in blocks("yaml") if "runs-on:" in text)
    (job,) = workflow["jobs"].values()
    (step,) = (step for step in job["steps"] if step.get("id") == "trueport")
    assert step["with"].keys() <= ACTION["inputs"].keys()
    assert set(re.findall(r"steps\.trueport\.outputs\.(\w+)", str(job))) <= ACTION["outputs"].keys()


def test_inputs_and_outputs_are_the_action_s() -> None:
    rows = re.findall(r"^\| `([a-z-]+)` \| (?:`(.*?)`)? *\|", PAGE, re.MULTILINE)
    assert dict(rows) == {name: str(one.get("default", "")) for name, one in ACTION["inputs"].items()}
    (outputs,) = re.findall(r"^Outputs: (.*?)\n\n", PAGE, re.MULTILINE | re.DOTALL)
    assert ACTION["outputs"].keys() <= set(re.findall("`([a-z]+)`", outputs))


def test_what_becomes_of_a_verdict_is_told_as_it_is() -> None:
    rows = {
        row[0]: row[1:]
        for row in re.findall(r"^\| ([a-z ]+) \| (\d) \| (\w+) \| (\w+) \| (\w+) \|", PAGE, re.MULTILINE)
    }
    junit = {"passed": "passes", "not run": "skipped"} | dict.fromkeys(told.DOUBTFUL, "failure")
    assert {status: row[1] for status, row in rows.items()} == junit
    assert {status: row[2] for status, row in rows.items() if row[2] != "none"} == github.COMMANDS
    assert {status: row[3] for status, row in rows.items() if row[3] != "none"} == sarif.LEVELS
    assert {status for status, row in rows.items() if row[0] == "1"} == set(told.DOUBTFUL)


# The action


def step_environment(name: str, **values: str) -> dict[str, str]:
    """What the runner would set; values by expression, inputs that are not given have their defaults."""
    given = {f"inputs.{key}": str(one.get("default", "")) for key, one in ACTION["inputs"].items()}
    given |= {key.replace("__", ".").replace("_", "-"): value for key, value in values.items()}
    found = {key: re.fullmatch(r"\$\{\{ (.*) \}\}", text) for key, text in STEPS[name]["env"].items()}
    return {key: given[match[1].replace("_", "-")] for key, match in found.items() if match}


def run_step(name: str, folder: Path, **values: str) -> tuple[subprocess.CompletedProcess[str], dict[str, str]]:
    """A step as the runner does it, and the outputs it set."""
    assert BASH
    script, output = folder.parent / f"{name}.sh", folder.parent / f"{name}.output"
    script.write_text(STEPS[name]["run"], encoding="utf-8")
    output.touch()
    runner = {"RUNNER_TEMP": str(folder.parent), "GITHUB_OUTPUT": str(output), "GITHUB_ACTIONS": "true"}
    runner["GITHUB_STEP_SUMMARY"] = str(folder.parent / "summary.md")
    command = [BASH, "--noprofile", "--norc", "-eo", "pipefail", str(script)]
    done = run(command, folder, **runner, **step_environment(name, **values))
    lines = output.read_text(encoding="utf-8").splitlines()
    return done, dict(line.split("=", 1) for line in lines)


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    """An empty folder to run in; the runner's own files lie beside it."""
    workspace = tmp_path / "workspace"
    workspace.mkdir()
    return workspace


def check_step(workspace: Path, bundle: str, **values: str) -> tuple[subprocess.CompletedProcess[str], dict[str, str]]:
    return run_step("check", workspace, steps__install__outputs__scripts=str(SCRIPTS), inputs__bundle=bundle, **values)


def test_no_script_holds_an_expression() -> None:
    scripts = [step["run"] for step in STEPS.values() if "run" in step]
    assert len(scripts) == 2
    assert not any("${{" in script for script in scripts)
    assert all(step["shell"] == "bash" for step in STEPS.values() if "run" in step)
    used = set(re.findall(r"inputs\.([a-z-]+)", str(ACTION["runs"])))
    assert used == ACTION["inputs"].keys(), "each input reaches something"
    assert {name: one["value"] for name, one in ACTION["outputs"].items()} == {
        name: f"${{{{ steps.check.outputs.{name} }}}}" for name in (*REPORTS, "faithful")
    }


@on_bash
def test_the_action_proves_a_bundle_whatever_it_is_called(bundle_path: Path, workspace: Path) -> None:
    name = 'a bundle"; $(touch pwned) `touch pwned` *'
    (workspace / name).symlink_to(bundle_path)
    done, outputs = check_step(workspace, name, inputs__variant="fp32\n", inputs__bounds="fp32.max_abs=0.01 fp32.rms=1")
    assert done.returncode == 0, done.stdout + done.stderr
    assert [file.name for file in workspace.iterdir()] == [name]
    assert outputs.pop("faithful") == "true"
    assert outputs.keys() == REPORTS
    assert ET.parse(outputs["junit"]).getroot().get("failures") == "0"
    assert "fp32.rms" in Path(outputs["json"]).read_text(encoding="utf-8")
    summary = (workspace.parent / "summary.md").read_text(encoding="utf-8")
    assert summary.startswith("## ✅ digits")
    assert "::error" not in done.stdout


@on_bash
def test_the_action_fails_for_a_broken_bundle_and_says_why(own_bundle: Path, workspace: Path) -> None:
    shift_a_bias(own_bundle)
    done, outputs = check_step(workspace, str(own_bundle))
    assert done.returncode == 1, done.stdout + done.stderr
    assert outputs.pop("faithful") == "false"
    assert outputs.keys() == REPORTS
    failures = ET.parse(outputs["junit"]).findall("testsuite/testcase/failure/..")
    assert "parity" in {case.get("name") for case in failures}
    (first, second) = [line for line in done.stdout.splitlines() if line.startswith("::error")][:2]
    assert "NOT PROVEN FAITHFUL" in first
    assert "would have passed with" in second
    assert (workspace.parent / "summary.md").read_text(encoding="utf-8").startswith("## ❌ digits")


@on_bash
@pytest.mark.parametrize(
    ("values", "code", "told"),
    [
        ({"bundle": "--help"}, 2, "--help is not a bundle"),
        ({"inputs__runner": "$(touch pwned)"}, 2, "unknown runner"),
        ({"inputs__runner": "--json=pwned onnxruntime:cpu"}, 2, "unknown runner '--json=pwned'"),
        ({"inputs__bounds": "fp32.max_abs"}, 2, "fp32.max_abs"),
        ({"inputs__explain": "true; touch pwned"}, 2, "expected true or false"),
    ],
)
def test_the_action_obeys_no_input(
    bundle_path: Path, workspace: Path, values: dict[str, str], code: int, told: str
) -> None:
    done, outputs = check_step(workspace, **({"bundle": str(bundle_path)} | values))
    assert done.returncode == code, done.stdout + done.stderr
    assert told in done.stdout + done.stderr
    assert outputs in ({}, {"faithful": "false"})
    assert not list(workspace.iterdir())


@on_bash
def test_the_action_installs_its_own_checkout(workspace: Path) -> None:
    python = workspace.parent / "python"
    log = workspace.parent / "log"
    python.write_text(
        f'#!{BASH}\nprintf "%s\\n" "$*" >> {log}\n'
        'if [[ $2 == venv ]]; then mkdir -p "$3/bin"; cp "$0" "$3/bin/python"; fi\n',
        encoding="utf-8",
    )
    python.chmod(0o755)
    known = {"github__action_path": "/a checkout", "steps__python__outputs__python_path": str(python)}
    for extras, asked in (("", "/a checkout"), ("train,openvino", "/a checkout[train,openvino]")):
        done, outputs = run_step("install", workspace, inputs__extras=extras, **known)
        assert done.returncode == 0, done.stdout + done.stderr
        assert (
            log.read_text(encoding="utf-8")
            .splitlines()[-1]
            .endswith(f"-m pip install --quiet --disable-pip-version-check {asked}")
        )
        assert outputs["scripts"].startswith(str(workspace.parent / "trueport."))
    before = log.read_text(encoding="utf-8")
    done, _ = run_step("install", workspace, inputs__extras="train] --index-url http://x [", **known)
    assert done.returncode == 2
    assert log.read_text(encoding="utf-8") == before, "nothing was installed"


def shift_a_bias(bundle: Path) -> None:
    """Another graph, sealed as if it had been exported so."""
    name = "model.fp32.onnx"
    model = onnx.load(bundle / name)
    bias = next(one for one in model.graph.initializer if len(one.dims) == 1 and one.dims[0] > 3)
    bias.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(bias) + 0.5, bias.name))
    data = model.SerializeToString()
    (bundle / name).write_bytes(data)
    manifest = msgspec.json.decode((bundle / MANIFEST).read_bytes(), type=Manifest)
    entry = FileEntry(hashlib.sha256(data).hexdigest(), len(data))
    changed = msgspec.structs.replace(manifest, files=manifest.files | {name: entry})
    (bundle / MANIFEST).write_bytes(sealed(changed))
