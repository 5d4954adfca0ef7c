"""A bundle is believed only when every byte of it is what was exported."""

from __future__ import annotations

import random
from pathlib import Path

import msgspec
import numpy as np
import pytest

from trueport.runtime.bundle import EVALUATION, GOLDEN, WEIGHTS, Bundle, sealed
from trueport.runtime.errors import BundleError, UsageError
from trueport.runtime.manifest import MANIFEST, SCHEMA, FileEntry, Manifest


def test_holds_what_was_exported(bundle_path: Path) -> None:
    bundle = Bundle.open(bundle_path)
    golden, evaluation = bundle.golden(), bundle.evaluation()
    assert bundle.manifest.labels == tuple("0123456789")
    assert golden.images.shape == (16 + 3, 32, 32, 1)
    assert golden.logits.shape == (19, 10)
    assert len(golden.encoded) == len(golden.prepared) == 4
    assert golden.encoded[-1].startswith(b"\xff\xd8")
    assert evaluation.images.dtype == np.uint8
    assert len(evaluation.images) == len(evaluation.labels) == len(evaluation.logits) == 359
    assert set(bundle.manifest.files) == {WEIGHTS, GOLDEN, EVALUATION, "model.fp32.onnx"}


@pytest.mark.parametrize("name", [MANIFEST, WEIGHTS, GOLDEN, EVALUATION, "model.fp32.onnx"])
def test_any_changed_byte_is_noticed(own_bundle: Path, name: str) -> None:
    file = own_bundle / name
    data = file.read_bytes()
    random_ = random.Random(name)
    for position in [0, len(data) - 1, *random_.sample(range(len(data)), 40)]:
        changed = bytearray(data)
        changed[position] ^= 1 << random_.randrange(8)
        file.write_bytes(changed)
        with pytest.raises(BundleError):
            Bundle.open(own_bundle)
    file.write_bytes(data)
    Bundle.open(own_bundle)


@pytest.mark.parametrize("name", [WEIGHTS, GOLDEN, "model.fp32.onnx"])
def test_truncated_lengthened_and_missing_files_are_named(own_bundle: Path, name: str) -> None:
    file = own_bundle / name
    data = file.read_bytes()
    for content in (data[:-1], data + b"x", b""):
        file.write_bytes(content)
        with pytest.raises(BundleError, match=name):
            Bundle.open(own_bundle)
    file.unlink()
    with pytest.raises(BundleError, match=name):
        Bundle.open(own_bundle)


def resealed(bundle: Path, **changes: object) -> None:
    """Change the manifest and seal it anew, as somebody who means harm would."""
    manifest = msgspec.json.decode((bundle / MANIFEST).read_bytes(), type=Manifest)
    (bundle / MANIFEST).write_bytes(sealed(msgspec.structs.replace(manifest, **changes)))


@pytest.mark.parametrize("name", ["../secret", "/etc/hostname", "a/../../secret", "C:\\secret", "..", ""])
def test_a_manifest_can_not_point_outside(own_bundle: Path, name: str) -> None:
    (own_bundle.parent / "secret").write_bytes(b"secret")
    files = Bundle.open(own_bundle).manifest.files
    resealed(own_bundle, files=files | {name: FileEntry("0" * 64, 6)})
    with pytest.raises(BundleError, match="outside the bundle"):
        Bundle.open(own_bundle)


def test_a_link_out_of_the_bundle_is_refused(own_bundle: Path) -> None:
    outside = own_bundle.parent / "model.onnx"
    (own_bundle / "model.fp32.onnx").replace(outside)
    (own_bundle / "model.fp32.onnx").symlink_to(outside)
    with pytest.raises(BundleError, match="link out"):
        Bundle.open(own_bundle)


def test_a_variant_without_a_hash_is_refused(own_bundle: Path) -> None:
    manifest = Bundle.open(own_bundle).manifest
    resealed(own_bundle, files={name: entry for name, entry in manifest.files.items() if not name.endswith(".onnx")})
    with pytest.raises(BundleError, match=r"model\.fp32\.onnx"):
        Bundle.open(own_bundle)


def test_another_schema_is_refused_with_what_to_do(own_bundle: Path) -> None:
    for schema, remedy in ((SCHEMA + 1, "upgrade trueport"), (SCHEMA - 1, "export the bundle again")):
        resealed(own_bundle, schema=schema)
        with pytest.raises(BundleError, match=f"schema {schema}, .*{remedy}"):
            Bundle.open(own_bundle)


def test_what_is_no_bundle_is_said_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for path in (tmp_path, tmp_path / "absent", tmp_path / "file"):
        with pytest.raises(UsageError, match="is not a bundle"):
            Bundle.open(path)


def test_an_unknown_variant_lists_those_there_are(bundle_path: Path) -> None:
    with pytest.raises(UsageError, match="fp32"):
        Bundle.open(bundle_path).variant("fp16")


def test_nested_without_end_is_damage(own_bundle: Path) -> None:
    depth = 100_000
    for text in (
        b'{"schema": 2, "x": ' + b"[" * depth + b"]" * depth + b"}",
        b"[" * depth,
        b'{"schema": 2, "x": "\xff"}',
    ):
        (own_bundle / MANIFEST).write_bytes(text)
        with pytest.raises(BundleError, match="is damaged"):
            Bundle.open(own_bundle)


@pytest.mark.parametrize("name", ["a\0b", "x" * 5000, "loop", "loop/file"])
def test_what_can_not_be_a_file_is_refused(own_bundle: Path, name: str) -> None:
    (own_bundle / "loop").symlink_to(own_bundle / "loop")
    resealed(own_bundle, files=Bundle.open(own_bundle).manifest.files | {name: FileEntry("0" * 64, 6)})
    with pytest.raises(BundleError):
        Bundle.open(own_bundle)


def test_a_manifest_that_can_not_be_read_is_one_sentence(own_bundle: Path) -> None:
    manifest = own_bundle / MANIFEST
    manifest.unlink()
    manifest.symlink_to(manifest)
    with pytest.raises(BundleError, match=r"can't read .*manifest\.json"):
        Bundle.open(own_bundle)
    manifest.unlink()
    manifest.mkdir()
    with pytest.raises(BundleError, match=r"can't read .*manifest\.json"):
        Bundle.open(own_bundle)
    with pytest.raises(UsageError, match="is not a bundle"):
        Bundle.open("a\0b")


def test_a_file_that_goes_after_opening_is_named(own_bundle: Path) -> None:
    bundle = Bundle.open(own_bundle)
    (own_bundle / GOLDEN).unlink()
    with pytest.raises(BundleError, match=GOLDEN):
        bundle.golden()
