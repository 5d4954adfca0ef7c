"""openvino:cpu: the precision that was asked for or none, answers of one's own, several threads, no telemetry."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper, numpy_helper

from trueport.runtime.errors import BundleError, ClosedError, InvalidRequestError, MissingError
from trueport.runtime.manifest import Precision, TensorSpec, Variant
from trueport.runtime.runner import RunnerOptions
from trueport.runtime.runners import openvino_cpu
from trueport.runtime.runners.openvino_cpu import OpenVinoRunner, float_hint, layers_of, settings, shared_core

pytest.importorskip("openvino")

Graphs = Callable[[Precision], bytes]
Variants = Callable[..., Variant]
ONE = RunnerOptions(threads=1)


def pictures(rows: int, seed: int = 0) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.random.default_rng(seed).integers(0, 255, (rows, 8, 8, 1), np.uint8)


@pytest.fixture(scope="module")
def runner(graphs: Graphs) -> OpenVinoRunner:
    from trueport.runtime.manifest import Bounds

    bounds = Bounds(max_abs=1, rms=1, noise_max_abs=0, noise_rms=0, noise_from=())
    variant = Variant(
        name="fp32", format="onnx", precision="fp32", reached={"fp32": 2}, file="model.fp32.onnx", bounds=bounds
    )
    return OpenVinoRunner(graphs("fp32"), variant, ONE)


def test_it_answers_what_onnxruntime_answers_in_any_batch(runner: OpenVinoRunner, graphs: Graphs) -> None:
    session = onnxruntime.InferenceSession(graphs("fp32"), providers=["CPUExecutionProvider"])
    for rows in (1, 2, 7, 32, 3, 4, 5, 6, 9, 10, 11):  # more sizes than have a model of their own
        images = pictures(rows, seed=rows)
        (expected,) = session.run(None, {"image": images})
        np.testing.assert_allclose(runner.run({"image": images})["logits"], expected, rtol=1e-5, atol=1e-4)


def test_tensors_are_those_of_the_graph(runner: OpenVinoRunner) -> None:
    assert runner.inputs == (TensorSpec("image", "uint8", (-1, 8, 8, 1)),)
    assert runner.outputs == (TensorSpec("logits", "float32", (-1, 3)),)


def test_the_report_is_read_back(runner: OpenVinoRunner) -> None:
    report = runner.report()
    assert (report.name, report.provider, report.device, report.threads) == ("openvino:cpu", "OpenVINO", "cpu", 1)
    assert report.layers == {"fp32": 2}
    assert set(report.versions) == {"openvino"}


def test_an_answer_stays_what_it_is_when_the_next_one_comes(runner: OpenVinoRunner) -> None:
    for rows in (1, 50, 51):  # a model of its own, and the one that is shared
        first = runner.run({"image": pictures(rows)})["logits"]
        kept = first.copy()
        runner.run({"image": 255 - pictures(rows)})
        np.testing.assert_array_equal(first, kept)
        assert first.flags.owndata


def test_what_can_not_be_written_or_lies_scattered_is_taken(runner: OpenVinoRunner) -> None:
    images = pictures(4)
    expected = runner.run({"image": images})["logits"]
    read_only = images.copy()
    read_only.flags.writeable = False
    np.testing.assert_array_equal(runner.run({"image": read_only})["logits"], expected)
    np.testing.assert_array_equal(runner.run({"image": np.repeat(images, 2, axis=0)[::2]})["logits"], expected)


def test_several_threads_with_several_batch_sizes(runner: OpenVinoRunner) -> None:
    batches = [pictures(rows, seed=rows) for rows in (1, 3, 12, 13)]
    expected = [runner.run({"image": batch})["logits"] for batch in batches]
    wrong: list[int] = []

    def ask(index: int) -> None:
        for _ in range(50):
            found = runner.run({"image": batches[index]})["logits"]
            if not np.array_equal(found, expected[index]):
                wrong.append(index)

    threads = [threading.Thread(target=ask, args=(number % 4,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.parametrize(
    ("feeds", "message"),
    [
        ({"pixels": pictures(1)}, "expected image, found pixels"),
        ({}, "expected image, found nothing"),
        ({"image": pictures(1), "more": pictures(1)}, "found image, more"),
        ({"image": pictures(1).astype(np.float32)}, r"uint8 \(N, 8, 8, 1\), found float32 \(1, 8, 8, 1\)"),
        ({"image": pictures(1)[:, :4]}, r"found uint8 \(1, 4, 8, 1\)"),
        ({"image": pictures(1)[0]}, r"found uint8 \(8, 8, 1\)"),
        ({"image": pictures(0)}, r"found uint8 \(0, 8, 8, 1\)"),
    ],
)
def test_other_tensors_are_refused(runner: OpenVinoRunner, feeds: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidRequestError, match=message):
        runner.run(feeds)


def test_a_closed_runner_says_so(graphs: Graphs, variant_of: Variants) -> None:
    runner = OpenVinoRunner(graphs("fp32"), variant_of("fp32"), ONE)
    runner.close()
    runner.close()
    with pytest.raises(ClosedError):
        runner.run({"image": pictures(1)})
    assert runner.report().provider == "OpenVINO"


def test_it_may_be_closed_while_a_model_is_compiled_beside_the_batches(
    graphs: Graphs, variant_of: Variants, caplog: pytest.LogCaptureFixture
) -> None:
    runner = OpenVinoRunner(graphs("fp32"), variant_of("fp32"), ONE)
    models, begun = runner._models, threading.Event()
    assert models is not None
    compiled = models._compiled
    expected = [runner.run({"image": pictures(rows)})["logits"] for rows in range(1, 10)][-1]

    def beside(rows: int | None) -> Any:
        begun.set()
        return compiled(rows)

    models._compiled = beside
    for _ in range(40):
        found = runner.run({"image": pictures(9)})["logits"]
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-4)
    assert begun.wait(60)
    runner.close()
    if (compiling := models._replacing) is not None:
        compiling.join(60)
    assert models._replacing is None
    assert not models._fixed
    assert not caplog.records


@pytest.mark.parametrize("damage", ["empty", "text", "half"])
def test_a_damaged_graph_is_the_bundle_s_fault(graphs: Graphs, variant_of: Variants, damage: str) -> None:
    whole = graphs("fp32")
    graph = {"empty": b"", "text": b"no graph at all", "half": whole[: len(whole) // 2]}[damage]
    with pytest.raises(BundleError, match=r"OpenVINO can't read model\.onnx: [^:]+; export") as caught:
        OpenVinoRunner(graph, variant_of("fp32"), ONE, name="model.onnx")
    assert "\n" not in str(caught.value)


def test_int8_is_computed_in_integers(graphs: Graphs, variant_of: Variants) -> None:
    runner = OpenVinoRunner(graphs("int8"), variant_of("int8"), ONE)
    assert runner.report().layers.get("int8")


def test_a_float_graph_is_no_int8_variant(graphs: Graphs, variant_of: Variants) -> None:
    with pytest.raises(MissingError, match=r"expected int8 .* OpenVINO 20\S+ computes it in fp32 \(2 layers in fp32\)"):
        OpenVinoRunner(graphs("fp32"), variant_of("int8"), ONE)


# What is told to OpenVINO


@pytest.mark.parametrize(
    ("precision", "float_type", "capabilities", "hint"),
    [
        ("fp32", "fp32", ["FP32", "BF16"], "f32"),
        ("fp32", "bf16", ["FP32", "BF16"], "f32"),
        ("bf16", "fp32", ["FP32", "BF16"], "dynamic"),
        ("fp16", "fp32", ["FP32", "FP16"], "dynamic"),
        ("int8", "fp32", ["FP32", "INT8"], "f32"),
        ("int8", "bf16", ["FP32", "INT8", "BF16"], "bf16"),
    ],
)
def test_floats_are_computed_as_asked(
    precision: Precision, float_type: Any, capabilities: list[str], hint: str
) -> None:
    assert float_hint(precision, RunnerOptions(float_type=float_type), capabilities) == hint


@pytest.mark.parametrize(
    ("precision", "float_type", "words"),
    [
        ("fp16", "fp32", "AVX512-FP16 or AMX-FP16.* use the fp32 variant"),
        ("bf16", "fp32", "AVX512-BF16 or AMX-BF16.* use the fp32 variant"),
        ("int8", "bf16", "computes in bf16 .* use float_type fp32"),
    ],
)
def test_a_precision_that_the_cpu_lacks_is_refused(precision: Precision, float_type: Any, words: str) -> None:
    with pytest.raises(MissingError, match=words):
        float_hint(precision, RunnerOptions(float_type=float_type), ["FP32", "INT8"])


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_what_a_graph_in_16_bits_keeps_in_float32_is_computed_in_it(
    graphs: Graphs, variant_of: Variants, precision: Precision
) -> None:
    if precision.upper() not in shared_core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        pytest.skip(f"this processor does not compute in {precision}")
    model = onnx.load_from_string(graphs(precision))
    [last] = [node for node in model.graph.node if node.op_type == "Cast" and node.output == ["logits"]]
    last.output[0] = "exact"
    scale = numpy_helper.from_array(
        np.array(70_001, np.float32), "scale"
    )  # overflows float16, and is no number of bfloat16
    model.graph.initializer.append(scale)
    model.graph.node.append(helper.make_node("Mul", ["exact", "scale"], ["large"]))
    model.graph.node.append(helper.make_node("Floor", ["large"], ["whole"]))
    model.graph.node.append(helper.make_node("Div", ["whole", "scale"], ["logits"]))
    feeds = {"image": pictures(5)}
    plain = OpenVinoRunner(graphs(precision), variant_of(precision), ONE).run(feeds)["logits"]
    kept = OpenVinoRunner(model.SerializeToString(), variant_of(precision), ONE).run(feeds)["logits"]
    np.testing.assert_allclose(kept, plain, rtol=1e-3)


def test_threads_are_of_one_inference_and_their_sum_is_bounded() -> None:
    told = settings("f32", threads=2, streams=3)
    assert (told["INFERENCE_NUM_THREADS"], told["NUM_STREAMS"]) == (6, 3)


def test_no_more_batches_at_once_than_cores_have_room_for(
    graphs: Graphs, variant_of: Variants, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openvino_cpu, "available_cores", lambda: 5)
    for threads, at_once in ((None, 1), (2, 2), (8, 1)):
        runner = OpenVinoRunner(graphs("fp32"), variant_of("fp32"), RunnerOptions(threads=threads))
        assert runner._settings["NUM_STREAMS"] == at_once
        assert runner.report().threads == (threads or 5)


def test_layers_are_counted_by_what_they_compute_in() -> None:
    nodes = [("Convolution", "u8"), ("Convolution", "bf16"), ("FullyConnected", "i8"), ("Reorder", "f32")]
    assert layers_of(nodes) == {"int8": 2, "bf16": 1}


# The package


def test_without_the_package_the_extra_is_named(
    graphs: Graphs, variant_of: Variants, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(MissingError, match=r"needs openvino, .* pip install 'trueport\[openvino\]'"):
        OpenVinoRunner(graphs("fp32"), variant_of("fp32"), ONE)


def test_nothing_is_written_or_sent(graphs: Graphs, tmp_path: Path) -> None:
    """In a fresh process, since the package may be loaded here: it would leave an id in the home folder, and call."""
    (tmp_path / "model.onnx").write_bytes(graphs("fp32"))
    home = tmp_path / "home"
    home.mkdir()
    done = subprocess.run(
        [sys.executable, "-B", "-c", WATCHED, str(tmp_path / "model.onnx")],
        cwd=home, env={"HOME": str(home), "PATH": ""}, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"
    assert not list(home.iterdir())


WATCHED = """
import sys
seen = []
def watch(event, arguments):
    if event.startswith("socket.") or event in ("subprocess.Popen", "os.mkdir"):
        seen.append((event, str(arguments)))
sys.addaudithook(watch)
import numpy as np
from pathlib import Path
from trueport.runtime.manifest import Bounds, Variant
from trueport.runtime.runner import RunnerOptions
from trueport.runtime.runners.openvino_cpu import OpenVinoRunner
bounds = Bounds(max_abs=1, rms=1, noise_max_abs=0, noise_rms=0, noise_from=())
variant = Variant(name="fp32", format="onnx", precision="fp32", reached={"fp32": 2}, file="model.onnx", bounds=bounds)
runner = OpenVinoRunner(Path(sys.argv[1]).read_bytes(), variant, RunnerOptions(threads=1))
runner.run({"image": np.zeros((2, 8, 8, 1), np.uint8)})
assert "openvino_telemetry" not in sys.modules
print(seen)
"""


SIGNALLED = """
import gc, os, signal, sys, threading
from pathlib import Path

from trueport.runtime.manifest import Bounds, Variant
from trueport.runtime.runner import RunnerOptions
from trueport.runtime.runners.openvino_cpu import OpenVinoRunner

bounds = Bounds(max_abs=1, rms=1, noise_max_abs=0, noise_rms=0, noise_from=())
variant = Variant(name="fp32", format="onnx", precision="fp32", reached={"fp32": 2}, file="graph", bounds=bounds)
graph = Path(sys.argv[1]).read_bytes()
runners = [OpenVinoRunner(graph, variant, RunnerOptions(threads=1))]

def close():
    runners.pop().close()
    gc.collect()

closing = threading.Thread(target=close)
closing.start()
closing.join()
signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))
os.kill(os.getpid(), signal.SIGTERM)
signal.pause()
"""


def test_a_signal_is_handled_after_another_thread_has_closed_the_runner(graphs: Graphs, tmp_path: Path) -> None:
    graph = tmp_path / "graph"
    graph.write_bytes(graphs("fp32"))
    done = subprocess.run(
        [sys.executable, "-c", SIGNALLED, graph], check=False, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (7, "")
