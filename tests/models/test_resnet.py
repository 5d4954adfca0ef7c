"""ResNet is torchvision's by names, shapes and logits; the paper's strides and identity blocks are options."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import onnxruntime
import pytest
import torch
import torchvision
from torch import nn

from trueport import models
from trueport.export.graph import onnx_from_original
from trueport.export.original import Original, OriginalRunner
from trueport.models.resnet import BasicBlock, Bottleneck, ResNet
from trueport.runtime.manifest import Normalisation, Preprocessing

PARAMETERS = {18: 11_689_512, 34: 21_797_672, 50: 25_557_032, 101: 44_549_160, 152: 60_192_808}


@pytest.mark.parametrize("layers", PARAMETERS)
def test_tensors_are_torchvisions(layers: int) -> None:
    name = f"resnet{layers}"
    with torch.device("meta"):
        ours = models.create(name, num_classes=1000)
        theirs = getattr(torchvision.models, name)()
    assert models.spec(name).imagenet == name
    expected = [(key, value.shape) for key, value in theirs.state_dict().items()]
    assert [(key, value.shape) for key, value in ours.state_dict().items()] == expected
    assert sum(parameter.numel() for parameter in ours.parameters()) == PARAMETERS[layers]


@pytest.mark.parametrize("layers", PARAMETERS)
def test_its_number_is_that_of_its_layers(layers: int) -> None:
    with torch.device("meta"):
        model = models.create(f"resnet{layers}", num_classes=10)
    counted = [
        key
        for key, layer in model.named_modules()
        if isinstance(layer, nn.Conv2d | nn.Linear) and "downsample" not in key
    ]
    assert len(counted) == layers


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_logits_are_torchvisions_on_the_same_weights(name: str, lively: Callable[[nn.Module], nn.Module]) -> None:
    torch.manual_seed(0)
    ours = lively(models.create(name, num_classes=7))
    with torch.device("meta"):
        theirs = getattr(torchvision.models, name)(num_classes=7).eval()
    theirs.load_state_dict(ours.state_dict(), assign=True)
    image = torch.randn(2, 3, 96, 64)
    with torch.inference_mode():
        expected = theirs(image)
        torch.testing.assert_close(ours(image), expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize(("name", "factor"), [("resnet34", 1), ("resnet101", 4)])
def test_sizes(name: str, factor: int, output_shapes: Callable[..., list[tuple[int, ...]]]) -> None:
    with torch.device("meta"):
        model = models.create(name, num_classes=10)
        image = torch.rand(1, 3, 224, 224)
        assert output_shapes(model, image, nn.MaxPool2d) == [(64, 56, 56)]
        blocks = output_shapes(model, image, BasicBlock, Bottleneck)
    ends = [blocks[0], *(after for before, after in itertools.pairwise(blocks) if before != after)]
    assert ends == [(64 * 2**k * factor, 56 // 2**k, 56 // 2**k) for k in range(4)]


@pytest.mark.parametrize("place", ["3x3", "1x1"])
def test_stride_is_where_it_is_asked_for(place: str) -> None:
    with torch.device("meta"):
        model = models.create("resnet50", num_classes=10, stride_in=place)
    for stage, stride in ((1, 1), (2, 2), (3, 2), (4, 2)):
        strides = {
            f"conv{index}": model.get_submodule(f"layer{stage}.0.conv{index}").stride[0]  # type: ignore[index]
            for index in (1, 2, 3)
        }
        strided = "conv2" if place == "3x3" else "conv1"
        assert strides == {"conv1": 1, "conv2": 1, "conv3": 1, strided: stride}


def test_other_places_for_the_stride_are_refused() -> None:
    with pytest.raises(models.ModelArgumentError, match="3x3 or 1x1, found '5x5'"):
        models.create("resnet50", num_classes=10, stride_in="5x5")
    with pytest.raises(models.ModelArgumentError, match="no argument 'stride_in'"):
        models.create("resnet18", num_classes=10, stride_in="1x1")


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("name", "maps"), [("resnet18", 64), ("resnet50", 256), ("resnet20", 16)])
def test_a_block_whose_last_norm_starts_at_zero_is_the_identity(name: str, maps: int, training: bool) -> None:
    torch.manual_seed(0)
    positive = torch.rand(2, maps, 6, 6)  # what the ReLU before a block lets through
    silent = models.create(name, num_classes=3, zero_init=True).train(training).get_submodule("layer1.1")
    loud = models.create(name, num_classes=3).train(training).get_submodule("layer1.1")
    with torch.no_grad():
        assert torch.equal(silent(positive), positive)
        assert not torch.equal(loud(positive), positive)


def test_any_size_is_taken() -> None:
    model = models.create("resnet18", num_classes=3, channels=1).eval()
    assert model(torch.rand(1, 1, 28, 28)).shape == (1, 3)
    assert model(torch.rand(1, 1, 1, 1)).shape == (1, 3)


@pytest.mark.slow
def test_exported_bottlenecks_agree(lively: Callable[[nn.Module], nn.Module]) -> None:
    torch.manual_seed(0)

    def make(channels: int, maps: int, stride: int, shortcut: nn.Module | None) -> Bottleneck:
        return Bottleneck(channels, maps, stride, shortcut)

    original = Original(
        lively(ResNet(make, (1, 2, 1, 1), 16, 3, 3)),
        ("a", "b", "c"),
        Preprocessing(height=32, width=32, mode="RGB"),
        Normalisation((0.5,) * 3, (0.5,) * 3),
        "bottlenecks",
    )
    graph = onnx_from_original(original).SerializeToString()
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    images = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    expected = OriginalRunner(original, threads=1).run({"image": images})["logits"]
    (logits,) = session.run(None, {"image": images})
    assert np.ptp(expected) > 0
    assert np.abs(logits - expected).max() < 1e-5 * np.abs(expected).max()
