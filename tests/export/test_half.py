"""16 bits: how far the original is from itself in them, and what does not fit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from trueport.export.golden import HEADROOM, exact_answers, extremes
from trueport.export.half import answers_in, half_bounds
from trueport.export.original import Original, served_module
from trueport.pipeline.run_folder import Run
from trueport.runtime.errors import ExportError
from trueport.runtime.manifest import Normalisation, Preprocessing

SMALL = Preprocessing(height=8, width=8, mode="L")
TYPES = (torch.float16, torch.bfloat16)


def trivial(module: nn.Module) -> Original:
    return Original(module, ("a", "b"), SMALL, Normalisation((0.5,), (0.5,)), "trivial")


def test_bounds_are_wider_the_fewer_bits_there_are(run_path: object) -> None:
    original = Run.open(run_path).original()  # type: ignore[arg-type]
    images = extremes(original.preprocessing)
    exact = exact_answers(original, images)
    half, brain = (half_bounds(original, images, exact, dtype, 0.5) for dtype in TYPES)
    assert half.max_abs == HEADROOM * half.noise_max_abs
    assert half.max_drop == brain.max_drop == 0.5
    assert 2 < brain.noise_rms / half.noise_rms < 32  # three bits fewer: a factor of 8
    assert "bfloat16" in brain.noise_from[0]
    scale = np.abs(exact).max()
    assert half.noise_max_abs < scale * 2**-8 < brain.max_abs


@pytest.mark.parametrize("dtype", TYPES)
def test_products_are_rounded_once(dtype: torch.dtype) -> None:
    """A sum of many is that of float32, rounded to the type; and no picture's level is lost before it."""
    torch.manual_seed(0)
    linear = trivial(nn.Sequential(nn.Flatten(), nn.Linear(64, 2)))
    images = extremes(SMALL)
    weight, bias = (tensor.to(dtype).float() for tensor in linear.module[1].parameters())  # type: ignore[index]
    pixels = ((torch.from_numpy(images).float() / 255 - 0.5) / 0.5).to(dtype).float().flatten(1)
    expected = torch.nn.functional.linear(pixels, weight, bias).to(dtype).float()
    assert torch.equal(torch.from_numpy(answers_in(linear, images, dtype)), expected)


class Seen(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """What torch computes in the end, with the types of its operands."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.operators: list[tuple[str, set[torch.dtype]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kinds = {value.dtype for value in args if isinstance(value, torch.Tensor)}
        self.operators.append((str(func).split(".")[1], kinds))
        return func(*args, **(kwargs or {}))


class Attention(nn.Module):
    """Of eight tokens, by the layer that vision transformers are made of."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        tokens = image.flatten(1, 2)
        answered: torch.Tensor = self.attention(tokens, tokens, tokens, need_weights=False)[0]
        return answered.flatten(1)[:, :2]


class Adding(nn.Module):
    """Every operator that adds a sum of products to something, one of them in place."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        rows = image.flatten(1, 2)  # (N, 8, 8)
        square, row = rows[0], rows[0, 0]
        total = torch.addmm(square, square, square) + torch.addbmm(square, rows, rows)
        total += torch.addr(square, row, row) + torch.addmv(row, square, row)
        every = torch.baddbmm(rows, rows, rows) + total
        every.baddbmm_(rows, rows).addcdiv_(rows, torch.ones_like(rows))
        return (every * torch.dot(row, row)).flatten(1)[:, :2]


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(
    ("module", "least"),
    [
        (nn.Sequential(nn.Conv2d(1, 2, 8), nn.Flatten()), 1),
        (nn.Sequential(nn.ConvTranspose2d(1, 2, 1), nn.AvgPool2d(8), nn.Flatten()), 1),
        (nn.Sequential(nn.Flatten(), nn.Linear(64, 2)), 1),
        (Attention(), 4),
        (Adding(), 6),
    ],
    ids=["convolution", "transposed", "linear", "attention", "adding"],
)
def test_no_product_is_left_to_the_processor_s_own_kernels_for_16_bits(
    module: nn.Module, least: int, dtype: torch.dtype
) -> None:
    with Seen() as seen:
        answers_in(trivial(module), extremes(SMALL), dtype)
    told = ("conv", "mm", "linear", "matmul", "attention", "addmv", "addr", "dot")
    products = [kinds for name, kinds in seen.operators if any(word in name for word in told)]
    assert len(products) >= least
    assert all(kinds == {torch.float32} for kinds in products)
    assert any(dtype in kinds for _, kinds in seen.operators), "what is no product stays in 16 bits"


def test_how_attention_is_computed_elsewhere_is_left_as_it_was() -> None:
    cuda, mha = torch.backends.cuda, torch.backends.mha

    def settings() -> tuple[bool, bool, bool]:
        low = cuda.fp16_bf16_reduction_math_sdp_allowed()  # type: ignore[no-untyped-call]
        return mha.get_fastpath_enabled(), low, cuda.flash_sdp_enabled()  # type: ignore[no-untyped-call]

    before = settings()
    answers_in(trivial(Attention()), extremes(SMALL), torch.float16)
    assert settings() == before


def test_what_torch_can_not_do_in_half_on_a_cpu_is_done_in_float() -> None:
    class Normalised(nn.Module):
        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return nn.functional.local_response_norm(image, 2).flatten(1)[:, :2]

    normalised, images = trivial(Normalised()), extremes(SMALL)
    with pytest.raises(NotImplementedError):
        served_module(normalised, torch.float16)(torch.from_numpy(images))
    found = answers_in(normalised, images, torch.float16)
    assert np.abs(found - exact_answers(normalised, images)).max() < 1e-3


def test_what_overflows_is_one_sentence() -> None:
    class Huge(nn.Module):
        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return (image.flatten(1)[:, :2] * 60_000) * 4 / 1e5

    huge, images = trivial(Huge()), extremes(SMALL)
    exact = exact_answers(huge, images)
    with pytest.raises(ExportError, match="overflow in float16: export bf16 in place of fp16"):
        half_bounds(huge, images, exact, torch.float16, 0.5)
    assert half_bounds(huge, images, exact, torch.bfloat16, 0.5).noise_max_abs < 0.1
