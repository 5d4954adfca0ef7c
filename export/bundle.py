"""Writing a bundle: every file beside its final place, the manifest last, then one rename."""

from __future__ import annotations

import datetime
import hashlib
import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import msgspec
import numpy as np
from numpy.typing import NDArray

from trueport.runtime.atomic import is_filled, new_folder, replaceable
from trueport.runtime.bundle import EVALUATION, GOLDEN, WEIGHTS, Evaluation, Golden, check_truth, graph_file, sealed
from trueport.runtime.errors import UsageError
from trueport.runtime.machine import installed_versions
from trueport.runtime.manifest import MANIFEST, FileEntry, Manifest, Precision, Provenance

from .golden import Rows, answers, golden_set
from .int8 import Int8Options
from .original import Original
from .variants import Material, Recorded, made_variants, variant_names

REPORTS, ENGINES, TUNED = "reports", "engines", "tuned"
"""Folders that `check` and `bench`, `build`, and `tune` write into: no part of what was exported and sealed."""


@dataclass(frozen=True)
class Origin:
    """Where the model comes from: what the manifest tells beyond the original itself."""

    data: str
    data_sha256: str
    split_sha256: str
    seed: int
    recipe: dict[str, Any]


def write_bundle(
    original: Original,
    out: Path,
    *,
    name: str,
    origin: Origin,
    golden: Rows,
    pictures: tuple[bytes, ...],
    evaluation: tuple[Rows, NDArray[np.integer[Any]]],
    precisions: tuple[Precision, ...] = ("fp32",),
    material: Material | None = None,
    opset: int = 20,
    max_drop: float = 1.0,
    int8: Int8Options | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> Manifest:
    """Export the original into a bundle at `out`; an older bundle there is replaced in one step.

    golden: real prepared images (N, H, W, C). pictures: a few encoded ones. evaluation: held-out images and their
    labels, as `Evaluation` has them; ValueError where these are not labels of the original's task.
    precisions: fp32 comes first and is added where it is not named. material: what others are made with. max_drop:
    points of accuracy that these may lose. say is told what is done: calibrating takes long.
    Raises ExportError as `made_variants` does, UsageError for pictures that can't be calibrated on or an `out` that
    holds something else.
    """
    out = replaceable(out, refuse_other_content)  # also here: before the work
    images, labels = evaluation
    check_truth(labels, original.task, len(images), len(original.labels))
    recorded = golden_set(original, golden, pictures)
    held_out = Evaluation(images, labels, answers(original, images))
    weights = _weights(original)
    content = {WEIGHTS: weights, GOLDEN: _npz_from_golden(recorded), EVALUATION: _npz(**vars(held_out))}
    variants = []
    for variant, graph in made_variants(
        original,
        Recorded(recorded, held_out),
        precisions,
        material=material,
        opset=opset,
        max_drop=max_drop,
        int8=int8 or Int8Options(),
        say=say,
    ):
        variants.append(variant)
        content[variant.file] = graph
    manifest = Manifest(
        name=name,
        version="1",
        task=original.task,
        inputs=(original.input_spec,),
        outputs=(original.output_spec,),
        preprocessing=original.preprocessing,
        normalisation=original.normalisation,
        labels=original.labels,
        variants=tuple(variants),
        provenance=_provenance(original, origin, weights),
        files={},
    )
    return write_files(out, manifest, content)


def write_files(out: Path, manifest: Manifest, content: Mapping[str, bytes]) -> Manifest:
    """Write a bundle of such files into `out` in one step: their hashes go into the manifest, which is sealed.

    Raises UsageError where `out` holds something else than a bundle.
    """
    entries = {file: FileEntry(hashlib.sha256(data).hexdigest(), len(data)) for file, data in content.items()}
    manifest = msgspec.structs.replace(manifest, files=entries)
    with new_folder(out, refuse_other_content) as folder:
        for file, data in (*content.items(), (MANIFEST, sealed(manifest))):
            (folder / file).write_bytes(data)
    return manifest


class _Claim(msgspec.Struct):
    """What makes a manifest.json one of a bundle, damaged or of another schema though it may be."""

    schema: int
    files: dict[str, Any]


def refuse_other_content(out: Path) -> None:
    """Raise UsageError, naming one file, where `out` holds anything but a bundle, be it a damaged one."""
    if not is_filled(out):
        return
    claim = _claim(out / MANIFEST)
    written = {MANIFEST, WEIGHTS, GOLDEN, EVALUATION, *map(graph_file, variant_names(get_args(Precision)))}
    written |= set(claim.files) if claim else set()
    for file in out.rglob("*"):
        name = file.relative_to(out)
        added = name.parts[0] in (REPORTS, ENGINES, TUNED) and len(name.parts) > 1
        if (file.is_symlink() or not file.is_dir()) and name.as_posix() not in written and not added:
            raise UsageError(
                f"{out} holds {name}, which is no part of a bundle: refusing to replace it, choose another name"
            )
    if claim is None and not (out / GOLDEN).is_file():
        found = f"its {MANIFEST} is not one of trueport" if (out / MANIFEST).exists() else f"it has no {MANIFEST}"
        raise UsageError(f"{out} is not empty and no bundle, {found}: refusing to replace it, choose another name")


def _claim(manifest: Path) -> _Claim | None:
    try:
        return msgspec.json.decode(manifest.read_bytes(), type=_Claim)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def _provenance(original: Original, origin: Origin, weights: bytes) -> Provenance:
    return Provenance(
        arch=original.arch,
        arch_args=original.arch_args,
        weights_sha256=hashlib.sha256(weights).hexdigest(),
        data=origin.data,
        data_sha256=origin.data_sha256,
        split_sha256=origin.split_sha256,
        seed=origin.seed,
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        versions=installed_versions(),
        recipe=origin.recipe,
    )


def _weights(original: Original) -> bytes:
    from safetensors.torch import save

    from trueport.models.state import stored

    return save(stored(original.module.state_dict()))


def _npz_from_golden(golden: Golden) -> bytes:
    return _npz(
        images=golden.images,
        logits=golden.logits,
        prepared=golden.prepared,
        encoded=np.frombuffer(b"".join(golden.encoded), np.uint8),
        encoded_sizes=np.array([len(picture) for picture in golden.encoded], np.int64),
    )


def _npz(**arrays: NDArray[Any]) -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **arrays)
    return buffer.getvalue()
