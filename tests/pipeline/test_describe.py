"""describe: what users ask for, what they see at any width, and the graph that is shipped has the same sizes."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch

from trueport import models
from trueport.export.graph import onnx_from_original
from trueport.export.original import Original
from trueport.models.description import Row
from trueport.pipeline.console import print_table
from trueport.pipeline.describe import caption, count_words, describe, description_table, padding, same
from trueport.runtime.errors import UsageError
from trueport.runtime.manifest import Normalisation, Preprocessing


def test_table_says_what_the_course_says_of_alexnet() -> None:
    table = description_table(describe("alexnet"), 200)
    rows = [dict(zip(table.columns, row, strict=True)) for row in table.rows]
    first = rows[1]
    assert (first["kernel"], first["stride"], first["padding"], first["output"]) == ("11x11", "4", "[1, 2]", "96x55x55")
    assert first["then"] == "relu, lrn"
    assert [row["output"].partition("x")[2] for row in rows[1:9]] == [
        f"{size}x{size}" for size in (55, 27, 27, 13, 13, 13, 13, 6)
    ]
    assert table.title == "alexnet, 1,000 classes, pictures of 3x224x224"
    assert any("28,868,968 parameters, 115.48 MB in float32" in note for note in table.notes)


@pytest.mark.parametrize("width", [200, 130, 100, 80, 60])
@pytest.mark.parametrize("arch", ["lenet", "alexnet", "googlenet"])
def test_table_fits_the_terminal_and_breaks_no_number(
    arch: str, width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    found = describe(arch)
    print_table(description_table(found))
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= width
    for row in found.description.rows:
        assert "x".join(map(str, row.output)) in out
    assert ("parameters and MACs of each layer" in out) == (width < 72)


def test_json_holds_every_row(trueport: Any) -> None:
    code, out, err = trueport("describe", "lenet", "--json", "-", "--input", "1x32x32", "--classes", "4")
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert (found["arch"], found["classes"]) == ("lenet", 4)
    description = found["description"]
    assert description["picture"] == [1, 32, 32]
    assert description["parameters"] == sum(row["parameters"] for row in description["rows"])
    conv = description["rows"][1]
    assert conv["output"] == [16, 28, 28]
    assert conv["kernel"] == [5, 5]
    assert conv["formula"] == ["(32 - 5)/1 + 1 = 28"] * 2
    assert conv["macs"] == 28 * 28 * 16 * 25
    assert description["rows"][-1]["output"] == [4]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["lenett"], "unknown architecture 'lenett': did you mean"),
        (["lenet", "--input", "32"], "expected --input CxHxW such as 3x224x224, found '32'"),
        (["lenet", "--input", "0x32x32"], "expected --input CxHxW"),
        (["lenet", "--input", "3x31x32"], "lenet takes 32 x 32 pictures and no others, found 31 x 32: change --input"),
        (["lenet", "--input", "4x32x32"], "lenet takes 1 or 3 input channels, found --input 4x32x32"),
        (["lenet", "--set", "depth=3"], "lenet has no argument 'depth'"),
        (["lenet", "--set", "depth"], "expected --set key=value"),
        (["bpnet", "--input", "3x25x12"], "bpnet takes 25 x 15 or 25 x 14 or 25 x 13 pictures and no others, found"),
        (["torchvision/alexnet", "--input", "3x20x20"], "at least 63 x 63 pixels, found 20 x 20"),
    ],
)
def test_what_cannot_be_described_is_one_sentence(trueport: Any, arguments: list[str], sentence: str) -> None:
    code, out, err = trueport("describe", *arguments)
    assert (code, out) == (2, "")
    assert sentence in err
    assert err.count("\n") == 1


def test_arguments_of_the_architecture_reach_it() -> None:
    assert describe("bpnet", changes=["hidden=9"]).description.parameters == 26 * 9 + 10 * 10
    assert describe("bpnet", changes=["hidden=9"]).arguments == {"hidden": 9}
    with pytest.raises(UsageError, match="hidden"):
        describe("bpnet", changes=["hidden=0"])


def test_brought_models_are_described() -> None:
    found = describe("torchvision/resnet18").description
    assert found.macs == 1_814_073_344
    assert found.parameters == 11_689_512
    assert found.device == "meta"


def test_a_size_that_arguments_change_is_the_one_described() -> None:
    assert describe("timm/vit_tiny_patch16_224", changes=["img_size=32"]).description.picture == (3, 32, 32)
    with pytest.raises(UsageError, match="takes 32 x 32 pictures and no others, found 224 x 224"):
        describe("timm/vit_tiny_patch16_224", "3x224x224", changes=["img_size=32"])


def test_own_code_is_described(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = "from torch import nn\ndef flat(): return nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 2))\n"
    (tmp_path / "described_net.py").write_text(code, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    found = describe("described_net:flat", "3x8x8")
    assert (found.classes, found.description.parameters) == (2, 3 * 8 * 8 * 2 + 2)
    with pytest.raises(UsageError, match=r"for pictures of 3x224x224: .* cannot be multiplied .*; name their size"):
        describe("described_net:flat")


def graph_of(arch: str) -> onnx.ModelProto:
    spec = models.spec(arch)
    channels = spec.channels[-1]
    torch.manual_seed(0)
    original = Original(
        models.create(arch, num_classes=5, channels=channels),
        tuple("abcde"),
        Preprocessing(height=spec.size[0], width=spec.size[1], mode="L" if channels == 1 else "RGB"),
        Normalisation((0.5,) * channels, (0.5,) * channels),
        arch,
    )
    return onnx.shape_inference.infer_shapes(onnx_from_original(original))


@pytest.mark.parametrize(
    "arch",
    [
        "lenet",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("bpnet", "alexnet", "googlenet", "resnet18")),
    ],
)
def test_sizes_and_windows_are_those_of_the_exported_graph(arch: str) -> None:
    graph = graph_of(arch).graph
    shapes = {
        value.name: tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim)[1:]
        for value in (*graph.value_info, *graph.output)
    }
    weights = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    exported = Counter[Any]()
    for node in graph.node:
        given = {item.name: onnx.helper.get_attribute_value(item) for item in node.attribute}
        if node.op_type in ("Conv", "MaxPool"):
            kernel = tuple(given["kernel_shape"]) if "kernel_shape" in given else weights[node.input[1]][2:]
            kind = "conv" if node.op_type == "Conv" else "max pool"
            exported[kind, kernel, tuple(given["strides"]), shapes[node.output[0]]] += 1
        elif node.op_type in ("Gemm", "MatMul"):
            exported["linear", (), (), shapes[node.output[0]]] += 1
    rows: list[Row] = describe(arch, classes=5).description.rows
    told = Counter(
        (row.kind, row.kernel, row.stride, row.output) for row in rows if row.kind in ("conv", "max pool", "linear")
    )
    assert told == exported
    assert exported


def test_words() -> None:
    row = Row(
        name="x", kind="conv", output=(1, 1, 1), kernel=(3, 5), stride=(2, 1), padding=((0, 0), (1, 2)), dilation=(1, 1)
    )
    assert caption(row) == "conv 3x5 /2x1 +0x[1, 2]"
    assert padding(row) == "0x[1, 2]"
    assert same((2, 2)) == "2"
    assert [count_words(count) for count in (7, 999, 1000, 714_188_480, 999_960_000, 15_470_264_320)] == [
        "7", "999", "1 k", "714.2 M", "1 G", "15.47 G",
    ]  # fmt: skip


def test_a_folder_in_the_diagram_s_place_is_a_sentence(trueport: Any, tmp_path: Path) -> None:
    code, _, err = trueport("describe", "lenet", "--diagram", tmp_path)
    assert code == 2
    assert "Traceback" not in err
