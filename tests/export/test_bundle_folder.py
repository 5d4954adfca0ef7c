"""Where a bundle may be written: over an older one, damaged or not, and over nobody else's files."""

from __future__ import annotations

from pathlib import Path

import pytest

from trueport.export.bundle import refuse_other_content
from trueport.pipeline.export_run import export_run
from trueport.runtime.bundle import EVALUATION, GOLDEN, WEIGHTS, Bundle
from trueport.runtime.errors import UsageError
from trueport.runtime.manifest import MANIFEST

WEB_APP = '{"name": "shop", "icons": [], "files": ["index.html"]}'


def contents(folder: Path) -> dict[str, bytes]:
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def filled(folder: Path, **files: str) -> Path:
    folder.mkdir()
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)
    return folder


def test_a_web_app_is_not_replaced(tmp_path: Path, run_path: Path) -> None:
    app = filled(tmp_path / "app", manifest__json=WEB_APP, index__html="<html>")
    before = contents(app)
    with pytest.raises(UsageError, match=r"holds index\.html, which is no part of a bundle"):
        export_run(run_path, app)
    assert contents(app) == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["app"]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"manifest__json": WEB_APP}, "is not one of trueport"),
        ({"manifest__json": "[]"}, "is not one of trueport"),
        ({"manifest__json": '{"schema": 1, "files": {}}', "thesis__tex": "years of work"}, "holds thesis.tex"),
        ({"weights__safetensors": "somebody's"}, "it has no manifest.json"),
        ({"thesis__tex": "years of work"}, "holds thesis.tex"),
    ],
)
def test_other_folders_are_refused(tmp_path: Path, files: dict[str, str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        refuse_other_content(filled(tmp_path / "folder", **files))


@pytest.mark.parametrize("name", ["notes.txt", "reports", "sub/model.fp32.onnx", ".git/config"])
def test_one_foreign_file_in_a_bundle_is_named(own_bundle: Path, name: str) -> None:
    (own_bundle / name).parent.mkdir(exist_ok=True)
    (own_bundle / name).write_text("mine")
    with pytest.raises(UsageError, match=f"holds {name}, which"):
        refuse_other_content(own_bundle)


def test_a_link_is_a_foreign_file_also_where_it_leads_to_a_folder(own_bundle: Path) -> None:
    (own_bundle / "elsewhere").symlink_to(own_bundle.parent)
    with pytest.raises(UsageError, match="holds elsewhere"):
        refuse_other_content(own_bundle)


def test_a_bundle_with_reports_is_replaced_however_it_is_damaged(own_bundle: Path) -> None:
    (own_bundle / "reports").mkdir()
    (own_bundle / "reports" / "check.json").write_text("{}")
    manifest = (own_bundle / MANIFEST).read_bytes()
    for damaged in (manifest.replace(b'"golden', b'"gulden'), manifest[: len(manifest) // 2], b"\xff" + manifest, None):
        (own_bundle / MANIFEST).unlink()
        if damaged is not None:
            (own_bundle / MANIFEST).write_bytes(damaged)
        refuse_other_content(own_bundle)
    (own_bundle / MANIFEST).write_bytes(manifest)
    for name in (GOLDEN, EVALUATION, WEIGHTS):
        (own_bundle / name).unlink()
        refuse_other_content(own_bundle)


def test_export_replaces_what_a_link_leads_to(own_bundle: Path, run_path: Path) -> None:
    (own_bundle / GOLDEN).write_bytes(b"damaged")
    link = own_bundle.parent / "current"
    link.symlink_to(own_bundle.name)
    export_run(run_path, link)
    assert link.is_symlink()
    Bundle.open(own_bundle)
    assert sorted(entry.name for entry in own_bundle.parent.iterdir()) == ["current", own_bundle.name]


def test_export_into_the_folder_one_is_in_is_one_sentence(
    own_bundle: Path, run_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(own_bundle)
    with pytest.raises(UsageError, match="from inside it: change to another folder"):
        export_run(run_path, Path())
    Bundle.open(own_bundle)
