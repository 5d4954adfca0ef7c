"""The one-way flow of docs/design.md, and what a base install has to do without: imports, read and tried."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from trueport.runtime import load
from trueport.runtime.bundle import Bundle

ROOT = Path(__file__).parents[1]
FOLDERS = ("pipeline", "export", "models", "runtime")
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))

FORBIDDEN = (
    ("runtime/verdict.py", "import torch"),
    ("runtime/server/serve.py", "def late() -> None:\n    import torchvision"),
    ("runtime/runners/ort.py", "import onnx"),
    ("runtime/bundle.py", "from safetensors import numpy"),
    ("runtime/errors.py", "from trueport.models import registry"),
    ("runtime/session.py", "from ..export import graph"),
    ("runtime/machine.py", "from trueport.pipeline import console"),
    ("models/registry.py", "from trueport.runtime import errors"),
    ("models/lenet.py", "from trueport.export import graph"),
    ("models/lenet.py", "def late() -> None:\n    from trueport.pipeline import recipe"),
    ("export/golden.py", "from trueport.pipeline import recipe"),
)
"""Files, and lines that must not be in them."""
NEED_TRAIN = (
    "trueport.models",
    "trueport.pipeline.training",
    *(f"trueport.export.attribution.{name}" for name in ("cut", "float_layers", "graph_diff", "int8_stage")),
    *(f"trueport.export.attribution.{name}" for name in ("integers", "rebuild", "rounding", "tensors", "weights")),
    *(f"trueport.pipeline.{name}" for name in ("augment", "checkpoint", "feed", "plots", "report", "train")),
    *(f"trueport.pipeline.{name}" for name in ("fidelity_plots", "latency_plots", "report_ports")),
)
"""The only modules, with what is below them, that may need the train extra to be imported."""
PLUGIN = "pipeline/pytest_plugin.py"
"""What pytest alone imports, and so finds it installed."""


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the package under its import name, beside its pyproject.toml."""
    root = tmp_path_factory.mktemp("tree")
    for folder in FOLDERS:
        shutil.copytree(ROOT / folder, root / "trueport" / folder, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", root)
    return root


def run_python(code: str, *arguments: str, cwd: Path, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(path)} if path else None
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=120, check=False)


def lint(tree: Path) -> subprocess.CompletedProcess[str]:
    """Run import-linter with the contracts of the tree's pyproject.toml on the tree."""
    code = "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports(no_cache=True))"
    return run_python(code, cwd=tree, path=tree)


def module_names() -> set[str]:
    """Every module of the package, by its file."""
    files = [file.relative_to(ROOT) for folder in FOLDERS for file in (ROOT / folder).rglob("*.py")]
    return {".".join(("trueport", *file.with_suffix("").parts)).removesuffix(".__init__") for file in files}


def test_contracts_are_kept(tree: Path) -> None:
    done = lint(tree)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(("file", "line"), FORBIDDEN, ids=[f"{file}: {line}" for file, line in FORBIDDEN])
def test_contracts_break_where_an_arrow_is_turned(tree: Path, file: str, line: str) -> None:
    module = tree / "trueport" / file
    before = module.read_text(encoding="utf-8")
    module.write_text(f"{before}\n{line}\n", encoding="utf-8")
    try:
        done = lint(tree)
    finally:
        module.write_text(before, encoding="utf-8")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "BROKEN" in done.stdout
    assert ".".join(("trueport", *Path(file).with_suffix("").parts)) in done.stdout


def test_linter_sees_every_module(tree: Path) -> None:
    # A root that names the namespace alone makes an empty graph, which keeps every contract.
    roots = PROJECT["tool"]["importlinter"]["root_packages"]
    code = "import sys, grimp; print(*grimp.build_graph(*sys.argv[1:], cache_dir=None).modules)"
    done = run_python(code, *roots, cwd=tree, path=tree)
    assert set(done.stdout.split()) == module_names(), done.stderr


def source_files(*folders: str) -> Iterator[Path]:
    """Python files below folders; links are not followed."""
    for folder in folders:
        for parent, _, names in os.walk(ROOT / folder):
            yield from (Path(parent, name) for name in names if name.endswith(".py"))


def test_every_file_opens_with_what_it_is() -> None:
    silent = [
        str(file.relative_to(ROOT))
        for file in source_files(*FOLDERS, "tests")
        if not ast.get_docstring(ast.parse(text := file.read_text(encoding="utf-8"))) and text.strip()
    ]
    assert not silent
    assert len(list(source_files(*FOLDERS, "tests"))) > len(module_names())


def imported(folder: str) -> dict[str, str]:
    """Names of the top-level packages that a folder's files import, at once or late, each with one such file."""
    found: dict[str, str] = {}
    for file in source_files(folder):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                names = [node.module]
            else:
                continue
            found |= {name.partition(".")[0]: str(file.relative_to(ROOT)) for name in names}
    return found


def declared(*extras: str) -> set[str]:
    """Normalised names of the distributions that a base install with these extras (or groups) asks for."""
    tables = PROJECT["project"]["optional-dependencies"] | PROJECT["dependency-groups"]
    lines: Iterable[str] = [*PROJECT["project"]["dependencies"], *(line for extra in extras for line in tables[extra])]
    return {canonicalize_name(Requirement(line).name) for line in lines}


@pytest.mark.parametrize(
    ("folder", "extras"),
    [
        ("runtime", ("serve", "openvino")),
        ("models", ("train", "timm")),
        ("export", ("train",)),
        ("pipeline", ("serve", "train")),
        ("tests", ("serve", "train", "timm", "openvino", "dev")),
    ],
)
def test_everything_imported_is_declared(folder: str, extras: tuple[str, ...]) -> None:
    homes = metadata.packages_distributions()
    allowed = declared(*extras)
    foreign = {
        package: file
        for package, file in imported(folder).items()
        if package not in sys.stdlib_module_names | {"trueport", folder}
        and not allowed & {canonicalize_name(home) for home in homes.get(package, ())}
    }
    assert foreign == ({"pytest": PLUGIN} if folder == "pipeline" else {})
    assert imported(folder)


def train_packages() -> list[str]:
    """What is imported of the train extra's own requirements."""
    wanted = {
        canonicalize_name(Requirement(line).name) for line in PROJECT["project"]["optional-dependencies"]["train"]
    }
    homes = metadata.packages_distributions()
    return [name for name, found in homes.items() if wanted & {canonicalize_name(home) for home in found}]


# None in sys.modules makes an import fail and find_spec find nothing, just as for a package that is not installed.
WITHOUT = """
import importlib, json, sys
blocked = json.loads(sys.argv[1])
sys.modules |= dict.fromkeys(blocked)
def loaded():
    return [name for name, module in sys.modules.items() if module and name.partition('.')[0] in blocked]
"""
IMPORT_ALL = """
failed = {}
for name in json.loads(sys.argv[2]):
    try:
        importlib.import_module(name)
    except Exception as error:
        failed[name] = repr(error)
print(json.dumps([failed, loaded()]))
"""
COMMANDS = """
from trueport.pipeline.cli import main
codes = []
for arguments in json.loads(sys.argv[2]):
    sys.argv = ["trueport", *arguments]
    try:
        main()
        codes.append(0)
    except SystemExit as end:
        codes.append(end.code)
print(json.dumps([codes, loaded()]))
"""


def without_train(code: str, subject: object, cwd: Path) -> tuple[Any, subprocess.CompletedProcess[str]]:
    """What the code printed last, in a process where nothing of the train extra can be imported."""
    blocked = train_packages()
    assert {"torch", "torchvision", "onnx", "onnxscript", "safetensors", "sklearn", "jinja2"} <= set(blocked)
    done = run_python(WITHOUT + code, json.dumps(blocked), json.dumps(subject), cwd=cwd)
    assert done.returncode == 0, done.stdout + done.stderr
    result, slipped = json.loads(done.stdout.splitlines()[-1])
    assert not slipped
    return result, done


def needs_train(module: str) -> bool:
    return any(module == name or module.startswith(f"{name}.") for name in NEED_TRAIN)


def test_only_training_needs_the_train_extra_to_be_imported(tmp_path: Path) -> None:
    names = sorted(name for name in module_names() if not name.endswith(".__main__"))
    failed, _ = without_train(IMPORT_ALL, names, tmp_path)
    assert not {name: error for name, error in failed.items() if not needs_train(name)}
    assert "trueport.models.lenet" in failed, "nothing was blocked"


def test_bundle_is_used_without_the_train_extra(bundle_path: Path, tmp_path: Path) -> None:
    picture = tmp_path / "picture.png"
    picture.write_bytes(Bundle.open(bundle_path).golden().encoded[0])
    data = tmp_path / "data"
    for label in ("0", "1"):
        (data / label).mkdir(parents=True)
        (data / label / "picture.png").write_bytes(picture.read_bytes())
    bundle = str(bundle_path)
    codes, done = without_train(
        COMMANDS,
        [
            ["predict", bundle, str(picture), "--json"],
            ["check", bundle, "--json", "check.json"],
            ["bench", bundle, "--batch", "1", "--seconds", "0.1", "--json", "bench.json"],
            ["doctor", "--json", "doctor.json"],
            ["evaluate", bundle, "--json", "evaluate.json"],
            ["evaluate", bundle, "--data", str(data), "--json", "evaluate-data.json"],
        ],
        tmp_path,
    )
    assert codes == [0] * 6, done.stderr
    with load(bundle_path) as session:
        expected = session.classify(picture)[0].label
    assert json.loads(done.stdout.splitlines()[0])["top"][0]["label"] == expected

    check, bench, doctor = (
        json.loads(Path(tmp_path, f"{name}.json").read_bytes()) for name in ("check", "bench", "doctor")
    )
    assert check["reference"] == "recording"
    statuses = {verdict["gate"]: verdict["status"] for verdict in check["verdicts"]}
    assert statuses.pop("recording") == "not run"
    assert set(statuses.values()) == {"passed"}
    assert len(statuses) == 7
    judged, of_data = (
        json.loads(Path(tmp_path, f"{name}.json").read_bytes()) for name in ("evaluate", "evaluate-data")
    )
    assert judged["top1"] > 0.8
    assert (of_data["count"], of_data["part"]) == (2, "all")
    assert bench["original"] is None
    assert "pip install 'trueport[train]'" in bench["original_not_run"]
    assert bench["batches"][0]["port"]["median_ms"] > 0
    assert not [row for row in doctor["rows"] if row["group"] == "torch"]


def test_commands_that_need_the_train_extra_name_its_install(run_path: Path, tmp_path: Path) -> None:
    commands = [
        ["train", "lenet", "--data", "digits"],
        ["run", "digits"],
        ["export", str(run_path), "--out", "never.bundle"],
        ["models"],
        ["describe", "lenet"],
        ["data", "split", "digits"],
    ]
    codes, done = without_train(COMMANDS, commands, tmp_path)
    assert codes == [3] * len(commands), done.stderr
    sentences = done.stderr.splitlines()
    assert len(sentences) == len(commands), done.stderr
    for sentence in sentences:
        assert re.fullmatch(r"trueport: .+ needs .+ pip install 'trueport\[train\]'", sentence)
    assert not list(tmp_path.iterdir())
