"""The diagram is well-formed, loads nothing, stays on its page, and shows stages, branches and repeats."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch
from torch import Tensor, nn

from trueport.models.description import describe as described_module
from trueport.pipeline.describe import Described, describe
from trueport.pipeline.diagram import diagram, parts, write_diagram

SVG = "{http://www.w3.org/2000/svg}"


def texts(svg: str) -> list[str]:
    return [element.text or "" for element in ElementTree.fromstring(svg).iter(f"{SVG}text")]


def named(module: nn.Module, picture: tuple[int, int, int], arch: str = "own") -> Described:
    return Described(arch=arch, arguments={}, classes=2, description=described_module(module, picture))


@pytest.mark.parametrize("arch", ["lenet", "bpnet", "alexnet", "vgg_d", "googlenet", "resnet18", "resnet152"])
def test_diagram_is_one_legible_page(arch: str) -> None:
    found = describe(arch)
    svg = diagram(found)
    assert svg == diagram(describe(arch))
    root = ElementTree.fromstring(svg)
    _, _, width, height = map(float, root.attrib["viewBox"].split())
    assert width <= 1650
    assert height <= 1200
    assert not re.search(r"href|url\((?!#)|<script|<image|<style|font-face", svg)
    words = texts(svg)
    assert arch in words
    assert "x".join(map(str, found.description.picture)) in words
    assert any(f"{found.description.parameters / 10**3:.0f}"[:2] in word and "MACs" in word for word in words)
    for element in root.iter(f"{SVG}text"):
        assert float(element.attrib["font-size"]) >= 8.5


def test_stages_of_alexnet_are_captioned() -> None:
    words = texts(diagram(describe("alexnet")))
    for word in ("conv 11x11", "/4 +[1, 2]", "96x55x55", "256x27x27", "256x6x6", "2048", "relu, lrn"):
        assert word in words


def test_inception_has_four_lanes_and_residual_blocks_are_folded() -> None:
    google = texts(diagram(describe("googlenet")))
    assert google.count("concat") == 9
    assert "inception5b" in google
    deep = describe("resnet152").description.rows
    assert [(part.name, part.count) for part in parts(deep) if len(part.rows) > 1] == [
        ("layer1.0", 1), ("layer1.1", 2), ("layer2.0", 1), ("layer2.1", 7),
        ("layer3.0", 1), ("layer3.1", 35), ("layer4.0", 1), ("layer4.1", 2),
    ]  # fmt: skip
    assert "layer3.1 ×35" in texts(diagram(describe("resnet152")))


@pytest.mark.parametrize("arch", ["googlenet", "resnet50", "lenet"])
def test_every_layer_is_drawn_once(arch: str) -> None:
    rows = describe(arch).description.rows
    drawn = sum(len(part.rows) * part.count for part in parts(rows))
    assert drawn == len(rows)


def test_names_are_escaped() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parts = nn.ModuleDict({"<b>&\x01\"'": nn.Conv2d(1, 2, 3)})

        def forward(self, image: Tensor) -> Tensor:
            (only,) = self.parts.values()
            answer: Tensor = only(image)
            return answer

    svg = diagram(named(Odd(), (1, 8, 8), "<script>alert(1)</script>"))
    assert "<script" not in svg
    assert "<script>alert(1)</script>" in texts(svg)
    assert any("<b>&\ufffd\"'" in word for word in texts(svg))


def test_a_network_without_modules_of_its_own_and_one_too_large_to_draw_in_full_are_drawn() -> None:
    class Flat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.convs = nn.ModuleList(nn.Conv2d(1, 1, 3, padding=1) for _ in range(20))

        def forward(self, image: Tensor) -> Tensor:
            for conv in self.convs:
                image = image + torch.relu(conv(image))
            return image

    assert "convs.0" in texts(diagram(named(Flat(), (1, 8, 8))))
    wrapped = texts(diagram(named(nn.Sequential(Flat(), nn.Conv2d(1, 2, 1)), (1, 8, 8))))
    assert "20 conv" in wrapped
    assert "20 add" in wrapped


def test_file_is_written(tmp_path: Path) -> None:
    found = describe("lenet")
    write_diagram(tmp_path / "lenet.svg", found)
    assert (tmp_path / "lenet.svg").read_text(encoding="utf-8") == diagram(found)
