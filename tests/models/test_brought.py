"""Models of torchvision, timm and anybody's own code: admitted by name, described, and refused in a sentence."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from trueport import models
from trueport.models import brought

CODE = """
import torch
from torch import nn

class Tiny(nn.Module):
    def __init__(self, num_classes, in_chans=3, width=4):
        super().__init__()
        self.conv = nn.Conv2d(in_chans, width, 3)
        self.fc = nn.Linear(width, num_classes)

    def forward(self, image):
        return self.fc(self.conv(image).mean((2, 3)))

def fixed():
    return Tiny(3)

def picky(num_classes):
    raise KeyError("no such layer")

def maps(num_classes):
    return nn.Conv2d(3, num_classes, 3)

number = 7
"""


@pytest.fixture
def own_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The name of a module that lies in the current directory alone."""
    name = f"brought_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(CODE, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    yield name
    sys.modules.pop(name, None)


@pytest.mark.parametrize(
    ("name", "size", "minimum", "fixed", "channels", "mean"),
    [
        ("torchvision/resnet18", (224, 224), 1, False, (3,), 0.485),
        ("torchvision/inception_v3", (299, 299), 75, False, (3,), 0.485),
        ("torchvision/swin_t", (224, 224), 1, False, (3,), 0.485),
        ("timm/resnet18", (224, 224), 1, False, (1, 3), 0.485),
        ("timm/vit_tiny_patch16_224", (224, 224), 1, True, (1, 3), 0.5),
        ("timm/test_vit.r160_in1k", (160, 160), 1, True, (1, 3), 0.5),
    ],
)
def test_spec_is_what_the_library_says(
    name: str, size: tuple[int, int], minimum: int, fixed: bool, channels: tuple[int, ...], mean: float
) -> None:
    spec = models.spec(name)
    assert (spec.name, spec.size, spec.minimum, bool(spec.sizes), spec.channels) == (
        name,
        size,
        minimum,
        fixed,
        channels,
    )
    assert isinstance(spec.mean, tuple)
    assert isinstance(spec.std, tuple)
    assert spec.mean[0] == mean
    assert len(spec.mean) == len(spec.std) == 3


def test_every_listed_model_of_torchvision_has_a_spec() -> None:
    names = brought.library_names("torchvision")
    assert len(names) > 70
    assert all(models.spec(f"torchvision/{name}").size >= (224, 224) for name in names)


@pytest.mark.parametrize("name", ["torchvision/googlenet", "timm/test_resnet"])
def test_brought_models_are_built_with_fresh_weights_and_answer_logits(name: str) -> None:
    module = models.create(name, num_classes=7)
    brought.probe(name, module, 7, 3, (96, 96))
    answer = module.train()(torch.rand(2, 3, 96, 96))
    first = answer[0] if isinstance(answer, tuple) else answer
    assert first.shape == (2, 7)


def test_auxiliary_classifiers_survive_and_can_be_left_out() -> None:
    names = models.create("torchvision/googlenet", num_classes=7).state_dict()
    assert names["aux2.fc2.weight"].shape == (7, 1024)
    without = models.create("torchvision/googlenet", num_classes=7, aux_logits=False).state_dict()
    assert not [name for name in without if name.startswith("aux")]


def test_timm_is_built_for_grey_and_for_other_sizes() -> None:
    module = models.create("timm/vit_tiny_patch16_224", num_classes=3, channels=1, img_size=32)
    brought.probe("vit", module, 3, 1, (32, 32))
    spec = brought.sized(models.spec("timm/vit_tiny_patch16_224"), {"img_size": 32})
    assert (spec.size, spec.sizes) == ((32, 32), ((32, 32),))
    assert brought.sized(models.spec("lenet"), {"img_size": 16}).size == (32, 32)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("torchvision/resnet81", "did you mean torchvision/resnet18"),
        ("torchvision/fasterrcnn_resnet50_fpn", "no classifier"),
        ("torchvision/quantized_mobilenet_v2", "no classifier"),
        ("torchvision/raft_small", "no classifier"),
        ("timm/resnett18", "did you mean timm/resnet18"),
        ("timm/resnet18.nope", "did you mean timm/resnet18"),
        ("timm/hf-hub:somebody/something", "unknown architecture"),
        ("timm/local-dir:/somewhere", "unknown architecture"),
        ("resnext50_32x4d", "did you mean .*torchvision/resnext50_32x4d"),
        ("os:", "expected package.module:factory"),
        ("os:path", "it is a module, expected a callable"),
        ("os:nope", "did you mean os:open"),
        ("no_such_module_anywhere:make", "No module named"),
        ("../evil:make", "expected package.module:factory"),
    ],
)
def test_other_names_are_refused(name: str, message: str) -> None:
    with pytest.raises(models.UnknownModelError, match=message) as refused:
        models.spec(name)
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 2000


@pytest.mark.parametrize(
    ("name", "argument", "value"),
    [
        ("torchvision/resnet18", "weights", "DEFAULT"),
        ("torchvision/resnet18", "pretrained", True),
        ("timm/test_resnet", "pretrained", True),
        ("timm/test_resnet", "pretrained_cfg", "a1_in1k"),
        ("timm/test_resnet", "pretrained_cfg_overlay", "x"),
        ("timm/test_resnet", "checkpoint_path", "evil.pth"),
        ("timm/test_resnet", "cache_dir", "."),
    ],
)
def test_nothing_is_fetched_or_read_by_an_argument(name: str, argument: str, value: object) -> None:
    with pytest.raises(models.ModelArgumentError, match=r"model.init says which weights"):
        models.create(name, num_classes=2, **{argument: value})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("torchvision/resnet18", {"depht": 3}, "can't be built with depht = 3: TypeError"),
        ("timm/test_resnet", {"depht": 3}, "can't be built with depht = 3: TypeError"),
        ("timm/test_resnet", {"in_chans": 1}, "preprocessing.mode decides it"),
        ("torchvision/resnet18", {"channels": 1}, "takes 3 input channels, found 1"),
        ("os:getcwd", {}, "expected a torch.nn.Module of os:getcwd, found str"),
    ],
)
def test_what_cannot_be_built_is_told_in_a_sentence(name: str, arguments: dict[str, object], message: str) -> None:
    with pytest.raises(models.ModelArgumentError, match=message):
        models.create(name, num_classes=2, **arguments)  # type: ignore[arg-type]


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(models.MissingLibraryError, match="timm is not installed") as missing:
        models.spec("timm/resnet18")
    assert missing.value.package == "timm"
    with pytest.raises(models.UnknownModelError, match="did you mean torchvision/resnext50_32x4d"):
        models.spec("resnext50_32x4d")


def test_own_code_is_called_with_what_its_signature_takes(own_code: str) -> None:
    spec = models.spec(f"{own_code}:Tiny")
    assert spec.channels == (1, 3)
    assert spec.arguments == {"width": 4}
    module = models.create(f"{own_code}:Tiny", num_classes=5, channels=1, width=6)
    assert module.state_dict()["conv.weight"].shape == (6, 1, 3, 3)
    assert module.state_dict()["fc.weight"].shape == (5, 6)
    with pytest.raises(models.ModelArgumentError, match="no argument 'wdith'; its arguments: width"):
        models.create(f"{own_code}:Tiny", num_classes=5, wdith=6)
    with pytest.raises(models.ModelArgumentError, match="KeyError: 'no such layer'"):
        models.create(f"{own_code}:picky", num_classes=5)
    with pytest.raises(models.UnknownModelError, match="it is a int, expected a callable"):
        models.spec(f"{own_code}:number")
    with pytest.raises(models.UnknownModelError, match=f"did you mean .*{own_code}:Tiny"):
        models.spec(f"{own_code}:Tinny")
    with pytest.raises(models.UnknownModelError, match=r"no_such_module can't be imported from .*ModuleNotFoundError"):
        models.spec("no_such_module:Tiny")


def test_what_lies_in_the_current_directory_never_stands_in_for_an_installed_package(
    own_code: str, tmp_path: Path
) -> None:
    (tmp_path / "colorsys.py").write_text("raise SystemExit('the wrong one')", encoding="utf-8")
    sys.modules.pop("colorsys", None)
    with pytest.raises(models.UnknownModelError, match=r"'colorsys:make': .*colorsys:rgb_to_hsv"):
        models.spec("colorsys:make")
    assert models.spec(f"{own_code}:fixed").channels == (3,)


def test_the_probe_tells_what_was_expected_and_what_was_found(own_code: str) -> None:
    module = models.create(f"{own_code}:fixed", num_classes=5)
    with pytest.raises(models.ModelArgumentError, match=r"5 classes: expected 5 logits of .*:fixed, found 3"):
        brought.probe(f"{own_code}:fixed", module, 5, 3, (8, 8))
    brought.probe(f"{own_code}:fixed", module, 3, 3, (8, 8))
    with pytest.raises(models.ModelArgumentError, match="can't take pictures of 2 x 2 pixels and 3 channels: Runtime"):
        brought.probe(f"{own_code}:fixed", module, 3, 3, (2, 2))
    with pytest.raises(models.ModelArgumentError, match=r"answers \(2, 3, 6, 6\) for 2 pictures, expected logits"):
        brought.probe(f"{own_code}:maps", models.create(f"{own_code}:maps", num_classes=3), 3, 3, (8, 8))
    with pytest.raises(models.ModelArgumentError, match="answers list, expected one tensor"):
        features = models.create("timm/test_resnet", num_classes=3, features_only=True)
        brought.probe("features", features, 3, 3, (64, 64))


def test_the_probe_leaves_no_trace() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Dropout(), nn.Linear(4, 2)).eval()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    state = torch.get_rng_state()
    brought.probe("one", module, 2, 3, (3, 3))
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
    assert not module.training
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("lenet", "own"),
        ("torchvision/resnet18", "torchvision"),
        ("timm/hf-hub:x", "timm"),
        ("os:system", "code"),
        ("a/b:c", "code"),
    ],
)
def test_kind_is_told_by_the_name_alone(name: str, kind: str) -> None:
    assert brought.kind(name) == kind
