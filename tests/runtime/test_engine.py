"""What is said of an engine decides whether it is loaded: names, keys, preflight. No TensorRT and no GPU in here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from trueport.runtime.bundle import Bundle
from trueport.runtime.engine import (
    ELSEWHERE,
    EngineOptions,
    Here,
    Identity,
    Profile,
    Sidecar,
    chosen_engine,
    damage,
    preflight,
    profile_for,
    profiles_from_text,
    ranges,
    read_sidecar,
)
from trueport.runtime.errors import BundleError, InvalidRequestError, MissingError, TrueportError, UsageError

HERE = Here(flavour="tensorrt", version="10.9.0.34", target="sm86", driver="13.0")


@pytest.fixture
def bundle(bundle_path: Path) -> Bundle:
    return Bundle.open(bundle_path)


def sidecar_of(
    bundle: Bundle, data: bytes = b"plan", created: str = "2026-01-01T00:00:00+00:00", **changed: Any
) -> Sidecar:
    import hashlib

    identity = Identity(
        flavour="tensorrt",
        version="10.9.0.34",
        targets=("sm86",),
        driver="13.0",
        variant="fp32",
        graph_sha256=bundle.manifest.files[bundle.variant("fp32").file].sha256,
        weights_sha256=bundle.manifest.provenance.weights_sha256,
        options=EngineOptions(profiles=(Profile(1, 8, 64),)),
    )
    return Sidecar(
        identity=msgspec.structs.replace(identity, **changed),
        precision="fp32",
        layers={"fp32": 5},
        layers_from="inspector",
        sha256=hashlib.sha256(data).hexdigest(),
        size=len(data),
        created=created,
        seconds=1.0,
    )


def written(folder: Path, sidecar: Sidecar, data: bytes = b"plan") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    engine = folder / sidecar.identity.file
    engine.write_bytes(data)
    engine.with_suffix(".json").write_bytes(msgspec.json.encode(sidecar))
    return engine


def test_profiles_are_read_as_they_are_written() -> None:
    assert profiles_from_text("1:8:64, 64:128:256") == (Profile(1, 8, 64), Profile(64, 128, 256))
    assert profiles_from_text("32") == (Profile(32, 32, 32),)
    assert ",".join(map(str, profiles_from_text("1:8:64,7"))) == "1:8:64,7:7:7"


@pytest.mark.parametrize("text", ["8:1:4", "1:8", "a:b:c", "", "1:8:64,", "0:1:2", "1:2:3:4", "-1:1:1", "1.5:2:3"])
def test_nonsense_for_profiles_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="min:opt:max"):
        profiles_from_text(text)


@pytest.mark.parametrize(
    ("rows", "index"), [(1, 0), (8, 0), (63, 0), (64, 0), (65, 1), (128, 1), (256, 1), (257, None), (0, None)]
)
def test_the_profile_for_a_batch(rows: int, index: int | None) -> None:
    assert profile_for(rows, profiles_from_text("1:8:64,64:128:256")) == index


def test_a_profile_made_for_a_batch_comes_before_a_wider_one() -> None:
    assert profile_for(32, profiles_from_text("1:8:64,32")) == 1
    assert profile_for(20, profiles_from_text("1:8:64,16:24:32")) == 1
    assert ranges(profiles_from_text("1:8:64,128")) == "1 to 64 and 128"


def test_whatever_differs_is_another_engine(bundle: Bundle) -> None:
    identity = sidecar_of(bundle).identity
    changes: list[dict[str, Any]] = [
        {"flavour": "rtx"},
        {"version": "10.9.0.35"},
        {"targets": ("sm89",)},
        {"targets": ("sm86", "sm89")},
        {"driver": None},
        {"variant": "fp16"},
        {"graph_sha256": "0"},
        {"weights_sha256": "0"},
        {"options": EngineOptions(profiles=(Profile(1, 8, 32),))},
        {"options": EngineOptions(profiles=(Profile(1, 8, 64),), workspace_mib=256)},
        {"options": EngineOptions(profiles=(Profile(1, 8, 64),), version_compatible=True)},
        {"options": EngineOptions(profiles=(Profile(1, 8, 64),), hardware_compatible="ampere-plus")},
    ]
    files = {identity.file, *(msgspec.structs.replace(identity, **change).file for change in changes)}
    assert len(files) == len(changes) + 1
    assert identity.file == f"tensorrt-10.9.0.34-sm86-fp32-{identity.key}.engine"
    assert set(msgspec.structs.asdict(identity)) == {key for change in changes for key in change}


def test_an_engine_for_this_machine_is_let_through(bundle: Bundle) -> None:
    assert preflight(sidecar_of(bundle), HERE, bundle) is None
    assert preflight(sidecar_of(bundle), HERE, bundle, rows=64) is None
    several = sidecar_of(bundle, targets=("sm80", "sm86"))
    assert preflight(several, HERE, bundle) is None


@pytest.mark.parametrize(
    ("changed", "here", "kind", "found"),
    [
        ({}, {"target": None, "problem": "no GPU here: no driver"}, MissingError, "there is no GPU here: no driver"),
        ({}, {"target": "sm90"}, MissingError, "the GPU here is sm90"),
        ({}, {"version": "10.10.0.1"}, MissingError, "here is tensorrt 10.10.0.1"),
        ({"flavour": "rtx"}, {}, MissingError, "here is tensorrt 10.9.0.34"),
        ({"weights_sha256": "0" * 64}, {}, BundleError, "the bundle holds other weights"),
        ({"graph_sha256": "0" * 64}, {}, BundleError, "the bundle holds another graph of fp32"),
        ({"variant": "gone"}, {}, BundleError, "the bundle holds another graph of gone"),
    ],
)
def test_an_engine_for_something_else_is_refused(
    bundle: Bundle, changed: dict[str, Any], here: dict[str, Any], kind: type[TrueportError], found: str
) -> None:
    sidecar = sidecar_of(bundle, **changed)
    error = preflight(sidecar, msgspec.structs.replace(HERE, **here), bundle)
    assert type(error) is kind
    identity = sidecar.identity
    assert str(error).startswith(f"the engine was built for {identity.flavour} 10.9.0.34 on sm86, {found}")
    remedy = f"trueport build {bundle.path} --target local --flavour {identity.flavour} --variant {identity.variant}"
    assert f"{remedy} --rebuild" in str(error)


def test_a_batch_outside_the_profiles_names_the_range_and_keeps_the_other_profiles(bundle: Bundle) -> None:
    sidecar = sidecar_of(bundle, options=EngineOptions(profiles=(Profile(1, 8, 64), Profile(4, 4, 4))))
    error = preflight(sidecar, HERE, bundle, rows=100)
    assert type(error) is InvalidRequestError
    assert "holds batches of 1 to 64 and 4 rows, found 100" in str(error)
    assert "--batch 1:100:100 --rebuild" in str(error)


def test_compatible_engines_go_further_and_no_other_way(bundle: Bundle) -> None:
    ahead = sidecar_of(bundle, options=EngineOptions(version_compatible=True))
    assert preflight(ahead, msgspec.structs.replace(HERE, version="11.4.0.106"), bundle) is None
    assert preflight(ahead, msgspec.structs.replace(HERE, version="10.8.0.1"), bundle) is not None
    wide = sidecar_of(bundle, targets=("sm80",), options=EngineOptions(hardware_compatible="ampere-plus"))
    for target, fits in (("sm80", True), ("sm86", True), ("sm120", True), ("sm75", False)):
        assert (preflight(wide, msgspec.structs.replace(HERE, target=target), bundle) is None) == fits


def test_a_truncated_or_changed_engine_is_damage(bundle: Bundle) -> None:
    sidecar, path = sidecar_of(bundle), Path("x.engine")
    assert damage(path, sidecar, bundle, b"plan") is None
    truncated, changed = damage(path, sidecar, bundle, b"pla"), damage(path, sidecar, bundle, b"plaN")
    assert "3 bytes, expected 4" in str(truncated)
    assert "SHA-256 differs" in str(changed)
    assert "--rebuild" in str(truncated)
    assert "--rebuild" in str(changed)


def test_the_newest_that_fits_is_chosen(own_bundle: Path) -> None:
    bundle = Bundle.open(own_bundle)
    old = sidecar_of(bundle, created="2026-01-01T00:00:00+00:00")
    new = sidecar_of(bundle, created="2026-02-01T00:00:00+00:00", options=EngineOptions(profiles=(Profile(1, 1, 2),)))
    newest_for_another = sidecar_of(bundle, created="2026-03-01T00:00:00+00:00", targets=("sm120",))
    for sidecar in (old, new, newest_for_another):
        written(own_bundle / "engines", sidecar)
    path, sidecar = chosen_engine(bundle, "fp32", HERE)
    assert (path.name, sidecar) == (new.identity.file, new)


def test_where_none_fits_the_newest_says_why_and_where_there_is_none_how_to_build(own_bundle: Path) -> None:
    bundle = Bundle.open(own_bundle)
    with pytest.raises(MissingError, match=r"holds no tensorrt engine of fp32; build it: trueport build .* fp32"):
        chosen_engine(bundle, "fp32", HERE)
    written(own_bundle / "engines", sidecar_of(bundle, targets=("sm89",)))
    with pytest.raises(MissingError, match=r"built for tensorrt 10\.9\.0\.34 on sm89, the GPU here is sm86"):
        chosen_engine(bundle, "fp32", HERE)
    with pytest.raises(MissingError, match="holds no tensorrt engine of fp16"):
        chosen_engine(bundle, "fp16", HERE)


def test_engines_of_a_read_only_bundle_may_lie_elsewhere(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = written(tmp_path, sidecar_of(bundle))
    monkeypatch.setenv(ELSEWHERE, str(tmp_path))
    assert chosen_engine(bundle, "fp32", HERE)[0] == engine


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff", b"[" * 5000, b'{"schema": 1}'])
def test_a_damaged_sidecar_is_none(own_bundle: Path, content: bytes) -> None:
    bundle = Bundle.open(own_bundle)
    engine = written(own_bundle / "engines", sidecar_of(bundle))
    assert read_sidecar(engine) is not None
    engine.with_suffix(".json").write_bytes(content)
    assert read_sidecar(engine) is None


def test_a_sidecar_of_another_schema_or_with_impossible_profiles_is_none(own_bundle: Path) -> None:
    bundle = Bundle.open(own_bundle)
    engine = written(own_bundle / "engines", sidecar_of(bundle))
    told = json.loads(engine.with_suffix(".json").read_bytes())
    for change in ({"schema": 2}, {"identity": told["identity"] | {"options": {"profiles": []}}}):
        engine.with_suffix(".json").write_text(json.dumps(told | change))
        assert read_sidecar(engine) is None


def test_a_link_out_of_the_folder_is_no_engine(own_bundle: Path, tmp_path: Path) -> None:
    bundle = Bundle.open(own_bundle)
    elsewhere = written(tmp_path / "elsewhere", sidecar_of(bundle))
    inside = own_bundle / "engines" / elsewhere.name
    inside.parent.mkdir()
    inside.symlink_to(elsewhere)
    inside.with_suffix(".json").write_bytes(elsewhere.with_suffix(".json").read_bytes())
    with pytest.raises(MissingError, match="holds no tensorrt engine"):
        chosen_engine(bundle, "fp32", HERE)


@pytest.mark.parametrize("options", [{"profiles": ()}, {"workspace_mib": 0}])
def test_impossible_options_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="at least"):
        EngineOptions(**options)
