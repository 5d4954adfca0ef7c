"""VGG is torchvision's where torchvision has it, and the paper's where it does not."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torchvision
from torch import nn

from trueport import models

PARAMETERS = {"vgg11": 132_863_336, "vgg13": 133_047_848, "vgg16": 138_357_544, "vgg19": 143_667_240}
MILLIONS = {"vgg_a": 133, "vgg_a_lrn": 133, "vgg_b": 133, "vgg_c": 134, "vgg_d": 138, "vgg_e": 144}
"""The paper's table 2."""
LAYERS = {"vgg_a": 11, "vgg_a_lrn": 11, "vgg_b": 13, "vgg_c": 16, "vgg_d": 16, "vgg_e": 19}


def count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("suffix", ["", "_bn"])
@pytest.mark.parametrize("name", PARAMETERS)
def test_tensors_are_torchvisions(name: str, suffix: str) -> None:
    with torch.device("meta"):
        ours = models.create(name + suffix, num_classes=1000)
        theirs = getattr(torchvision.models, name + suffix)()
    assert models.spec(name + suffix).imagenet == name + suffix
    expected = [(key, value.shape) for key, value in theirs.state_dict().items()]
    assert [(key, value.shape) for key, value in ours.state_dict().items()] == expected
    if not suffix:
        assert count(ours) == PARAMETERS[name]


@pytest.mark.parametrize("name", MILLIONS)
def test_layers_and_parameters_are_the_papers(name: str) -> None:
    with torch.device("meta"):
        model = models.create(name, num_classes=1000)
    assert round(count(model) / 1e6) == MILLIONS[name]
    assert sum(isinstance(layer, nn.Conv2d | nn.Linear) for layer in model.modules()) == LAYERS[name]


@pytest.mark.parametrize("size", [32, 64, 224])
def test_logits_are_torchvisions_on_the_same_weights(size: int, lively: Callable[[nn.Module], nn.Module]) -> None:
    torch.manual_seed(0)
    ours = lively(models.create("vgg11_bn", num_classes=7, width=48))
    with torch.device("meta"):
        theirs = torchvision.models.vgg11_bn(num_classes=7).eval()
        theirs.classifier = models.create("vgg11_bn", num_classes=7, width=48).eval().get_submodule("classifier")
    theirs.load_state_dict(ours.state_dict(), assign=True)
    image = torch.randn(2, 3, size, size)
    with torch.inference_mode():
        expected = theirs(image)
        torch.testing.assert_close(ours(image), expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


def test_a_pool_halves_the_picture_after_each_stage(output_shapes: Callable[..., list[tuple[int, ...]]]) -> None:
    with torch.device("meta"):
        model = models.create("vgg_d", num_classes=3)
        shapes = output_shapes(model, torch.rand(1, 3, 224, 224), nn.MaxPool2d)
    assert shapes == [(64, 112, 112), (128, 56, 56), (256, 28, 28), (512, 14, 14), (512, 7, 7)]


def test_c_ends_its_last_three_stages_with_1x1_convolutions() -> None:
    with torch.device("meta"):
        model = models.create("vgg_c", num_classes=3)
    kernels = [layer.kernel_size[0] for layer in model.modules() if isinstance(layer, nn.Conv2d)]
    assert kernels == [3, 3, 3, 3, 3, 3, 1, 3, 3, 1, 3, 3, 1]


@pytest.mark.parametrize(("name", "first"), [("vgg_a_lrn", 2), ("vgg_a_lrn_bn", 3)])
def test_a_lrn_normalises_after_the_first_convolution_alone(name: str, first: int) -> None:
    with torch.device("meta"):
        features = models.create(name, num_classes=3).get_submodule("features")
    norms = [key for key, layer in features.named_children() if isinstance(layer, nn.LocalResponseNorm)]
    assert norms == [str(first)]


@pytest.mark.parametrize("size", [32, 33, 97])
def test_other_sizes(size: int) -> None:
    model = models.create("vgg_a", num_classes=3, width=8).eval()
    assert model(torch.rand(1, 3, size, size + 3)).shape == (1, 3)


@pytest.mark.parametrize("name", ["vgg_a", "alexnet"])
def test_no_width_is_refused(name: str) -> None:
    with pytest.raises(models.ModelArgumentError, match="at least one unit, found width = 0"):
        models.create(name, num_classes=3, width=0)
