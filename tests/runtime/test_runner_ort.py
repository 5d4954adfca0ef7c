"""onnxruntime's runners: the precision they really compute in, and what is refused where there is no GPU."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import onnxruntime
import pytest

from trueport.runtime.bundle import Bundle
from trueport.runtime.errors import InvalidRequestError, MissingError, PrecisionError
from trueport.runtime.machine import Gpu
from trueport.runtime.manifest import FileEntry, Precision, TensorSpec, Variant
from trueport.runtime.runner import RunnerOptions
from trueport.runtime.runners import ort, ort_cuda, ort_tensorrt
from trueport.runtime.runners.ort import OrtRunner, nodes_elsewhere, session_options
from trueport.runtime.runners.ort_layers import layers_from_profile
from trueport.runtime.runners.ort_tensorrt import cache_key, provider_options
from trueport.runtime.runners.reached import require_reached, shown

Graphs = Callable[[Precision], bytes]
Variants = Callable[..., Variant]
ONE = RunnerOptions(threads=1)
IMAGE = TensorSpec("image", "uint8", (-1, 8, 8, 1))
GPU = Gpu(name="A10", compute_capability="8.6", driver="580.1", memory_gib=22.5)


def bundle_of(graph: bytes) -> Bundle:
    """As much of a bundle as a runner asks for."""
    files = {f"model.{name}.onnx": FileEntry("ab" * 32, len(graph)) for name in ("fp32", "fp16", "bf16", "int8")}
    manifest = SimpleNamespace(inputs=(IMAGE,), files=files)
    return cast("Bundle", SimpleNamespace(read=lambda _: graph, file=Path, manifest=manifest))


# Precision, on the CPU


def test_int8_is_read_back(graphs: Graphs, variant_of: Variants) -> None:
    runner = ort.open_variant(bundle_of(graphs("int8")), variant_of("int8"), "onnxruntime:cpu", ONE)
    assert runner.report().layers == {"int8": 2}
    images = np.random.default_rng(0).integers(0, 255, (3, 8, 8, 1), np.uint8)
    session = onnxruntime.InferenceSession(graphs("int8"), providers=["CPUExecutionProvider"])
    np.testing.assert_array_equal(runner.run({"image": images})["logits"], session.run(None, {"image": images})[0])


def test_fp16_that_is_computed_in_fp32_is_refused(graphs: Graphs, variant_of: Variants) -> None:
    with pytest.raises(MissingError, match=r"expected fp16 .* computes it in fp32 \(2 layers in fp32\): .* the fp32"):
        ort.open_variant(bundle_of(graphs("fp16")), variant_of("fp16"), "onnxruntime:cpu", ONE)


def test_bf16_that_there_are_no_kernels_for_is_refused(graphs: Graphs, variant_of: Variants) -> None:
    told = r"can't run model\.bf16\.onnx here: it has no Conv \(node 'conv'\) for the types of this graph; take another"
    with pytest.raises(MissingError, match=told):
        ort.open_variant(bundle_of(graphs("bf16")), variant_of("bf16"), "onnxruntime:cpu", ONE)


def test_a_float_graph_is_no_int8_variant(graphs: Graphs, variant_of: Variants) -> None:
    with pytest.raises(MissingError, match="expected int8 to be computed in int8"):
        ort.open_variant(bundle_of(graphs("fp32")), variant_of("int8"), "onnxruntime:cpu", ONE)


def test_no_profile_is_left(
    graphs: Graphs, variant_of: Variants, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    runner = ort.open_variant(bundle_of(graphs("int8")), variant_of("int8"), "onnxruntime:cpu", ONE)
    runner.run({"image": np.zeros((1, 8, 8, 1), np.uint8)})
    assert not list(tmp_path.iterdir())


def test_without_a_place_for_the_profile_the_way_out_is_named(
    graphs: Graphs, variant_of: Variants, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))
    with pytest.raises(MissingError, match="TMPDIR"):
        ort.open_variant(bundle_of(graphs("int8")), variant_of("int8"), "onnxruntime:cpu", ONE)


def test_a_profile_is_counted_by_what_goes_in() -> None:
    def kernel(operator: str, *types: str) -> str:
        inputs = ",".join(f'{{"{kind}":[1]}}' for kind in types)
        return f'{{"cat":"Node","args":{{"op_name":"{operator}","input_type_shape":[{inputs}]}}}}'

    events = [
        *(kernel("QLinearConv", "uint8", "float", "uint8"), kernel("FusedGemm", "float"), kernel("Conv", "float16")),
        *(kernel("MatMulIntegerToFloat", "int8"), kernel("Relu", "float"), kernel("Gemm", "bfloat16")),
        '{"cat":"Session","args":{}}',
        '{"cat":"Node","args":{"op_name":"Conv"}}',
    ]
    assert layers_from_profile(f"[{','.join(events)}]".encode()) == {"int8": 2, "fp32": 1, "fp16": 1, "bf16": 1}


# Precision, asked and reached


@pytest.mark.parametrize(
    ("precision", "reached", "layers"),
    [
        ("fp16", {"fp16": 20}, {"fp16": 19}),
        ("fp16", {"fp16": 20, "fp32": 1}, {"fp16": 19, "fp32": 1}),
        ("int8", {"int8": 20}, {"int8": 9, "fp32": 11}),
        ("int8", {"int8": 20}, {"int8": 9, "bf16": 11}),
        ("fp32", {}, {}),
    ],
)
def test_reached(variant_of: Variants, precision: Precision, reached: dict[str, int], layers: dict[str, int]) -> None:
    require_reached(variant_of(precision, reached=reached), layers, "it")


@pytest.mark.parametrize(
    ("precision", "layers", "words"),
    [
        ("fp32", {"bf16": 21}, r"in bf16 \(21 layers in bf16\)"),
        ("bf16", {"bf16": 20, "fp32": 1}, r"in fp32 \(20 layers in bf16, 1 in fp32\)"),
        ("int8", {"fp32": 1}, r"in fp32 \(1 layer in fp32\)"),
    ],
)
def test_not_reached(variant_of: Variants, precision: Precision, layers: dict[str, int], words: str) -> None:
    with pytest.raises(
        PrecisionError, match=f"expected {precision} to be computed in {precision}, it computes it {words}"
    ):
        require_reached(variant_of(precision), layers, "it")


def test_no_layers_are_no_words() -> None:
    assert shown({}) == "no layers that compute"


# GPUs that are not there


def cuda_build(monkeypatch: pytest.MonkeyPatch, *providers: str) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [*providers, "CPUExecutionProvider"])


@pytest.mark.parametrize(("module", "name"), [(ort_cuda, "onnxruntime:cuda"), (ort_tensorrt, "onnxruntime:tensorrt")])
def test_a_build_without_the_provider(
    graphs: Graphs, variant_of: Variants, monkeypatch: pytest.MonkeyPatch, module: Any, name: str
) -> None:
    cuda_build(monkeypatch)
    with pytest.raises(MissingError, match=rf"{name} needs a CUDA build .*pip install 'trueport\[cuda\]'"):
        module.open_variant(bundle_of(graphs("fp32")), variant_of("fp32"), name, ONE)


class Session:
    """One that dropped to the CPU, or left a node there."""

    def __init__(self, providers: list[str], assignment: Iterable[Any] = ()) -> None:
        self._providers, self._assignment = providers, assignment

    def disable_fallback(self) -> None: ...

    def get_providers(self) -> list[str]:
        return self._providers

    def get_provider_graph_assignment_info(self) -> Iterable[Any]:
        return self._assignment


def part(provider: str, *nodes: tuple[str, str]) -> Any:
    return SimpleNamespace(
        ep_name=provider, get_nodes=lambda: [SimpleNamespace(name=name, op_type=kind) for name, kind in nodes]
    )


def test_a_provider_that_does_not_load_is_not_replaced(
    graphs: Graphs, variant_of: Variants, monkeypatch: pytest.MonkeyPatch
) -> None:
    cuda_build(monkeypatch, ort_cuda.PROVIDER)
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda directory: None)
    monkeypatch.setattr(onnxruntime, "InferenceSession", lambda *_, **__: Session(["CPUExecutionProvider"]))
    with pytest.raises(MissingError, match=r"onnxruntime:cuda can't be used here: .*trueport doctor"):
        ort_cuda.open_variant(bundle_of(graphs("fp32")), variant_of("fp32"), "onnxruntime:cuda", ONE)


def test_nodes_that_went_elsewhere_are_named(
    graphs: Graphs, variant_of: Variants, monkeypatch: pytest.MonkeyPatch
) -> None:
    cuda_build(monkeypatch, ort_cuda.PROVIDER)
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda directory: None)
    parts = [part(ort_cuda.PROVIDER, ("conv", "Conv")), part("CPUExecutionProvider", ("", "Resize"), ("top", "TopK"))]
    session = Session([ort_cuda.PROVIDER, "CPUExecutionProvider"], parts)
    monkeypatch.setattr(onnxruntime, "InferenceSession", lambda *_, **__: session)
    with pytest.raises(MissingError, match="onnxruntime:cuda can't run these nodes of the graph: Resize, top"):
        ort_cuda.open_variant(bundle_of(graphs("fp32")), variant_of("fp32"), "onnxruntime:cuda", ONE)
    assert nodes_elsewhere(parts, "CPUExecutionProvider") == ["conv"]


def test_tensorrt_without_a_gpu(graphs: Graphs, variant_of: Variants, monkeypatch: pytest.MonkeyPatch) -> None:
    cuda_build(monkeypatch, ort_tensorrt.PROVIDER)
    monkeypatch.setattr(ort_tensorrt, "find_gpus", lambda: ((), "no nvidia-smi on the path"))
    with pytest.raises(MissingError, match="needs an NVIDIA GPU: no nvidia-smi on the path; openvino:cpu"):
        ort_tensorrt.open_variant(bundle_of(graphs("fp32")), variant_of("fp32"), "onnxruntime:tensorrt", ONE)


def test_tensorrt_keeps_engines_in_a_folder_of_their_own(
    graphs: Graphs, variant_of: Variants, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cuda_build(monkeypatch, ort_tensorrt.PROVIDER)
    monkeypatch.setattr(ort_tensorrt, "find_gpus", lambda: ((GPU,), ""))
    monkeypatch.setenv("TRUEPORT_CACHE", str(tmp_path))
    told: dict[str, str] = {}

    def refusing(provider: str, options: dict[str, str], *_: Any) -> None:
        told.update(options)
        raise MissingError("no library")

    monkeypatch.setattr(ort_tensorrt, "session_on", refusing)
    for precision in ("fp32", "int8"):
        with pytest.raises(MissingError, match="no library"):
            ort_tensorrt.open_variant(bundle_of(b""), variant_of(precision), "onnxruntime:tensorrt", ONE)
    folders = list((tmp_path / "onnxruntime-tensorrt").iterdir())
    assert len(folders) == 2
    assert Path(told["trt_engine_cache_path"]) in folders


def test_a_cache_that_can_not_be_written_is_told(
    variant_of: Variants, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cuda_build(monkeypatch, ort_tensorrt.PROVIDER)
    monkeypatch.setattr(ort_tensorrt, "find_gpus", lambda: ((GPU,), ""))
    (tmp_path / "file").touch()
    monkeypatch.setenv("TRUEPORT_CACHE", str(tmp_path / "file"))
    with pytest.raises(MissingError, match=r"can't keep its engines in .* TRUEPORT_CACHE"):
        ort_tensorrt.open_variant(bundle_of(b""), variant_of("fp32"), "onnxruntime:tensorrt", ONE)


def test_the_reason_is_what_onnxruntime_says_between_its_rows_of_stars(
    graphs: Graphs, variant_of: Variants, monkeypatch: pytest.MonkeyPatch
) -> None:
    cuda_build(monkeypatch, ort_cuda.PROVIDER)
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda directory: None)

    def opened(*_: Any, **__: Any) -> Session:
        print("*************** EP Error ***************")
        print("EP Error the driver is too old\n when using [('CUDAExecutionProvider', {})]")
        return Session(["CPUExecutionProvider"])

    monkeypatch.setattr(onnxruntime, "InferenceSession", opened)
    with pytest.raises(MissingError, match=r"onnxruntime:cuda can't be used here: the driver is too old; "):
        ort_cuda.open_variant(bundle_of(graphs("fp32")), variant_of("fp32"), "onnxruntime:cuda", ONE)


# What TensorRT's provider is told


@pytest.mark.parametrize(
    ("precision", "flag"), [("fp16", "trt_fp16_enable"), ("bf16", "trt_bf16_enable"), ("int8", "trt_int8_enable")]
)
def test_the_precision_is_the_variant_s_and_no_other(precision: Precision, flag: str) -> None:
    options = provider_options(precision, [IMAGE])
    assert [
        name for name, value in options.items() if name.endswith(("16_enable", "int8_enable")) and value == "True"
    ] == [flag]


def test_the_profile_holds_the_batches() -> None:
    options = provider_options("fp32", [IMAGE])
    assert [options[f"trt_profile_{name}_shapes"] for name in ("min", "opt", "max")] == [
        *("image:1x8x8x1", "image:8x8x8x1", "image:64x8x8x1")
    ]


def test_every_part_of_the_key_counts() -> None:
    options, versions = provider_options("fp32", [IMAGE]), {"onnxruntime": "1.31.1", "tensorrt": "101300"}
    other_gpu = Gpu(name="A10", compute_capability="8.6", driver="590.1", memory_gib=22.5)
    keys = {
        cache_key("ab", options, versions, [GPU]),
        cache_key("cd", options, versions, [GPU]),
        cache_key("ab", {**options, "trt_fp16_enable": "True"}, versions, [GPU]),
        cache_key("ab", options, {**versions, "tensorrt": "101400"}, [GPU]),
        cache_key("ab", options, versions, [other_gpu]),
    }
    assert len(keys) == 5
    assert cache_key("ab", dict(reversed(options.items())), versions, [GPU]) in keys


def test_a_batch_beyond_the_profile_names_the_range(graphs: Graphs) -> None:
    class FullError(Exception):
        pass

    class Limited:
        """A session whose provider takes no more than a profile holds."""

        def __init__(self) -> None:
            self._inner = onnxruntime.InferenceSession(graphs("fp32"), providers=["CPUExecutionProvider"])

        def __getattr__(self, name: str) -> Any:
            return getattr(self._inner, name)

        def run(self, *_: Any) -> None:
            raise FullError

    runner = OrtRunner(cast("Any", Limited()), "onnxruntime:tensorrt", max_rows=2)
    with pytest.raises(InvalidRequestError, match="takes 1 to 2 rows, found 3"):
        runner.run({"image": np.zeros((3, 8, 8, 1), np.uint8)})
    with pytest.raises(FullError):
        runner.run({"image": np.zeros((2, 8, 8, 1), np.uint8)})


@pytest.mark.parametrize("spinning", [True, False])
def test_threads_spin_where_they_are_told_to(spinning: bool) -> None:
    settings = session_options(RunnerOptions(threads=2, spinning=spinning))
    assert settings.get_session_config_entry("session.intra_op.allow_spinning") == str(int(spinning))


@pytest.mark.parametrize("module", ["runtime.runners.ort", "export.written", "pipeline.doctor"])
def test_onnxruntime_is_kept_from_telling_others_of_its_use(module: str, tmp_path: Path) -> None:
    """In a fresh process, since it is loaded here: by itself it leaves an id and events in the home folder."""
    code = f"import trueport.{module}, onnxruntime"
    subprocess.run([sys.executable, "-c", code], env={"HOME": str(tmp_path), "PATH": ""}, check=True, timeout=60)
    assert not list(tmp_path.iterdir())
