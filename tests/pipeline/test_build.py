"""trueport build: engines of a bundle, for listed targets on a machine without a GPU."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import msgspec
import pytest

from trueport.export.engine import Engine
from trueport.pipeline import build as build_module
from trueport.pipeline.build import BuildReport, build, throttled
from trueport.runtime.bundle import Bundle
from trueport.runtime.engine import ELSEWHERE, EngineOptions, Here, Sidecar, profiles_from_text, read_sidecar
from trueport.runtime.errors import ExportError, MissingError, UsageError
from trueport.runtime.flavours import FLAVOURS, installed_flavours
from trueport.runtime.machine import find_gpus
from trueport.runtime.manifest import MANIFEST

TARGETS = ("sm86", "sm120")

pytestmark = pytest.mark.skipif(FLAVOURS["rtx"] not in installed_flavours(), reason="tensorrt_rtx is not installed")
without_gpu = pytest.mark.skipif(bool(find_gpus()[0]), reason="there is a GPU here")


@pytest.fixture(scope="module")
def built_path(bundle_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with an engine of fp32; don't write into it."""
    path = Path(shutil.copytree(bundle_path, tmp_path_factory.mktemp("built") / "digits.bundle"))
    build_rtx(path)
    return path


@pytest.fixture
def path(built_path: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(built_path, tmp_path / "digits.bundle"))


def build_rtx(path: Path, **options: Any) -> BuildReport:
    return build(path, **({"targets": TARGETS, "flavour_name": "rtx", "variants": ["fp32"]} | options))


def engines(path: Path) -> list[Path]:
    return sorted((path / "engines").glob("*.engine"))


def test_an_engine_and_what_is_known_of_it_are_in_the_bundle(path: Path) -> None:
    (engine,) = engines(path)
    sidecar = read_sidecar(engine)
    assert sidecar is not None
    identity, bundle = sidecar.identity, Bundle.open(path)
    assert engine.name == identity.file
    assert (identity.flavour, identity.targets, identity.driver) == ("rtx", TARGETS, None)
    assert identity.graph_sha256 == bundle.manifest.files["model.fp32.onnx"].sha256
    assert identity.weights_sha256 == bundle.manifest.provenance.weights_sha256
    assert (sidecar.precision, sidecar.layers, sidecar.layers_from) == ("fp32", {"fp32": 5}, "network")
    assert sidecar.size == engine.stat().st_size
    assert {file.name for file in (path / "engines").iterdir()} == {engine.name, engine.with_suffix(".json").name}


def test_the_command_shows_a_table(trueport: Any, own_bundle: Path) -> None:
    code, out, err = trueport(
        "build", own_bundle, "--target", "sm86", "--flavour", "rtx", "--variant", "fp32", "--batch", "1:4:8,32"
    )
    assert code == 0, err
    (engine,) = engines(own_bundle)
    for words in (engine.name, "fp32", "sm86", "5 layers in fp32 (network)", str(own_bundle / "engines")):
        assert words in out
    assert "building with TensorRT-RTX" in err
    code, out, err = trueport(
        "build", own_bundle, "--target", "sm86", "--variant", "fp32", "--batch", "1:4:8,32", "--json", "-"
    )
    assert json.loads(out)["engines"][0]["built"] is False, "rtx is what is installed, and it is there"


def test_what_is_there_is_not_built_again(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = engines(path)[0].stat().st_mtime_ns
    monkeypatch.setattr(build_module, "engine_from_onnx", refuse)
    (engine,) = build_rtx(path).engines
    assert not engine.built
    assert engines(path)[0].stat().st_mtime_ns == before


def refuse(*_: object, **__: object) -> Engine:
    raise AssertionError("built")


def test_unless_it_is_asked_for_or_damaged(path: Path) -> None:
    assert build_rtx(path, rebuild=True).engines[0].built
    (engine,) = engines(path)
    whole = engine.stat().st_size
    engine.write_bytes(engine.read_bytes()[:-100])
    assert build_rtx(path).engines[0].built
    assert engine.stat().st_size == pytest.approx(whole, rel=0.01)
    engine.with_suffix(".json").write_text("{}")
    assert build_rtx(path).engines[0].built


def test_other_options_are_another_engine(path: Path) -> None:
    assert build_rtx(path, options=EngineOptions(profiles=profiles_from_text("1:1:2"))).engines[0].built
    assert build_rtx(path, targets=("sm89",)).engines[0].built
    assert len(engines(path)) == 3


def test_a_bundle_with_engines_still_opens_and_their_bytes_are_not_sealed(path: Path) -> None:
    before = (path / MANIFEST).read_bytes()
    Bundle.open(path)
    assert (path / MANIFEST).read_bytes() == before


def test_engines_go_elsewhere_where_the_bundle_can_not_be_written(
    own_bundle: Path, tmp_path: Path, trueport: Any
) -> None:
    (own_bundle / "engines").write_text("in the way")  # root may write into a read-only folder
    code, _, err = trueport("build", own_bundle, "--target", "sm86", "--flavour", "rtx")
    assert code == 2
    assert "can't write engines into" in err
    assert "--out FOLDER" in err
    assert ELSEWHERE in err
    report = build_rtx(own_bundle, out=tmp_path / "elsewhere")
    assert (tmp_path / "elsewhere" / report.engines[0].file).is_file()


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("--target", "sm99"), 2, "unknown TensorRT-RTX target 'sm99'"),
        (("--target", ""), 2, "needs a target"),
        (("--target", "sm86", "--batch", "8:1:4"), 2, "min:opt:max"),
        (("--target", "sm86", "--flavour", "trt"), 2, "unknown flavour 'trt': did you mean rtx or tensorrt?"),
        (("--target", "sm86", "--variant", "fp8"), 2, "unknown variant 'fp8'"),
        (("--target", "sm86", "--precision", "fp8"), 2, "unknown precision 'fp8'"),
        (("--target", "sm86", "--variant", "fp32", "--precision", "int8"), 2, "no variant for GPUs in int8"),
        (("--target", "sm86", "--version-compatible"), 2, "no engines that other versions load"),
        (("--target", "sm86", "--hardware-compatible", "ampere-plus"), 2, "no hardware-compatible engines"),
        (("--target", "sm86", "--hardware-compatible", "ampere"), 2, "did you mean ampere-plus"),
        (("--target", "sm86", "--workspace-mib", "0"), 2, "at least 1 MiB"),
    ],
)
def test_what_can_not_be_built_is_refused_in_a_sentence(
    bundle_path: Path, trueport: Any, arguments: tuple[str, ...], code: int, words: str
) -> None:
    flavour = () if "--flavour" in arguments else ("--flavour", "rtx")
    found, _, err = trueport("build", bundle_path, *flavour, *arguments)
    assert found == code, err
    assert words in err
    assert "Traceback" not in err
    assert not (bundle_path / "engines").exists()


@without_gpu
def test_local_needs_a_gpu_and_says_what_can_be_built_here(bundle_path: Path, trueport: Any) -> None:
    code, _, err = trueport("build", bundle_path)
    assert code == 3
    assert "--target local needs a GPU" in err
    assert "--flavour rtx builds here for --target sm75,sm80,sm86,sm89,sm120" in err


def local(target: str | None) -> Any:
    def found(kind: Any, trt: Any) -> tuple[Here, None]:
        return Here(flavour=kind.name, version=trt.__version__, target=target, driver="13.0"), None

    return found


def test_local_is_the_gpu_that_is_here(own_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trueport.runtime.runners.tensorrt.here_with_cuda", local("sm89"))
    (engine,) = build_rtx(own_bundle, targets=("sm86", "local")).engines
    assert engine.sidecar.identity.targets == ("sm89", "sm86")
    assert engine.sidecar.identity.driver == "13.0"


def test_a_gpu_that_the_flavour_does_not_know_is_named(own_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trueport.runtime.runners.tensorrt.here_with_cuda", local("sm90"))
    with pytest.raises(UsageError, match=r"no target for the GPU here, sm90, .* use --flavour tensorrt"):
        build_rtx(own_bundle, targets=("local",))


def test_tensorrt_builds_for_the_gpu_here_alone(own_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import types

    module = types.SimpleNamespace(__name__="tensorrt", __version__="11.4.0.106")
    monkeypatch.setattr(build_module, "import_flavour", lambda kind: module)
    with pytest.raises(UsageError, match="TensorRT builds for the GPU that is here, found the target sm86"):
        build_rtx(own_bundle, flavour_name="tensorrt", targets=("sm86",))


def test_without_any_flavour_the_install_is_named(own_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build_module, "installed_flavours", lambda: ())
    with pytest.raises(MissingError, match=r"pip install 'trueport\[rtx\]'"):
        build_rtx(own_bundle, flavour_name=None)


def test_an_engine_that_is_not_what_was_asked_for_is_not_written(
    own_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        build_module, "engine_from_onnx", lambda *_, **__: Engine(b"plan", {"fp16": 5}, "inspector", 1.0)
    )
    with pytest.raises(ExportError, match="asked for fp32, none of its layers computes in it: 5 layers in fp16"):
        build_rtx(own_bundle)
    assert list((own_bundle / "engines").iterdir()) == []


def test_a_variant_for_cpus_has_no_engine(own_bundle: Path) -> None:
    bundle = Bundle.open(own_bundle)
    cpu = msgspec.structs.replace(bundle.variant("fp32"), name="int8-cpu", precision="int8", target="cpu")
    changed = Bundle(own_bundle, msgspec.structs.replace(bundle.manifest, variants=(*bundle.manifest.variants, cpu)))
    names = [variant.name for variant in build_module._variants(changed, (), ())]
    assert "int8-cpu" not in names
    with pytest.raises(UsageError, match="int8-cpu is made for CPUs"):
        build_module._variants(changed, ("int8-cpu",), ())


def test_of_two_flavours_the_one_for_the_target_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build_module, "installed_flavours", lambda: tuple(FLAVOURS.values()))
    assert build_module._flavour(None, ("local",)).name == "tensorrt"
    assert build_module._flavour(None, ("sm86",)).name == "rtx"
    assert build_module._flavour("rtx", ("local",)).name == "rtx"


def test_phases_of_a_long_build_are_told_now_and_then() -> None:
    told: list[str] = []
    times = iter([0.0, 1.0, 2.5, 2.5, 3.0, 9.0, 9.0])
    tell = throttled(told.append, lambda: next(times))
    for phase in ("a", "b", "c", "d"):
        tell(phase)
    assert told == ["b", "d"]


def test_a_sidecar_is_the_same_after_writing_and_reading(built_path: Path) -> None:
    (engine,) = engines(built_path)
    sidecar = read_sidecar(engine)
    assert msgspec.json.decode(msgspec.json.encode(sidecar), type=Sidecar) == sidecar
