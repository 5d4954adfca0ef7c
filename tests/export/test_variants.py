"""Every precision in one bundle: names, targets, bounds, what was reached, and answers that keep them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray
from typer.testing import CliRunner

from trueport.export.bundle import Origin, refuse_other_content, write_bundle
from trueport.export.variants import INT8_HEADROOM, Material, variant_names
from trueport.pipeline.cli import app as commands
from trueport.pipeline.export_run import export_run
from trueport.pipeline.run_folder import Run
from trueport.runtime.bundle import Bundle
from trueport.runtime.comparison import accuracy, parity
from trueport.runtime.errors import UsageError
from trueport.runtime.manifest import Variant

NAMES = ("fp32", "fp16", "bf16", "int8-cpu", "int8-gpu")


@pytest.fixture(scope="module")
def told() -> list[str]:
    return []


@pytest.fixture(scope="module")
def bundle(run_path: Path, tmp_path_factory: pytest.TempPathFactory, told: list[str]) -> Bundle:
    """The digits in every precision; fp32 is added."""
    recipe = Run.open(run_path).recipe()
    int8 = msgspec.structs.replace(recipe.export.int8, samples=64)
    section = msgspec.structs.replace(recipe.export, precision=("int8", "fp16", "bf16"), max_drop=2.0, int8=int8)
    out = tmp_path_factory.mktemp("variants") / "digits.bundle"
    export_run(run_path, out, msgspec.structs.replace(recipe, export=section), told.append)
    return Bundle.open(out)


def test_names_follow_the_precisions() -> None:
    assert variant_names(("fp32",)) == ("fp32",)
    assert variant_names(("int8", "fp16", "int8")) == ("fp32", "int8-cpu", "int8-gpu", "fp16")


def test_each_variant_states_what_it_is(bundle: Bundle) -> None:
    variants = {variant.name: variant for variant in bundle.manifest.variants}
    assert bundle.manifest.variants[0].name == "fp32"
    assert set(variants) == set(NAMES)
    assert {name: variant.target for name, variant in variants.items()} == {
        "fp32": "any", "fp16": "any", "bf16": "any", "int8-cpu": "cpu", "int8-gpu": "gpu",
    }  # fmt: skip
    for name, variant in variants.items():
        assert variant.reached == {variant.precision: 5}
        assert variant.bounds.max_drop == (None if name == "fp32" else 2.0)
        assert (variant.quantization is not None) == (variant.precision == "int8")
        assert variant.file == f"model.{name}.onnx"
        assert variant.file in bundle.manifest.files
    fp32, fp16, bf16, *int8 = (variants[name].bounds.max_abs for name in NAMES)
    assert fp32 < fp16 / 100
    assert fp16 < bf16
    assert all(fp32 < bound for bound in int8)


def test_int8_is_calibrated_and_chosen_as_it_says(bundle: Bundle, run_path: Path, told: list[str]) -> None:
    _, parts = Run.open(run_path).data()
    for name in ("int8-cpu", "int8-gpu"):
        quantization = bundle.variant(name).quantization
        assert quantization is not None
        assert len(quantization.trials) == 6
        assert {trial.samples for trial in quantization.trials} == {16, 64}
        assert quantization.float_layers == ()
        assert sum(f"{name}: " in line and f"on {len(parts.validation)} validation" in line for line in told) == 6
        bounds = bundle.variant(name).bounds
        assert bounds.max_abs == INT8_HEADROOM * bounds.noise_max_abs


def answers(bundle: Bundle, variant: Variant, images: NDArray[np.uint8]) -> NDArray[Any]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    graph = bundle.read(variant.file)
    session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(["logits"], {"image": images})[0])


@pytest.mark.parametrize("name", ["fp32", "fp16", "int8-cpu", "int8-gpu"])  # onnxruntime has no bfloat16 on the CPU
def test_what_the_graphs_answer_is_within_their_bounds(bundle: Bundle, name: str) -> None:
    variant, golden, held_out = bundle.variant(name), bundle.golden(), bundle.evaluation()
    told: dict[str, Any] = {"variant": name, "runner": "onnxruntime:cpu"}
    for images, logits in ((golden.images, golden.logits), (held_out.images, held_out.logits)):
        assert parity(answers(bundle, variant, images), logits, variant.bounds, detail="", **told)
    found = answers(bundle, variant, held_out.images)
    assert accuracy(found, held_out.logits, held_out.labels, variant.bounds, **told)
    if name != "fp32":
        exact = bundle.variant("fp32").bounds
        assert not parity(found, held_out.logits, exact, detail="", **told)


def test_a_bundle_of_many_variants_may_be_replaced_however_it_is_damaged(bundle: Bundle, tmp_path: Path) -> None:
    for file in (*bundle.manifest.files, "manifest.json"):
        (tmp_path / file).write_bytes(b"damaged")
    refuse_other_content(tmp_path)


def test_the_command_line_takes_precisions_and_refuses_unknown_ones(run_path: Path, tmp_path: Path) -> None:
    out = tmp_path / "half.bundle"
    done = CliRunner().invoke(commands, ["export", str(run_path), "--out", str(out), "--precision", "fp32, FP16"])
    assert done.exit_code == 0, done.stderr
    assert "digits 1, fp32, fp16, 10 classes" in done.stdout
    assert "training pictures" in done.stderr
    wrong = CliRunner().invoke(commands, ["export", str(run_path), "--precision", "fp16,int4"])
    assert isinstance(wrong.exception, UsageError) or "did you mean" in wrong.stderr


@pytest.mark.parametrize(
    ("precision", "material", "message"),
    [
        ("int8", None, "int8-cpu, int8-gpu need pictures of the training part, found none"),
        ("fp16", None, "fp16 need pictures of the training part"),
        ("int8", Material(np.zeros((9, 32, 32, 1), np.uint8)), "pictures of the validation part, found none"),
    ],
)
def test_missing_pictures_are_one_sentence(
    run_path: Path, tmp_path: Path, precision: Any, material: Material | None, message: str
) -> None:
    images = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 1), dtype=np.uint8)
    with pytest.raises(UsageError, match=message):
        write_bundle(
            Run.open(run_path).original(), tmp_path / "none", name="none", origin=Origin("", "", "", 0, {}),
            golden=images, pictures=(), evaluation=(images, np.zeros(3, np.int64)),
            precisions=(precision,), material=material,
        )  # fmt: skip
    assert not (tmp_path / "none").exists()
