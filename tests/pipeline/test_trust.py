"""Brought models through the whole job, and the consent that running somebody's code needs."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from trueport.export.original import original_from_bundle
from trueport.pipeline.bench import bench
from trueport.pipeline.check import check
from trueport.pipeline.cli import main
from trueport.pipeline.export_run import export_run
from trueport.pipeline.recipe import load_recipe
from trueport.pipeline.resolve import model_spec, new_model, resolve
from trueport.pipeline.stages import run_stages
from trueport.pipeline.train import train
from trueport.runtime.bundle import Bundle, sealed
from trueport.runtime.errors import BundleError, MissingError, TrustError, UsageError
from trueport.runtime.manifest import MANIFEST, Manifest

CODE = """
from pathlib import Path
from torch import nn

Path("imported").touch()

class Net(nn.Sequential):
    def __init__(self, num_classes, channels=3, width=4):
        super().__init__(nn.Conv2d(channels, width, 3, 4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                         nn.Linear(width, num_classes))
"""
CHANGES = (
    "model.arch=own_net:Net",
    "model.args.width=6",
    "preprocessing.size=16",
    "train.epochs=1",
    "train.batch_size=512",
    "export.golden=4",
    "export.evaluation=40",
    "bench.seconds=0.05",
    "bench.batch=[1]",
)


@pytest.fixture
def own_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current directory, with a module in it; its import leaves a mark there."""
    (tmp_path / "own_net.py").write_text(CODE, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    yield tmp_path
    sys.modules.pop("own_net", None)


@pytest.fixture
def brought_bundle(own_code: Path) -> Path:
    """A bundle of a model that own code made, as it arrives elsewhere: nothing of that code is loaded any more."""
    train(load_recipe("digits", CHANGES), own_code / "run")
    bundle, _ = export_run(own_code / "run")
    del sys.modules["own_net"]
    (own_code / "imported").unlink()
    return bundle


def name_code(bundle: Path, arch: str, **arguments: str) -> None:
    """Have the manifest say that the original is made by this code, and seal it."""
    manifest = msgspec.json.decode((bundle / MANIFEST).read_bytes(), type=Manifest)
    provenance = msgspec.structs.replace(manifest.provenance, arch=arch, arch_args=dict(arguments))
    (bundle / MANIFEST).write_bytes(sealed(msgspec.structs.replace(manifest, provenance=provenance)))


def test_a_bundles_code_is_not_run_without_consent(brought_bundle: Path, own_code: Path) -> None:
    report = check(brought_bundle)
    assert report
    assert report.reference == "recording"
    (left_out,) = [verdict for verdict in report.verdicts if verdict.status == "not run"]
    assert left_out.gate == "recording"
    assert "would run own_net:Net" in left_out.detail
    assert "--trust-code" in left_out.detail
    timed = bench(brought_bundle, batches=[1], seconds=0.05)
    assert timed.original is None
    assert "--trust-code" in timed.original_not_run
    with pytest.raises(TrustError, match="would run own_net:Net"):
        original_from_bundle(Bundle.open(brought_bundle))
    assert not (own_code / "imported").exists()


def test_with_consent_it_is_the_reference(brought_bundle: Path, own_code: Path) -> None:
    report = check(brought_bundle, trust_code=True)
    assert report
    assert report.reference == "original"
    assert (own_code / "imported").exists()
    assert bench(brought_bundle, batches=[1], seconds=0.05, trust_code=True).original is not None


def test_code_that_is_not_here_is_said_to_be_missing(brought_bundle: Path, own_code: Path) -> None:
    (own_code / "own_net.py").unlink()
    report = check(brought_bundle, trust_code=True)
    assert report
    assert report.reference == "recording"
    (recording,) = (verdict for verdict in report.verdicts if verdict.gate == "recording")
    assert "needs the code that made it" in recording.detail
    with pytest.raises(MissingError, match="No module named 'own_net'"):
        original_from_bundle(Bundle.open(brought_bundle), trust_code=True)


def test_a_bundle_that_names_a_command_of_the_system_runs_nothing(
    own_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    planted = tmp_path / "planted"
    name_code(own_bundle, "os:system", command=f"touch {planted}")
    assert check(own_bundle).reference == "recording"
    assert bench(own_bundle, batches=[1], seconds=0.05).original is None
    monkeypatch.setattr(sys, "argv", ["trueport", "check", str(own_bundle), "--json", "-"])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 0
    assert json.loads(capsys.readouterr().out)["reference"] == "recording"
    assert not planted.exists()


@pytest.mark.parametrize(
    ("arch", "arguments"),
    [
        ("timm/resnet18", {"pretrained": "yes"}),
        ("timm/resnet18", {"checkpoint_path": "evil.pth"}),
        ("torchvision/resnet18", {"weights": "DEFAULT"}),
        ("timm/hf-hub:somebody/something", {}),
    ],
)
def test_a_bundle_can_not_have_weights_fetched_or_read(arch: str, arguments: dict[str, str], own_bundle: Path) -> None:
    name_code(own_bundle, arch, **arguments)
    with pytest.raises(BundleError, match="made by another trueport"):
        check(own_bundle)


@pytest.mark.parametrize(("arch", "argument"), [("lenet", "num_classes"), ("lenet", "depth"), ("alexnet", "dropout")])
def test_a_bundle_of_impossible_arguments_is_refused_in_one_sentence(
    arch: str, argument: str, own_bundle: Path
) -> None:
    name_code(own_bundle, arch, **{argument: "much"})
    with pytest.raises(BundleError, match="made by another trueport"):
        original_from_bundle(Bundle.open(own_bundle))


def test_run_trusts_the_code_of_its_own_recipe(own_code: Path) -> None:
    outcome = run_stages(load_recipe("digits", CHANGES), own_code / "run")
    assert outcome.check
    assert outcome.check.reference == "original"
    assert outcome.bench.original is not None
    assert outcome.run.info.arch_args == {"width": 6}


def test_a_model_of_other_classes_is_refused_before_training(own_code: Path) -> None:
    (own_code / "own_net.py").write_text(f"{CODE}\ndef fixed():\n    return Net(3)\n", encoding="utf-8")
    changes = [*CHANGES[:1], "model.arch=own_net:fixed", "preprocessing.size=16", "preprocessing.mode=RGB"]
    with pytest.raises(UsageError, match="10 classes: expected 10 logits of own_net:fixed, found 3"):
        train(load_recipe("digits", changes), own_code / "run")
    assert not (own_code / "run").exists()


def test_a_missing_timm_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(MissingError, match=r"pip install 'trueport\[timm\]'"):
        model_spec("timm/resnet18")


def test_normalisation_is_the_recipes_else_the_initial_weights_else_the_architectures() -> None:
    from trueport.pipeline.data import open_dataset

    data = open_dataset("digits")

    def means(*changes: str) -> tuple[float, ...]:
        return resolve(load_recipe("digits", changes), data)[1].mean

    imagenet = (0.485, 0.456, 0.406)
    assert means("model.arch=resnet18", "preprocessing.mode=RGB") == (0.5, 0.5, 0.5)
    assert means("model.arch=resnet18", "preprocessing.mode=RGB", "model.init=imagenet") == imagenet
    assert means("model.arch=resnet18", "preprocessing.mean=[0.1]", "model.init=imagenet") == (0.1,)
    assert means("model.arch=torchvision/resnet18") == imagenet
    assert means("model.arch=timm/resnet18") == pytest.approx((0.449,))
    assert means("model.arch=timm/vit_tiny_patch16_224", "preprocessing.mode=RGB") == (0.5, 0.5, 0.5)


def test_sizes_of_brought_models_follow_their_arguments() -> None:
    from trueport.pipeline.data import open_dataset

    data = open_dataset("digits")
    recipe = load_recipe("digits", ["model.arch=timm/vit_tiny_patch16_224", "model.args.img_size=32"])
    assert resolve(recipe, data)[0].shape == (32, 32, 1)
    with pytest.raises(UsageError, match=r"no others, found 32 x 32: .* or set model.args.img_size where"):
        resolve(load_recipe("digits", ["model.arch=timm/vit_tiny_patch16_224", "preprocessing.size=32"]), data)
    with pytest.raises(UsageError, match="at least 75 x 75"):
        resolve(load_recipe("digits", ["model.arch=torchvision/inception_v3", "preprocessing.size=32"]), data)
    with pytest.raises(UsageError, match="can't take pictures of 48 x 48 pixels and 1 channels"):
        new_model(recipe.model, 10, 1, (48, 48))
