"""The head is found by what was computed, even where other layers have as many rows as there are classes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from trueport import models
from trueport.models.head import head_parameters

CLASSES = 64
"""As many as ResNet's and GoogLeNet's first convolutions have maps."""


@pytest.mark.parametrize(
    ("name", "size", "heads"),
    [
        ("lenet", 32, ["fc3"]),
        ("resnet20", 32, ["fc"]),
        ("resnet18", 64, ["fc"]),
        ("torchvision/squeezenet1_1", 64, ["classifier.1"]),
        ("torchvision/googlenet", 64, ["aux1.fc2", "aux2.fc2", "fc"]),
        ("timm/test_vit", 160, ["head"]),
        ("timm/deit_tiny_distilled_patch16_224", 224, ["head", "head_dist"]),
    ],
)
def test_head_is_the_last_layer_and_those_of_the_auxiliaries(name: str, size: int, heads: list[str]) -> None:
    module = models.create(name, num_classes=CLASSES).eval()
    found = head_parameters(module, CLASSES, torch.zeros(2, 3, size, size))
    assert list(found) == [f"{head}.{part}" for head in heads for part in ("weight", "bias")]


def test_module_and_generator_are_as_they_were() -> None:
    module = models.create("resnet18", num_classes=5)
    module.get_submodule("layer1").eval()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    modes = [part.training for part in module.modules()]
    state = torch.get_rng_state()
    head_parameters(module, 5, torch.ones(2, 3, 64, 64))
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
    assert [part.training for part in module.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)
    assert all(parameter.grad is None for parameter in module.parameters())


def test_a_frozen_module_has_its_head_all_the_same() -> None:
    module = models.create("lenet", num_classes=5).requires_grad_(False)
    assert head_parameters(module, 5, torch.zeros(2, 3, 32, 32)) == ("fc3.weight", "fc3.bias")
    assert not any(parameter.requires_grad for parameter in module.parameters())


def test_last_weights_without_a_row_for_each_class_are_refused() -> None:
    class Mean(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 6, 3)

        def forward(self, image: Tensor) -> Tensor:
            maps: Tensor = self.conv(image)
            return maps.mean((2, 3)).reshape(-1, 3, 2).sum(2)

    with pytest.raises(
        ValueError, match=r"last layer with 3 rows, .* found conv.bias \(6,\), conv.weight \(6, 3, 3, 3\)"
    ):
        head_parameters(Mean(), 3, torch.zeros(2, 3, 8, 8))
