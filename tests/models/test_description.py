"""Descriptions: the course's formulas, torch's own shapes, torchvision's counts, and gradients by brute force."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional

from trueport import models
from trueport.models.description import (
    Description,
    DescriptionError,
    Row,
    describe,
    output_size,
    receptive_field,
)


def on_meta(name: str, **arguments: Any) -> nn.Module:
    with torch.device("meta"):
        module: nn.Module = torchvision.models.get_model(name, weights=None, **arguments)
    return module


def own(name: str, **arguments: Any) -> Description:
    spec = models.spec(name)
    with torch.device("meta"):
        module = models.create(name, num_classes=1000, channels=spec.channels[-1], **arguments)
    return describe(module, (spec.channels[-1], *spec.size))


def of_kind(description: Description, *kinds: str) -> list[Row]:
    return [row for row in description.rows if row.kind in kinds]


# The formulas


def test_two_3x3_see_5x5_and_three_see_7x7() -> None:
    assert receptive_field([3, 3], [1, 1]) == 5
    assert receptive_field([3, 3, 3], [1, 1, 1]) == 7
    for count, seen in ((2, 5), (3, 7)):
        chain = nn.Sequential(*(nn.Conv2d(1, 1, 3) for _ in range(count)))
        assert describe(chain, (1, 32, 32)).rows[-1].field == (seen, seen)


def test_receptive_field_by_hand() -> None:
    assert receptive_field([], []) == 1
    assert receptive_field([11, 3, 5, 3, 3, 3, 3, 3], [4, 2, 1, 2, 1, 1, 1, 2]) == 195  # AlexNet up to its last pool
    assert receptive_field([3], [1], [2]) == 5
    assert receptive_field([3, 3], [2, 1], [1, 3]) == 15  # 2 (7 - 1) + 3
    with pytest.raises(ValueError, match="zip"):
        receptive_field([3, 3], [1])


@pytest.mark.parametrize("seed", range(8))
def test_sizes_and_fields_of_random_chains_agree_with_torch_and_the_pure_function(seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)

    def number(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (1,), generator=draw))

    layers: list[nn.Module] = []
    windows = []
    for _ in range(4):
        kernel, stride, dilation = (
            (number(1, 4), number(1, 4)),
            (number(1, 2), number(1, 2)),
            (number(1, 2), number(1, 2)),
        )
        padding = tuple(min(number(0, 2), size // 2) for size in kernel)
        if number(0, 1):
            layers.append(nn.MaxPool2d(kernel, stride, padding, dilation, ceil_mode=bool(number(0, 1))))
        else:
            layers.append(nn.Conv2d(2, 2, kernel, stride, padding, dilation))  # type: ignore[arg-type]
        windows.append((kernel, stride, dilation))
    chain = nn.Sequential(*layers)
    found = describe(chain, (2, 61, 83))
    image = torch.rand(1, 2, 61, 83)
    for row, layer in zip(found.rows[1:], chain, strict=True):
        image = layer(image)
        assert row.output == image.shape[1:]  # describe itself holds them against the formula
    for axis in (0, 1):
        columns = ([part[axis] for part in column] for column in zip(*windows, strict=True))
        assert found.rows[-1].field[axis] == receptive_field(*columns)


@pytest.mark.parametrize(
    ("arguments", "size"),
    [
        ((224, 11, 4, (1, 2)), 55),
        ((224, 11, 4, (2, 2)), 55),
        ((55, 3, 2), 27),
        ((112, 3, 2), 55),
        ((112, 3, 2, (0, 0), 1, True), 56),
        ((4, 1, 3, (0, 1), 1, True), 2),
        ((3, 1, 4, (0, 0), 1, True), 1),  # a window that would begin beyond the picture is left out
        ((32, 3, 1, (2, 2), 2), 32),
    ],
)
def test_output_size(arguments: Any, size: int) -> None:
    assert output_size(*arguments) == size


# What a network sees, by the pixels whose change moves an output


class Branches(nn.Module):
    """Branches of unlike windows, one of them off centre, joined by cat and by add."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 2, 3, stride=2, padding=1)
        self.small = nn.Conv2d(2, 2, 1)
        self.wide = nn.Sequential(nn.ZeroPad2d((0, 4, 1, 1)), nn.Conv2d(2, 2, (3, 5)))
        self.far = nn.Conv2d(4, 4, 3, padding=2, dilation=2)

    def forward(self, image: Tensor) -> Tensor:
        maps = functional.gelu(self.stem(image))
        joined = torch.cat([self.small(maps), self.wide(maps)], 1)
        answer: Tensor = joined + self.far(joined)
        return answer


class Gate(nn.Module):
    """Every position is multiplied by what all positions say."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 3, padding=1)

    def forward(self, image: Tensor) -> Tensor:
        maps = self.conv(image)
        gated: Tensor = maps * torch.sigmoid(maps.mean((2, 3), keepdim=True))
        return gated


class Reshaped(nn.Module):
    """Space to depth by view and permute, then channels last and back."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(4, 4)
        self.conv = nn.Conv2d(4, 3, 3, padding=1)

    def forward(self, image: Tensor) -> Tensor:
        batch, _, height, width = image.shape
        cells = image.view(batch, height // 2, 2, width // 2, 2).permute(0, 1, 3, 2, 4)
        cells = self.mix(cells.reshape(batch, height // 2, width // 2, 4))
        maps: Tensor = self.conv(cells.permute(0, 3, 1, 2))
        return maps


class Sliced(nn.Module):
    """Every other pixel, beside its neighbour."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 3, (1, 3))

    def forward(self, image: Tensor) -> Tensor:
        maps: Tensor = self.conv(torch.cat([image[:, :, :, 0::2], image[:, :, :, 1::2]], 1))
        return maps


def seen_by_gradient(module: nn.Module, height: int, width: int) -> tuple[int, int]:
    """Rows and columns from the first to the last pixel that an output in the middle depends on."""
    torch.manual_seed(0)
    for part in module.parameters():
        nn.init.normal_(part)
    image = torch.rand(1, 1, height, width, dtype=torch.float64, requires_grad=True)
    answer = module.double()(image)
    answer[0, :, answer.shape[2] // 2, answer.shape[3] // 2].sum().backward()
    assert image.grad is not None
    touched = image.grad[0, 0] != 0
    lengths = []
    for axis in (1, 0):
        places = touched.any(axis).nonzero()
        lengths.append(int(places.max() - places.min()) + 1)
    return lengths[0], lengths[1]


@pytest.mark.parametrize(
    "module",
    [
        Branches(),
        Reshaped(),
        Sliced(),
        nn.Sequential(nn.Conv2d(1, 2, (5, 3), (2, 1)), nn.AvgPool2d((2, 3)), nn.Conv2d(2, 1, 3, dilation=(1, 2))),
        nn.Sequential(nn.Conv2d(1, 4, 3, padding="same", dilation=3), nn.LocalResponseNorm(3), nn.Conv2d(4, 2, 2)),
        nn.Sequential(nn.ReflectionPad2d((1, 3, 0, 2)), nn.Conv2d(1, 2, 4, 2), nn.ReplicationPad2d(1), nn.AvgPool2d(3)),
    ],
    ids=["branches", "reshaped", "sliced", "chain", "same", "padded"],
)
def test_receptive_field_is_that_of_the_gradient(module: nn.Module) -> None:
    assert describe(module, (1, 64, 80)).rows[-1].field == seen_by_gradient(module, 64, 80)


def test_what_mixes_all_positions_sees_the_whole_picture() -> None:
    assert seen_by_gradient(Gate(), 12, 14) == (12, 14)
    gated = describe(Gate(), (1, 12, 14))
    assert [row.kind for row in gated.rows] == ["input", "conv", "average pool", "multiply"]
    assert gated.rows[-1].field == ("all", "all")
    assert own("lenet").rows[-1].field == ("all", "all")
    assert describe(on_meta("vit_b_16"), (3, 224, 224)).rows[1].field == (16, 16)
    assert of_kind(describe(on_meta("vit_b_16"), (3, 224, 224)), "attention")[0].field == ("all", "all")


def test_floor_that_leaves_pixels_out_is_not_the_whole_picture() -> None:
    module = nn.Sequential(nn.Conv2d(1, 1, 2, 2), nn.Flatten(), nn.Linear(9, 2))
    assert describe(module, (1, 7, 6)).rows[-1].field == (6, "all")


def test_what_cannot_be_told_is_not_made_up() -> None:
    class Shuffled(nn.Module):
        def forward(self, image: Tensor) -> Tensor:
            return functional.conv2d(image.flip(3).cumsum(2), torch.ones(1, 1, 3, 3, device=image.device))

    assert describe(Shuffled(), (1, 9, 9)).rows[-1].field == ("?", "?")
    swin = describe(on_meta("swin_t"), (3, 224, 224))
    assert of_kind(swin, "attention")[0].field == ("?", "?")  # inside windows, which nothing here keeps apart
    assert swin.rows[-1].field == ("all", "all")


# Networks


def test_alexnet_is_the_table_of_the_course() -> None:
    found = own("alexnet")
    windows = of_kind(found, "conv", "max pool")
    assert [row.output[1:] for row in windows] == [(size, size) for size in (55, 27, 27, 13, 13, 13, 13, 6)]
    assert [row.output[0] for row in of_kind(found, "conv")] == [96, 256, 384, 384, 256]
    first = windows[0]
    assert (first.kernel, first.stride, first.padding) == ((11, 11), (4, 4), ((1, 2), (1, 2)))
    assert first.formula[0] == "(224 - 11 + 1 + 2)/4 + 1 = 55"
    assert first.follows == windows[2].follows == ("relu", "lrn")
    assert [row.output for row in of_kind(found, "linear")] == [(2048,), (2048,), (1000,)]
    assert windows[-1].field == (195, 195)


def test_functional_layers_have_rows_and_names_of_their_own() -> None:
    found = own("lenet")
    assert [row.name for row in found.rows] == [
        "input", "conv1", "max_pool", "conv2", "max_pool_1", "fc1", "fc2", "fc3",
    ]  # fmt: skip
    assert [row.inputs for row in found.rows] == [(), (0,), (1,), (2,), (3,), (4,), (5,), (6,)]


def test_non_square_pictures_of_bpnet() -> None:
    found = own("bpnet")
    (shares,) = [row for row in found.rows if row.output == (5, 5)]
    assert (shares.kernel, shares.field) == ((5, 3), (5, 3))
    assert found.rows[-1].output == (1000,)


LONG = {"resnet1202"}
"""Thousands of operators, those of `resnet110` again and again."""


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.sweep) if name in LONG else name for name in models.names()]
)
def test_every_architecture_is_described_by_formula_and_by_run(name: str) -> None:
    spec = models.spec(name)
    with torch.device("meta"):
        module = models.create(name, num_classes=7, channels=spec.channels[0])
    found = describe(module, (spec.channels[0], *spec.size))
    assert found.device == "meta"
    assert found.parameters == sum(parameter.numel() for parameter in module.parameters())
    assert sum(row.parameters for row in found.rows) == found.parameters - found.unused
    assert found.rows[-1].output == (7,)
    assert sum(row.macs for row in found.rows) == found.macs > 0
    for row in found.rows:
        counts = {len(part) for part in (row.kernel, row.stride, row.padding, row.dilation)}
        assert len(counts) == 1
        assert row.formula or not row.kernel or row.how
        assert all(
            text.rstrip("↓↑").endswith(f"= {size}") for text, size in zip(row.formula, row.output[1:], strict=False)
        )


TORCHVISION = (
    "alexnet", "vgg16", "resnet18", "resnet50", "resnext50_32x4d", "googlenet", "densenet121", "squeezenet1_0",
    "mobilenet_v2", "mobilenet_v3_small", "efficientnet_b0", "convnext_tiny", "shufflenet_v2_x1_0", "vit_b_16",
    "swin_t", "maxvit_t",
)  # fmt: skip


@pytest.mark.parametrize("name", TORCHVISION)
def test_macs_and_parameters_are_torchvision_s(name: str) -> None:
    told = torchvision.models.get_model_weights(name).DEFAULT.meta
    module = on_meta(name, **({"init_weights": False} if name == "googlenet" else {}))
    found = describe(module, (3, 224, 224))
    assert round(found.macs / 1e9, 3) == pytest.approx(told["_ops"], abs=0.0011)
    assert found.parameters - found.unused == told["num_params"]
    assert found.parameters == sum(parameter.numel() for parameter in module.parameters())
    assert found.device == "meta"


def test_auxiliary_classifiers_are_told_apart() -> None:
    found = describe(on_meta("googlenet", init_weights=False), (3, 224, 224))
    assert found.parameters == 13_004_888
    assert found.unused == 13_004_888 - 6_624_904
    assert not [row for row in found.rows if "aux" in row.name]


def test_inception_joins_four_branches() -> None:
    found = describe(on_meta("googlenet", init_weights=False), (3, 224, 224))
    joined = of_kind(found, "concat")
    assert len(joined) == 9
    assert {len(row.inputs) for row in joined} == {4}
    assert joined[0].output == (256, 28, 28)


def test_adaptive_pooling_says_how() -> None:
    even, odd = (describe(nn.AdaptiveAvgPool2d(3), (1, size, size)).rows[-1] for size in (9, 10))
    assert (even.kernel, even.field, even.how) == ((3, 3), (3, 3), "adaptive: 9x9 to 3x3")
    assert (odd.kernel, odd.field) == ((), ("?", "?"))
    assert odd.how == "adaptive: 10x10 to 3x3 by windows from floor(i W/N) to ceil((i + 1) W/N)"


# The module itself


def test_module_is_left_as_it_was() -> None:
    module = models.create("lenet", num_classes=3, channels=1)
    module.get_submodule("fc2").eval()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    describe(module, (1, 32, 32))
    assert module.training
    assert not module.get_submodule("fc2").training
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in module.modules())


def test_what_needs_numbers_runs_on_the_cpu_and_says_so() -> None:
    class Looks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(1, 2, 3)

        def forward(self, image: Tensor) -> Tensor:
            maps: Tensor = self.conv(image)
            return maps * 2 if maps.sum().item() > 0 else maps

    found = describe(Looks(), (1, 8, 8))
    assert found.device == "cpu"
    assert "meta" in found.reason
    assert found.rows[1].output == (2, 6, 6)


class Everything(nn.Module):
    """Layers of many kinds; looks at numbers where it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.PReLU(), nn.MaxPool2d(2))
        self.pool, self.norm = nn.AdaptiveMaxPool2d(4), nn.LayerNorm(8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.groups, self.head = nn.GroupNorm(2, 8), nn.Linear(8, 5)
        self.looks = False

    def forward(self, image: Tensor) -> Tensor:
        maps: Tensor = self.pool(self.stem(image))
        if self.looks and self.head.bias.sum().item() == 1.5:
            return maps
        tokens = self.norm(maps.flatten(2).transpose(1, 2))
        tokens = tokens + self.attention(tokens, tokens, tokens, need_weights=False)[0]
        logits: Tensor = self.head(self.groups(tokens.transpose(1, 2)).var(2))
        return logits


def test_the_cpu_tells_what_the_meta_device_tells() -> None:
    module = Everything()
    on_meta = describe(module, (3, 20, 20))
    module.looks = True
    on_cpu = describe(module, (3, 20, 20))
    assert (on_meta.device, on_cpu.device) == ("meta", "cpu")
    assert on_cpu.rows == on_meta.rows
    kinds = [row.kind for row in on_meta.rows]
    assert kinds == ["input", "conv", "max pool", "max pool", "linear", "attention", "linear", "add", "linear"]
    assert on_meta.rows[1].follows == ("batch norm", "prelu")
    assert on_meta.rows[-1].field == ("all", "all")


def test_a_picture_it_cannot_take_is_refused_in_its_own_words() -> None:
    with pytest.raises(DescriptionError, match="expected input"):
        describe(nn.Conv2d(3, 4, 3), (1, 8, 8))
    with pytest.raises(DescriptionError, match="nothing that it computes depends on the picture"):
        describe(Constant(), (1, 8, 8))


class Constant(nn.Module):
    """Answers the same to every picture."""

    def forward(self, image: Tensor) -> Tensor:
        return torch.zeros(1, 2, device=image.device)
