"""Engines of real graphs, built by TensorRT-RTX without a GPU; and TensorRT's own path on a stand-in for its module."""

from __future__ import annotations

import copy
import types
from collections.abc import Callable
from enum import Enum
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

from trueport import models
from trueport.export import engine as engine_module
from trueport.export import timing_cache
from trueport.export.engine import Engine, check_options, check_targets, engine_from_onnx, known_targets
from trueport.export.engine_network import creation_flags
from trueport.export.graph import onnx_from_original
from trueport.export.original import Original
from trueport.runtime.engine import EngineOptions, profiles_from_text
from trueport.runtime.errors import ExportError, MissingError, UsageError
from trueport.runtime.flavours import FLAVOURS, import_flavour, installed_flavours, sentence
from trueport.runtime.manifest import Normalisation, Preprocessing

RTX, TENSORRT = FLAVOURS["rtx"], FLAVOURS["tensorrt"]
TARGETS = ("sm86", "sm120")
LAYERS = 20
"""Of ResNet-20: 19 convolutions and the head."""

pytestmark = pytest.mark.skipif(RTX not in installed_flavours(), reason="tensorrt_rtx is not installed")


def original(arch: str) -> Original:
    torch.manual_seed(0)
    return Original(
        models.create(arch, num_classes=10, channels=3),
        tuple("0123456789"),
        Preprocessing(height=32, width=32),
        Normalisation((0.5,) * 3, (0.25,) * 3),
        arch,
    )


@pytest.fixture(scope="module")
def graph() -> onnx.ModelProto:
    return onnx_from_original(original("resnet20"))


class Pictures(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self) -> None:
        chance = np.random.default_rng(0)
        self.batches = iter([{"image": chance.integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)}])

    def get_next(self) -> dict[str, Any] | None:
        return next(self.batches, None)


def quantized(graph: onnx.ModelProto, file: Path) -> bytes:
    quantize_static(
        copy.deepcopy(graph),  # it takes the weights out of the one that it is given
        file,
        Pictures(),
        quant_format=QuantFormat.QDQ,
        activation_type=QuantType.QInt8,
        weight_type=QuantType.QInt8,
        per_channel=True,
        op_types_to_quantize=["Conv", "Gemm", "MatMul"],
        extra_options={"ActivationSymmetric": True, "WeightSymmetric": True, "QuantizeBias": False},
    )
    return file.read_bytes()


def built(
    graph: bytes, targets: tuple[str, ...] = TARGETS, options: EngineOptions | None = None, **more: Any
) -> Engine:
    return engine_from_onnx(graph, RTX, targets, options or EngineOptions(), **more)


def test_every_layer_of_a_residual_network_is_in_the_precision_of_its_graph(
    graph: onnx.ModelProto, tmp_path: Path
) -> None:
    for precision, data in (
        ("fp32", graph.SerializeToString()),
        ("int8", quantized(graph, tmp_path / "int8.onnx")),
        ("fp16", onnx_from_original(original("resnet20"), dtype=torch.float16).SerializeToString()),
    ):
        engine = built(data)
        assert engine.layers == {precision: LAYERS}
        assert engine.layers_from == "network"
        assert engine.plan[:4] == b"vtrt"


def shared_pair() -> bytes:
    """Two convolutions that read one dequantized tensor; the weights of the first alone are quantized."""
    image = helper.make_tensor_value_info("image", TensorProto.UINT8, ["batch", 8, 8, 1])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 4, 6, 6])
    weights = np.random.default_rng(0).normal(size=(4, 1, 3, 3)).astype(np.float32)
    tensors: dict[str, Any] = {
        "scale": np.float32(2), "zero": np.int8(0),
        "whole": (weights * 40).astype(np.int8), "step": np.full(4, 0.025, np.float32), "zeros": np.zeros(4, np.int8),
        "plain": weights,
    }  # fmt: skip
    nodes = [
        helper.make_node("Cast", ["image"], ["real"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["real"], ["planes"], perm=[0, 3, 1, 2]),
        helper.make_node("QuantizeLinear", ["planes", "scale", "zero"], ["integers"]),
        helper.make_node("DequantizeLinear", ["integers", "scale", "zero"], ["shared"]),
        helper.make_node("DequantizeLinear", ["whole", "step", "zeros"], ["kernel"], axis=0),
        helper.make_node("Conv", ["shared", "kernel"], ["first"]),
        helper.make_node("Conv", ["shared", "plain"], ["second"]),
        helper.make_node("Add", ["first", "second"], ["logits"]),
    ]
    held = [numpy_helper.from_array(np.asarray(value), name) for name, value in tensors.items()]
    made: bytes = helper.make_model(
        helper.make_graph(nodes, "shared", [image], [logits], held),
        opset_imports=[helper.make_opsetid("", 20)],
        ir_version=10,
    ).SerializeToString()
    return made


def test_a_layer_in_float_beside_one_in_int8_is_told_apart_by_its_weights() -> None:
    assert built(shared_pair(), ("sm86",)).layers == {"int8": 1, "fp32": 1}


def test_bfloat16() -> None:
    engine = built(onnx_from_original(original("lenet"), dtype=torch.bfloat16).SerializeToString())
    assert engine.layers == {"bf16": 5}


def test_several_profiles_and_a_limit_of_workspace(graph: onnx.ModelProto) -> None:
    options = EngineOptions(profiles=profiles_from_text("1:8:64,64:128:256,7"), workspace_mib=64)
    assert built(graph.SerializeToString(), ("sm86",), options).layers == {"fp32": LAYERS}


def test_phases_are_told_as_they_begin(graph: onnx.ModelProto) -> None:
    told: list[str] = []
    built(graph.SerializeToString(), ("sm86",), tell=told.append)
    assert told[0] == "Building engine"
    assert len(told) > 3


def test_an_interruption_ends_the_build(graph: onnx.ModelProto) -> None:
    def interrupt(phase: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        built(graph.SerializeToString(), ("sm86",), tell=interrupt)


def bad_graph(operator: str, domain: str = "") -> bytes:
    """image -> Cast -> Transpose -> a node that no backend knows."""
    image = helper.make_tensor_value_info("image", TensorProto.UINT8, ["batch", 4, 4])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch"])
    nodes = [
        helper.make_node("Cast", ["image"], ["real"], "cast", to=TensorProto.FLOAT),
        helper.make_node(operator, ["real"], ["logits"], "head.strange", domain=domain),
    ]
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("my.operators", 1)]
    made: bytes = helper.make_model(
        helper.make_graph(nodes, "bad", [image], [logits]), opset_imports=opsets, ir_version=10
    ).SerializeToString()
    return made


@pytest.mark.parametrize(("operator", "domain"), [("Sparkle", "my.operators"), ("Det", "")])
def test_an_operator_that_is_refused_is_named_with_its_node_and_the_way_out(operator: str, domain: str) -> None:
    with pytest.raises(ExportError) as refused:
        built(bad_graph(operator, domain), ("sm86",), name="model.fp32.onnx")
    words = str(refused.value)
    assert words.startswith(f"TensorRT-RTX refuses model.fp32.onnx: node 'head.strange', operator {operator} (")
    assert "another opset" in words
    assert "onnxruntime:cuda" in words
    assert "\n" not in words


def test_what_is_no_graph_is_refused() -> None:
    with pytest.raises(ExportError, match=r"refuses the graph: model deserialize failed"):
        built(b"no graph")


def test_what_the_builder_says_is_passed_on_without_its_source_files(
    graph: onnx.ModelProto, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_module, "_set_profiles", lambda *_: None)
    with pytest.raises(ExportError, match="no optimization profile has been defined") as refused:
        built(graph.SerializeToString(), ("sm86",))
    assert "/_src/" not in str(refused.value)


def test_targets_are_those_that_the_flavour_has() -> None:
    assert {"sm75", "sm80", "sm86", "sm89", "sm120"} <= set(known_targets(RTX))
    assert known_targets(TENSORRT) == ()
    check_targets(RTX, ["sm75", "sm120"])
    with pytest.raises(UsageError, match=r"unknown TensorRT-RTX target 'sm99': did you mean"):
        check_targets(RTX, ["sm86", "sm99"])


def test_what_a_flavour_lacks_is_refused_with_a_sentence(graph: onnx.ModelProto) -> None:
    for options in (EngineOptions(version_compatible=True), EngineOptions(hardware_compatible="ampere-plus")):
        check_options(TENSORRT, options)
        with pytest.raises(UsageError, match=r"TensorRT-RTX has no .*--flavour tensorrt"):
            built(graph.SerializeToString(), options=options)


def test_a_flavour_that_is_missing_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(MissingError, match=r"pip install 'trueport\[tensorrt\]'"):
        import_flavour(TENSORRT)


@pytest.mark.parametrize("failure", [ImportError("libnvinfer.so.10: cannot open"), OSError("no libcuda")])
def test_a_flavour_whose_libraries_do_not_load_says_which(failure: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str) -> None:
        raise failure

    monkeypatch.setattr("importlib.import_module", fail)
    with pytest.raises(MissingError, match=f"TensorRT is installed but does not load: {failure}"):
        import_flavour(TENSORRT)


@pytest.mark.parametrize(
    ("message", "words"),
    [
        (
            "IBuilder::buildSerializedNetwork: Error Code 6: API Usage Error (Unable to load library: x.so In Impl at "
            "/_src/runtime/libLoader.cpp:305)",
            "Unable to load library: x.so",
        ),
        (
            "Error Code 4: API Usage Error (No profile has been defined. In validate at /a/b.cpp:1)",
            "No profile has been defined",
        ),
        ("plain words\nin two lines", "plain words in two lines"),
        ("", "it gives no reason"),
    ],
)
def test_sentences_out_of_messages(message: str, words: str) -> None:
    assert sentence([message], "it gives no reason") == words


# TensorRT's own path. Its package can't be had everywhere; the stand-in has the names that 10 and 11 have.


class FakeModule(types.ModuleType):
    """Just what building touches; `said` is what it was asked."""

    class ILogger:
        Severity = Enum("Severity", ["INTERNAL_ERROR", "ERROR", "WARNING"])

    class IProgressMonitor:
        pass

    ProfilingVerbosity = Enum("ProfilingVerbosity", ["DETAILED"])
    MemoryPoolType = Enum("MemoryPoolType", ["WORKSPACE"])
    BuilderFlag = Enum("BuilderFlag", ["TF32", "VERSION_COMPATIBLE"])
    HardwareCompatibilityLevel = Enum("HardwareCompatibilityLevel", ["NONE", "AMPERE_PLUS", "SAME_COMPUTE_CAPABILITY"])
    LayerInformationFormat = SimpleNamespace(JSON="json")

    def __init__(self, version: str, layers: str = "{}") -> None:
        super().__init__(f"fake {version} {id(self)}")
        self.__version__ = version
        self.said: dict[str, Any] = {"profiles": [], "flags": []}
        self.layers = layers
        self.known = b""
        if version.startswith("10."):
            self.NetworkDefinitionCreationFlag = SimpleNamespace(STRONGLY_TYPED=1)

    def Builder(self, log: Any) -> Any:
        said, config = self.said, SimpleNamespace()
        config.clear_flag = lambda flag: said.update(cleared=flag.name)
        config.set_flag = lambda flag: said["flags"].append(flag.name)
        config.set_memory_pool_limit = lambda pool, size: said.update({pool.name: size})
        config.add_optimization_profile = lambda profile: said["profiles"].append(profile.shape)
        config.create_timing_cache = lambda data: data
        config.set_timing_cache = lambda cache, mismatch: said.update(cache=cache, mismatch=mismatch) or True
        config.get_timing_cache = lambda: SimpleNamespace(serialize=lambda: b"measured")
        said["config"] = config

        def create_network(flags: int) -> Any:
            said["network"] = flags
            tensor = SimpleNamespace(name="image", shape=(-1, 4, 4, 3), dtype=SimpleNamespace(name="HALF"))
            layer = SimpleNamespace(type=SimpleNamespace(name="CONVOLUTION"), num_inputs=1, num_outputs=0)
            layer.get_input = lambda index: tensor
            return SimpleNamespace(get_input=lambda index: tensor, num_layers=1, get_layer=lambda index: layer)

        def create_optimization_profile() -> Any:
            profile = SimpleNamespace()
            profile.set_shape = lambda name, *shapes: setattr(profile, "shape", (name, *shapes))
            return profile

        return SimpleNamespace(
            create_builder_config=lambda: config,
            create_network=create_network,
            create_optimization_profile=create_optimization_profile,
            build_serialized_network=lambda network, config: b"plan",
        )

    def OnnxParser(self, network: Any, log: Any) -> Any:
        return SimpleNamespace(parse=lambda graph: True)

    def Runtime(self, log: Any) -> Any:
        inspector = SimpleNamespace(get_engine_information=lambda kind: self.layers)
        engine = SimpleNamespace(create_engine_inspector=lambda: inspector)
        return SimpleNamespace(deserialize_cuda_engine=lambda plan: engine)


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Callable[..., FakeModule]:
    def put(version: str, layers: str = "{}") -> FakeModule:
        module = FakeModule(version, layers)
        monkeypatch.setattr(engine_module, "import_flavour", lambda kind: module)
        return module

    return put


@pytest.mark.parametrize(("version", "flags"), [("10.3.0", 2), ("10.16.1.11", 2), ("11.4.0.106", 0)])
def test_strong_typing_is_asked_for_where_it_is_a_choice(
    install: Callable[..., FakeModule], version: str, flags: int
) -> None:
    module = install(version)
    assert creation_flags(module, TENSORRT) == flags
    assert creation_flags(module, RTX) == 0
    assert engine_from_onnx(b"", TENSORRT, ("sm86",), EngineOptions()).layers == {"fp16": 1}
    assert module.said["network"] == flags
    assert module.said["cleared"] == "TF32"
    assert module.said["config"].profiling_verbosity.name == "DETAILED"


def test_options_and_profiles_reach_the_builder(install: Callable[..., FakeModule]) -> None:
    module = install("11.4.0.106")
    options = EngineOptions(
        profiles=profiles_from_text("1:8:64,128"),
        version_compatible=True,
        hardware_compatible="ampere-plus",
        workspace_mib=3,
    )
    engine_from_onnx(b"", TENSORRT, ("sm86",), options)
    assert module.said["profiles"] == [
        ("image", (1, 4, 4, 3), (8, 4, 4, 3), (64, 4, 4, 3)),
        ("image", (128, 4, 4, 3), (128, 4, 4, 3), (128, 4, 4, 3)),
    ]
    assert module.said["flags"] == ["VERSION_COMPATIBLE"]
    assert module.said["config"].hardware_compatibility_level.name == "AMPERE_PLUS"
    assert module.said["WORKSPACE"] == 3 * 2**20


def test_layers_are_read_back_from_the_engine_where_it_can_be_loaded(install: Callable[..., FakeModule]) -> None:
    install("11.4.0.106", '{"Layers": [{"LayerType": "gemm", "Inputs": [{"Format/Datatype": "Float"}]}]}')
    engine = engine_from_onnx(b"", TENSORRT, ("sm86",), EngineOptions(), local=True)
    assert (engine.layers, engine.layers_from) == ({"fp32": 1}, "inspector")


def test_measurements_are_kept_for_the_next_build(
    install: Callable[..., FakeModule], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRUEPORT_CACHE", str(tmp_path))
    file = timing_cache.cache_file("tensorrt", "11.4.0.106", "sm86")
    assert file == tmp_path / "timing" / "tensorrt-11.4.0.106-sm86.cache"
    module = install("11.4.0.106")
    engine_from_onnx(b"", TENSORRT, ("sm86",), EngineOptions(), cache=file)
    assert (module.said["cache"], file.read_bytes()) == (b"", b"measured")
    engine_from_onnx(b"", TENSORRT, ("sm86",), EngineOptions(), cache=file)
    assert (module.said["cache"], module.said["mismatch"]) == (b"measured", False)


def test_a_cache_that_can_not_be_kept_costs_time_only(install: Callable[..., FakeModule], tmp_path: Path) -> None:
    install("11.4.0.106")
    (tmp_path / "file").write_text("in the way")
    engine = engine_from_onnx(b"", TENSORRT, ("sm86",), EngineOptions(), cache=tmp_path / "file" / "x.cache")
    assert engine.plan == b"plan"


def test_where_no_builder_can_be_had_the_reason_is_told(
    install: Callable[..., FakeModule], monkeypatch: pytest.MonkeyPatch
) -> None:
    module = install("10.9.0")

    def fail(log: Any) -> Any:
        log.log(module.ILogger.Severity.ERROR, "CUDA initialization failure with error: 35")
        raise TypeError("pybind11::init(): factory function returned nullptr")

    monkeypatch.setattr(module, "Builder", fail)
    with pytest.raises(MissingError, match=r"TensorRT 10\.9\.0 can't build here: CUDA initialization failure"):
        engine_from_onnx(b"", TENSORRT, ("sm86",), EngineOptions())


def test_an_older_version_without_a_level_says_so(
    install: Callable[..., FakeModule], monkeypatch: pytest.MonkeyPatch
) -> None:
    module = install("10.3.0")
    monkeypatch.setattr(module, "HardwareCompatibilityLevel", Enum("Level", ["NONE", "AMPERE_PLUS"]), raising=False)
    with pytest.raises(UsageError, match=r"TensorRT 10\.3\.0 has no engines that are same-capability: upgrade it"):
        engine_from_onnx(b"", TENSORRT, ("sm86",), EngineOptions(hardware_compatible="same-capability"))
