"""Reading a bundle: nothing in it is believed before schema, paths, sizes and hashes have been checked."""

from __future__ import annotations

import hashlib
import io
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from .errors import BundleError, UsageError, unknown_name
from .manifest import MANIFEST, SCHEMA, FileEntry, Manifest, Task, Variant

WEIGHTS = "weights.safetensors"
GOLDEN = "golden.npz"
EVALUATION = "evaluation.npz"


def graph_file(variant: str) -> str:
    """Name of a variant's ONNX graph."""
    return f"model.{variant}.onnx"


@dataclass(frozen=True, eq=False)
class Golden:
    """Inputs and what the original made of them, recorded at export."""

    images: NDArray[np.uint8]
    """(N, H, W, C)"""
    logits: NDArray[np.float32]
    """(N, K) of the original in float32."""
    encoded: tuple[bytes, ...]
    """Encoded pictures (PNG, JPEG, …)."""
    prepared: NDArray[np.uint8]
    """(len(encoded), H, W, C): what preprocessing must make of `encoded`."""


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Held-out samples: accuracy is measured anew wherever the bundle goes."""

    images: NDArray[np.uint8]
    """(N, H, W, C)"""
    labels: NDArray[np.integer[Any]]
    """Classes (N,) as int64; for a multilabel model 0 or 1 for each label, (N, K) as uint8."""
    logits: NDArray[np.float32]
    """(N, K) of the original in float32."""


@dataclass(frozen=True)
class Bundle:
    """An opened bundle: `Bundle.open(path)` has verified every byte that the manifest names."""

    path: Path
    manifest: Manifest

    @classmethod
    def open(cls, path: str | Path) -> Bundle:
        """Verify and open. Raises UsageError where there is no bundle, BundleError where it is not to be trusted."""
        folder = Path(path)
        bundle = cls(folder, read_manifest(folder))
        bundle.verify()
        return bundle

    def verify(self) -> None:
        """Check that the files are those that were exported: names, sizes, SHA-256, and no others named by variants."""
        for name in self._named_files():
            if name not in self.manifest.files:
                raise BundleError(f"{self.path / MANIFEST} names {name} but has no hash of it: export the bundle again")
        for name, entry in self.manifest.files.items():
            self._check(name, entry)

    def variant(self, name: str | None = None) -> Variant:
        """The variant of that name; None: the first one."""
        if name is None:
            return self.manifest.variants[0]
        for variant in self.manifest.variants:
            if variant.name == name:
                return variant
        raise unknown_name("variant", name, (variant.name for variant in self.manifest.variants))

    def read(self, name: str) -> bytes:
        """The bytes of one file of the manifest, checked as they are read."""
        try:
            entry = self.manifest.files[name]
        except KeyError:
            raise BundleError(f"{self.path} has no {name}: export the bundle again") from None
        try:
            data = self.file(name).read_bytes()
        except OSError as error:
            raise BundleError(_unreadable(self.path / name)) from error
        if hashlib.sha256(data).hexdigest() != entry.sha256:
            raise BundleError(_changed(self.path / name))
        return data

    def file(self, name: str) -> Path:
        """The path of a file of the bundle; BundleError where it would leave the folder or can't be one."""
        pure = PurePosixPath(name)
        if pure.is_absolute() or ".." in pure.parts or "\\" in name or ":" in name or not pure.parts:
            raise BundleError(f"{self.path / MANIFEST} names {name!r}, which is outside the bundle: do not trust it")
        file = self.path.joinpath(*pure.parts)
        try:
            inside = file.resolve().is_relative_to(self.path.resolve())
        except (OSError, RuntimeError, ValueError) as error:  # a link to itself, a NUL
            raise BundleError(f"{self.path / MANIFEST} names {name!r}, which is no file: {error}") from error
        if not inside:
            raise BundleError(f"{file} is a link out of the bundle: do not trust it")
        return file

    def golden(self) -> Golden:
        """The golden set."""
        arrays = self._arrays(GOLDEN, ("images", "logits", "prepared", "encoded", "encoded_sizes"))
        ends = np.cumsum(arrays["encoded_sizes"])
        blob = arrays["encoded"].tobytes()
        starts = (0, *ends[:-1])
        encoded = tuple(blob[start:end] for start, end in zip(starts, ends, strict=True))
        return Golden(arrays["images"], arrays["logits"], encoded, arrays["prepared"])

    def evaluation(self) -> Evaluation:
        """The held-out slice."""
        arrays = self._arrays(EVALUATION, ("images", "labels", "logits"))
        try:
            check_truth(arrays["labels"], self.manifest.task, len(arrays["images"]), len(self.manifest.labels))
        except ValueError as error:
            raise BundleError(f"{self.path / EVALUATION} is not what a bundle holds: {error}") from error
        return Evaluation(arrays["images"], arrays["labels"], arrays["logits"])

    def _arrays(self, name: str, keys: Iterable[str]) -> dict[str, NDArray[Any]]:
        try:
            with np.load(io.BytesIO(self.read(name)), allow_pickle=False) as file:
                return {key: file[key] for key in keys}
        except (ValueError, KeyError, zipfile.BadZipFile) as error:
            raise BundleError(f"{self.path / name} is not what a bundle holds: {error}") from error

    def _named_files(self) -> Iterable[str]:
        yield GOLDEN
        yield EVALUATION
        for variant in self.manifest.variants:
            yield variant.file

    def _check(self, name: str, entry: FileEntry) -> None:
        file = self.file(name)
        try:
            size = file.stat().st_size
            if size != entry.size:
                raise BundleError(f"{file} has {size:,} bytes, expected {entry.size:,}: the bundle is damaged")
            with file.open("rb") as opened:
                digest = hashlib.file_digest(opened, "sha256").hexdigest()
        except OSError as error:
            raise BundleError(_unreadable(file)) from error
        if digest != entry.sha256:
            raise BundleError(_changed(file))


def read_manifest(folder: Path) -> Manifest:
    """What a bundle says of itself; the files that it names are not looked at.

    Raises UsageError where there is no bundle, BundleError where the manifest is not to be trusted.
    """
    try:
        data = (folder / MANIFEST).read_bytes()
    except (FileNotFoundError, NotADirectoryError, ValueError) as error:  # ValueError: a NUL in the path
        inside = folder / "bundle"  # as an export leaves it in the folder of its run
        way = f"did you mean {inside}?" if (inside / MANIFEST).is_file() else "`trueport export` makes one"
        raise UsageError(f"{folder} is not a bundle: it has no {MANIFEST}; {way}") from error
    except OSError as error:
        raise BundleError(f"can't read {folder / MANIFEST}: {error.strerror or error}") from error
    return _manifest_from_json(data, folder)


def check_truth(truth: NDArray[Any], task: Task, rows: int, classes: int) -> None:
    """Raise ValueError unless these are the true labels of so many rows, as the task has them."""
    kind, shape, most = (np.int64, (rows,), classes - 1) if task == "classification" else (np.uint8, (rows, classes), 1)
    if truth.dtype != kind or truth.shape != shape:
        expected = f"{np.dtype(kind)} {shape}"
        raise ValueError(f"expected labels of {task} as {expected}, found {truth.dtype} {truth.shape}")
    if truth.size and (truth.min() < 0 or truth.max() > most):
        raise ValueError(f"expected labels from 0 to {most}, found {truth.min()} to {truth.max()}")


def _changed(file: Path) -> str:
    return f"{file} was changed since export (its SHA-256 differs): copy the bundle again, or export it anew"


def _unreadable(file: Path) -> str:
    return f"{file} is missing or unreadable: the bundle is damaged, copy it again"


def _manifest_from_json(data: bytes, folder: Path) -> Manifest:
    where = folder / MANIFEST
    try:
        schema = msgspec.json.decode(data, type=_Schema).schema
        if schema != SCHEMA:
            remedy = "upgrade trueport" if schema > SCHEMA else "export the bundle again"
            raise BundleError(f"{where} has schema {schema}, this trueport reads schema {SCHEMA}: {remedy}")
        manifest = msgspec.json.decode(data, type=Manifest)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise BundleError(f"{where} is damaged: {error}") from error
    if not _is_sealed(data, manifest.sha256):
        raise BundleError(_changed(where))
    if not manifest.variants:
        raise BundleError(f"{where} names no variant: export the bundle again")
    return manifest


def sealed(manifest: Manifest) -> bytes:
    """manifest.json with the SHA-256 of its own bytes in it, those of the hash itself counted as zeros."""
    data = msgspec.json.format(msgspec.json.encode(msgspec.structs.replace(manifest, sha256=_UNSEALED)), indent=2)
    return data.replace(_UNSEALED.encode(), hashlib.sha256(data).hexdigest().encode())


def _is_sealed(data: bytes, digest: str) -> bool:
    bare = data.replace(digest.encode(), _UNSEALED.encode()) if len(digest) == len(_UNSEALED) else b""
    return hashlib.sha256(bare).hexdigest() == digest


_UNSEALED = "0" * 64


class _Schema(msgspec.Struct):
    schema: int
