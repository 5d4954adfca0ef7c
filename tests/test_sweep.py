"""The sweep: every architecture of ours, and classifiers of torchvision and timm across their families, goes from one
training step through export to a green check.

`make test` runs one of ours of each family and kind of block; `make sweep` runs all of it and writes docs/sweep.md.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from PIL import Image

from trueport import models
from trueport.pipeline.check import check
from trueport.pipeline.export_run import export_run
from trueport.pipeline.recipe import recipe_from_table
from trueport.pipeline.train import train

SIDE = 64
"""Pixels of the pictures, and of the inputs where the network allows it."""
CLASSES, PICTURES = 3, 14
"""So many pictures of each class: 24 of the 42 make the one batch that is trained."""


class Case(NamedTuple):
    """One architecture, small enough to be swept."""

    arch: str
    size: int | tuple[int, int] = SIDE
    args: dict[str, Any] = {}  # noqa: RUF012 -- never changed

    def __str__(self) -> str:
        return self.arch


SMALL = {"width": 64}
OF_THEIR_KIND = {
    "lenet": "ReLU and maximum pools",
    "lenet5": "tanh and average pools",
    "bpnet": "grey levels, a threshold and windows in place of convolutions",
    "alexnet_half": "local response normalisation, padding that is not symmetric",
    "vgg_a_bn": "plain convolutions with batch norm, linear layers with dropout",
    "googlenet_bn": "inceptions, auxiliary classifiers that end with training",
    "resnet18": "basic blocks with projections",
    "resnet20": "basic blocks whose shortcuts are padded",
}
"""Of ours, those that `make test` runs: together they have every layer and block that the others repeat, but for
bottlenecks, whose export tests/models/test_resnet.py shows on a small network."""
OWN = {
    "alexnet": Case("alexnet", 224, SMALL),
    "alexnet_half": Case("alexnet_half", 224, SMALL),
    "bpnet": Case("bpnet", (25, 15)),
    "lenet": Case("lenet", 32),
    "lenet5": Case("lenet5", 32),
    "resnet1202": Case("resnet1202", 32, {"zero_init": True}),  # untrained, the sums of its blocks would overflow
}
"""Those of ours that are not swept at 64 pixels with their own arguments; VGG is, with narrow linear layers."""

BROUGHT = (
    Case("torchvision/alexnet"),
    Case("torchvision/convnext_tiny"),
    Case("torchvision/densenet121"),
    Case("torchvision/efficientnet_b0"),
    Case("torchvision/efficientnet_v2_s"),
    Case("torchvision/googlenet"),
    Case("torchvision/inception_v3", 96, {"aux_logits": False}),
    Case("torchvision/maxvit_t", 224),
    Case("torchvision/mnasnet0_5"),
    Case("torchvision/mobilenet_v2"),
    Case("torchvision/mobilenet_v3_small"),
    Case("torchvision/regnet_x_400mf"),
    Case("torchvision/regnet_y_400mf"),
    Case("torchvision/resnet18"),
    Case("torchvision/resnext50_32x4d"),
    Case("torchvision/shufflenet_v2_x0_5"),
    Case("torchvision/squeezenet1_1"),
    Case("torchvision/swin_t"),
    Case("torchvision/swin_v2_t"),
    Case("torchvision/vgg11_bn"),
    Case("torchvision/vit_b_32", SIDE, {"image_size": SIDE}),
    Case("torchvision/wide_resnet50_2"),
    Case("timm/caformer_s18"),
    Case("timm/cait_xxs24_224", SIDE, {"img_size": SIDE}),
    Case("timm/coat_lite_tiny", SIDE, {"img_size": SIDE}),
    Case("timm/convit_tiny", SIDE, {"img_size": SIDE}),
    Case("timm/convnextv2_atto"),
    Case("timm/crossvit_tiny_240", 240),
    Case("timm/cspresnet50"),
    Case("timm/davit_tiny"),
    Case("timm/deit_tiny_distilled_patch16_224", SIDE, {"img_size": SIDE}),
    Case("timm/dla34"),
    Case("timm/dpn48b"),
    Case("timm/edgenext_xx_small"),
    Case("timm/efficientformer_l1", 224),
    Case("timm/efficientvit_b0"),
    Case("timm/eva02_tiny_patch14_224", 56, {"img_size": 56}),
    Case("timm/fastvit_t8"),
    Case("timm/focalnet_tiny_srf"),
    Case("timm/gcvit_xxtiny", 224),
    Case("timm/ghostnet_100"),
    Case("timm/gmlp_ti16_224", SIDE, {"img_size": SIDE}),
    Case("timm/hgnetv2_b0"),
    Case("timm/hrnet_w18_small"),
    Case("timm/inception_next_atto"),
    Case("timm/levit_128s", 224),
    Case("timm/mambaout_femto"),
    Case("timm/maxxvit_rmlp_nano_rw_256", 256),
    Case("timm/mixer_s32_224", SIDE, {"img_size": SIDE}),
    Case("timm/mobilenetv4_conv_small"),
    Case("timm/mobileone_s0"),
    Case("timm/mobilevit_xxs"),
    Case("timm/mvitv2_tiny", SIDE, {"img_size": SIDE}),
    Case("timm/nf_resnet26"),
    Case("timm/pit_ti_224", 224),
    Case("timm/poolformer_s12"),
    Case("timm/pvt_v2_b0"),
    Case("timm/regnety_002"),
    Case("timm/repvgg_a0"),
    Case("timm/res2net50_14w_8s"),
    Case("timm/resnest14d"),
    Case("timm/rexnet_100"),
    Case("timm/sequencer2d_s", 224),
    Case("timm/skresnet18"),
    Case("timm/starnet_s1"),
    Case("timm/tiny_vit_5m_224", 224),
    Case("timm/tresnet_m"),
    Case("timm/twins_pcpvt_small", 224),
    Case("timm/vit_tiny_patch16_224", SIDE, {"img_size": SIDE}),
    Case("timm/volo_d1_224", SIDE, {"img_size": SIDE}),
    Case("timm/xcit_nano_12_p16_224", 224),
)
"""One of each family, a small one."""
KNOWN_TO_FAIL: dict[str, str] = {
    "timm/maxxvit_rmlp_nano_rw_256": "torch's exporter can't view a tensor of its attention as another shape",
}
"""Architectures that don't come through, and why."""


def own_cases() -> list[Case]:
    """Every registered architecture."""
    narrow = {name: Case(name, SIDE, SMALL) for name in models.names() if name.startswith("vgg")}
    return [(OWN | narrow).get(name, Case(name, min(SIDE, *models.spec(name).size))) for name in models.names()]


def draw_pictures(folder: Path) -> Path:
    """Class folders of pictures that differ in their colour, and in noise."""
    random = np.random.default_rng(0)
    for label in range(CLASSES):
        (folder / str(label)).mkdir(parents=True)
        for number in range(PICTURES):
            pixels = random.integers(0, 200, (SIDE, SIDE, 3))
            pixels[..., label] += 55
            Image.fromarray(pixels.astype(np.uint8)).save(folder / str(label) / f"{number}.png")
    return folder


def pass_through(case: Case, pictures: Path, out: Path) -> None:
    """Train one step, export, check. Raises what they raise, and AssertionError that names the gates that failed."""
    table = {
        "name": "sweep",
        "data": {"source": str(pictures), "validation": 0.2, "test": 0.2},
        "model": {"arch": case.arch, "args": case.args},
        "preprocessing": {"size": case.size},
        "train": {"epochs": 1, "batch_size": CLASSES * PICTURES, "learning_rate": 1e-4, "device": "cpu", "workers": 0},
        "export": {"golden": 4, "evaluation": 8},
    }
    train(recipe_from_table(table), out)
    bundle, _ = export_run(out)
    report = check(bundle)
    assert report.reference == "original"
    assert not report.failed, "; ".join(f"{verdict.gate}: {verdict.measured}" for verdict in report.failed)
    assert [verdict.gate for verdict in report.undecided] == ["evidence"], "of eight pictures"


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_pictures(tmp_path_factory.mktemp("pictures"))


def parameters() -> list[Any]:
    """The cases with their marks."""
    return [
        pytest.param(case, id=case.arch, marks=pytest.mark.slow if case.arch in OF_THEIR_KIND else pytest.mark.sweep)
        for case in (*own_cases(), *BROUGHT)
    ]


@pytest.mark.parametrize("case", parameters())
@pytest.mark.filterwarnings("ignore")  # of torchvision and timm, and of torch about them
def test_one_step_then_export_then_check_is_green(
    case: Case, pictures: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    if why := KNOWN_TO_FAIL.get(case.arch):
        request.applymarker(pytest.mark.xfail(reason=why, strict=True))
    pass_through(case, pictures, tmp_path / "run")
    shutil.rmtree(tmp_path / "run")


# make sweep


class Result(NamedTuple):
    """What became of one case."""

    case: Case
    failure: str
    """Empty where the check was green."""
    seconds: float


def swept(case: Case, pictures: Path) -> Result:
    """One case, in a folder of its own that is removed."""
    begun, failure = time.monotonic(), ""
    with tempfile.TemporaryDirectory() as folder:
        try:
            pass_through(case, pictures, Path(folder, "run"))
        except Exception as error:
            failure = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    return Result(case, failure, time.monotonic() - begun)


def row(result: Result) -> str:
    """One line of the table."""
    size = result.case.size if isinstance(result.case.size, tuple) else (result.case.size,) * 2
    known = KNOWN_TO_FAIL.get(result.case.arch)
    told = "green" if not result.failure else f"fails, {'as known: ' + known if known else result.failure}"
    args = ", ".join(f"{key}={value}" for key, value in result.case.args.items())
    cells = (f"`{result.case.arch}`", f"{size[0]} x {size[1]}", args, told.replace("|", "/"), f"{result.seconds:.1f}")
    return f"| {' | '.join(cells)} |"


def document(results: list[Result]) -> str:
    """docs/sweep.md."""
    from trueport.runtime.machine import describe_machine

    machine, green = describe_machine(), sum(not result.failure for result in results)
    seconds = sum(result.seconds for result in results)
    versions = ", ".join(f"{name} {machine.versions[name]}" for name in sorted(machine.versions))
    return "\n".join(
        [
            "# Sweep",
            "",
            "Each architecture is trained for one step, exported and checked against the original, with small pictures",
            "where the network allows it. Ours, all of them, but the linear layers of AlexNet and VGG narrow; of",
            "torchvision and timm a small one of each family.",
            "",
            f"`make sweep`, {datetime.now(UTC):%Y-%m-%d}, {machine.cpu}, {machine.cores} cores, {versions}:",
            f"{green} of {len(results)} green, in {seconds:.0f} s.",
            "",
            "| architecture | pixels | arguments | result | seconds |",
            "| --- | --- | --- | --- | ---: |",
            *map(row, results),
            "",
        ]
    )


def main(wanted: list[str], say: Callable[[str], None] = print) -> int:
    """Sweep the architectures whose names begin so, all without any; the number of surprises."""
    cases = [case for case in [*own_cases(), *BROUGHT] if not wanted or case.arch.startswith(tuple(wanted))]
    with tempfile.TemporaryDirectory() as folder:
        pictures, results = draw_pictures(Path(folder, "pictures")), list[Result]()
        for case in cases:
            results.append(swept(case, pictures))
            say(row(results[-1]))
    if not wanted:
        Path(__file__).parents[1].joinpath("docs", "sweep.md").write_text(document(results), encoding="utf-8")
    return sum(bool(result.failure) != (result.case.arch in KNOWN_TO_FAIL) for result in results)


if __name__ == "__main__":
    sys.exit(min(main(sys.argv[1:]), 1))
