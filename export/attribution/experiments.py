"""Known mistakes, each made with the stage before: where it then answers what the port answers, that is the cause.

Mistakes of pixels and of logits need no torch; those of normalisation and of the module are made with the original.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .chain import Answer
from .subject import Logits, Rows

if TYPE_CHECKING:
    import torch
    from torch import nn

    from ..original import Original

LESS = 0.1
"""Of the difference: what is left where a mistake explains it, at the most."""


@dataclass(frozen=True, eq=False)
class Mistake:
    """Something that is done wrong at times, and what it would answer."""

    cause: str
    remedy: str
    answers: Callable[[], Logits]
    """(N, K)"""
    layer: str = ""


@dataclass(frozen=True, eq=False)
class Case:
    """A departure: the inputs, what the port answers, and what it has to."""

    images: Rows
    found: Logits
    expected: Logits
    allowed: float
    """By which one logit may differ."""
    together: bool = False
    """Whether what a row is answered depends on its batch."""

    def explained_by(self, mistake: Mistake) -> bool:
        """Whether the mistake answers what the port does."""
        try:
            made = np.asarray(mistake.answers(), np.float64)
        except (RuntimeError, ValueError, ArithmeticError):  # such a mistake can't be made with this network
            return False
        if made.shape != self.found.shape or not np.isfinite(made).all():
            return False
        left = float(np.abs(made - self.found).max())
        scale = max(1.0, float(np.abs(made).max()) / max(float(np.abs(self.expected).max()), 1e-30))
        before = float(np.abs(self.expected.astype(np.float64) - self.found).max())
        return left <= self.allowed * scale and not before * LESS < left


def explaining(case: Case, mistakes: Iterator[Mistake]) -> Mistake | None:
    """The first mistake that answers what the port does; none where the port's answers are no numbers."""
    if not np.isfinite(case.found).all() or case.found.shape != case.expected.shape:
        return None
    return next((mistake for mistake in mistakes if case.explained_by(mistake)), None)


def pixel_mistakes(images: Rows, before: Answer) -> Iterator[Mistake]:
    """Made with the pixels, and answered by the stage before."""
    inside = "hand over the pixels as prepare makes them, uint8 (N, H, W, C): the rest is inside the graph"
    height, width, channels = images.shape[1:]
    changes: list[tuple[str, str, Callable[[Rows], NDArray[Any]]]] = [
        ("pixels are inverted", inside, lambda x: 255 - x),
        ("pixels are scaled to 0 to 1 before they become integers", inside, lambda x: (x / 255).astype(np.uint8)),
        ("pictures are mirrored", inside, lambda x: x[:, :, ::-1]),
        ("pictures are upside down", inside, lambda x: x[:, ::-1]),
    ]
    if height == width:
        changes.append(("height and width are swapped", inside, lambda x: x.swapaxes(1, 2)))
    if channels > 1:
        changes.insert(
            0, ("channels are swapped: BGR for RGB", "feed RGB, as prepare makes it", lambda x: x[..., ::-1])
        )
        changes.append(
            (
                "pixels in NHWC order are read as NCHW",
                "transpose by perm (0, 3, 1, 2) and don't reshape; the graph's input is NHWC",
                lambda x: x.reshape(len(x), channels, height, width).transpose(0, 2, 3, 1),
            )
        )
    for cause, remedy, change in changes:
        yield Mistake(cause, remedy, lambda change=change: before(np.ascontiguousarray(change(images))))  # type: ignore[misc]


def logit_mistakes(case: Case) -> Iterator[Mistake]:
    """Made with the right logits."""
    right = case.expected.astype(np.float64)
    bare = "end the graph with the logits: scores are made behind it"
    yield Mistake("the answers are a softmax of the logits", bare, lambda: _softmax(right, 1))
    yield Mistake("the answers are a softmax over the batch, not over the classes", bare, lambda: _softmax(right, 0))
    yield Mistake("the answers are a log-softmax of the logits", bare, lambda: np.log(_softmax(right, 1)))
    yield Mistake("the answers are sigmoids of the logits", bare, lambda: 1 / (1 + np.exp(-right)))
    yield Mistake(
        "the rows of a batch are mixed: the mean of the batch is taken off",
        "compute each row by itself: no reduction over the batch axis",
        lambda: right - right.mean(axis=0, keepdims=True),
    )
    yield from _reordered(case, right)
    for digits in (1, 2, 3, 4):
        told = f"the answers are rounded to {digits} decimal places"
        yield Mistake(told, "hand on the logits as float32", lambda digits=digits: right.round(digits))  # type: ignore[misc]
    half = case.expected.astype(np.float16).astype(np.float64)
    yield Mistake("the answers are rounded to float16", "hand on the logits as float32", lambda: half)
    if case.together:
        return  # these are the same for every batch
    offset = (case.found - right).mean(axis=0, keepdims=True)
    yield Mistake(
        "a constant is added to the logits: the last layer's bias is lost or another",
        "export the bundle again with the last layer's bias",
        lambda: right + offset,
    )
    factor = float((case.found * right).sum() / max((right**2).sum(), 1e-30))
    yield Mistake(
        f"the logits are multiplied by {factor:.4g}",
        "end the graph with the logits as they are",
        lambda: factor * right,
    )


def _reordered(case: Case, right: NDArray[np.float64]) -> Iterator[Mistake]:
    columns, rows = _order(case.found.T, right.T), _order(case.found, right)
    if columns is not None:
        moved = [f"{place} holds class {index}" for place, index in enumerate(columns) if place != index]
        yield Mistake(
            f"classes are permuted: place {', '.join(moved[:4])}{', …' if len(moved) > 4 else ''}",
            "put the classes back in the order of the bundle's labels",
            lambda: right[:, columns],
        )
    if rows is not None:
        yield Mistake(
            "the rows of a batch come back in another order",
            "answer rows in the order in which they were asked",
            lambda: right[rows],
        )


def _order(found: Logits, right: NDArray[np.float64]) -> list[int] | None:
    """The place of each row of `found` among those of `right`; None where none is moved, or two have one place."""
    taken: dict[int, None] = {}
    right = np.ascontiguousarray(right)
    # Row by row: of ten thousand classes all distances at once take gigabytes.
    for row in found.astype(np.float64):
        place = int(np.abs(right - row).max(axis=1).argmin())
        if place in taken:
            return None
        taken[place] = None
    order = list(taken)
    return order if order != list(range(len(order))) else None


def _softmax(values: NDArray[np.float64], axis: int) -> NDArray[np.float64]:
    powers = np.exp(values - values.max(axis=axis, keepdims=True))
    return np.asarray(powers / powers.sum(axis=axis, keepdims=True))


def input_mistakes(original: Original, images: Rows) -> Iterator[Mistake]:
    """Made on the way from pixels to the network's input."""
    import torch

    remedy = "export the bundle again with the normalisation of training, once and inside the graph"
    pixels = torch.from_numpy(np.ascontiguousarray(images)).float()
    unit = pixels / 255
    mean, std = (torch.tensor(values) for values in (original.normalisation.mean, original.normalisation.std))
    right = (unit - mean) / std
    shape = (len(images), images.shape[3], *images.shape[1:3])
    grey = images.shape[3] == 1
    known = (
        {
            "MNIST's": (torch.tensor([0.1307]), torch.tensor([0.3081])),
            "the mean of ImageNet's": (torch.tensor([0.449]), torch.tensor([0.226])),
        }
        if grey
        else {
            "ImageNet's": (torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])),
            "0.5 and 0.5 as": (torch.full((3,), 0.5), torch.full((3,), 0.5)),
        }
    )
    changes = {
        "the normalisation is missing: pixels arrive from 0 to 1": unit,
        "pixels arrive from 0 to 255, neither scaled nor normalised": pixels,
        "the division by 255 is missing before the normalisation": (pixels - mean) / std,
        "the normalisation is done twice": (right - mean) / std,
        "the division by 255 is done twice": (unit / 255 - mean) / std,
        "mean and standard deviation are swapped": (unit - std) / mean if bool((mean > 0).all()) else right,
        "the mean is not taken off": unit / std,
        "the division by the standard deviation is missing": unit - mean,
        "the means are added, not taken off": (unit + mean) / std,
        "it is multiplied by the standard deviation, not divided": (unit - mean) * std,
    }
    if images.shape[3] == 3:
        changes["the means and deviations of the channels are in reverse order"] = (unit - mean.flip(0)) / std.flip(0)
        changes["channels are swapped behind the normalisation: BGR for RGB"] = right.flip(3)
    for name, (others, deviations) in known.items():
        changes[f"{name} mean and standard deviation are used"] = (unit - others) / deviations
    for cause, values in changes.items():
        yield Mistake(cause, remedy, lambda values=values: _network(original.module, values.permute(0, 3, 1, 2)))  # type: ignore[misc]
    yield Mistake(
        "pixels in NHWC order are read as NCHW",
        "transpose by perm (0, 3, 1, 2) and don't reshape; the graph's input is NHWC",
        lambda: _network(original.module, right.reshape(shape)),
    )


def module_mistakes(original: Original, images: Rows, found: Logits) -> Iterator[Mistake]:
    """Made with the module: what is trained with left on, or batch norms otherwise."""
    import torch
    from torch import nn

    mean, std = (torch.tensor(values) for values in (original.normalisation.mean, original.normalisation.std))
    inputs = ((torch.from_numpy(np.ascontiguousarray(images)).float() / 255 - mean) / std).permute(0, 3, 1, 2)
    norms = [module for module in original.module.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    again = "call model.eval() before the export, and export the bundle again"

    def altered(change: Callable[[nn.Module], None]) -> Callable[[], Logits]:
        def answers() -> Logits:
            module = copy.deepcopy(original.module)
            change(module)
            return _network(module, inputs)

        return answers

    if norms:
        cause = "batch norms are in training mode: they use each batch's own statistics"
        yield Mistake(cause, again, altered(lambda module: _each_norm(module, _train)))
        kept = "keep the batch norms' running statistics and epsilon as trained, and export the bundle again"
        cause = "batch norms have lost their running statistics: mean 0 and variance 1"
        yield Mistake(cause, kept, altered(lambda module: _each_norm(module, _forget)))
        stated = {norm.eps for norm in norms}
        for epsilon in (1e-3, 1e-4, 1e-5, 1e-6, 1e-2, 0.0):
            if stated != {epsilon}:
                told = f"batch norms have the epsilon {epsilon:g}, the original has {norms[0].eps:g}"
                yield Mistake(told, kept, altered(lambda module, e=epsilon: _each_norm(module, lambda n: _set(n, e))))  # type: ignore[misc]
    yield from _heads(original, inputs, found, again)


def _heads(original: Original, inputs: torch.Tensor, found: Logits, remedy: str) -> Iterator[Mistake]:
    """What a module answers in training mode beside its own logits, its layers as they are in eval mode."""
    import torch

    module = copy.deepcopy(original.module)
    module.training = True
    try:
        with torch.inference_mode():
            parts = module(inputs)
    except Exception:  # noqa: BLE001 — a module that was brought may be anything; then there is no such head to be had
        return
    if not isinstance(parts, tuple):
        return
    for index, part in enumerate(parts[1:], 1):
        if isinstance(part, torch.Tensor) and part.shape == found.shape:
            told = f"the answers are those of auxiliary head {index}, which is there for training alone"
            yield Mistake(told, remedy, lambda part=part: part.numpy())  # type: ignore[misc]


def _each_norm(module: nn.Module, change: Callable[[Any], None]) -> None:
    from torch import nn

    for part in module.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            change(part)


def _train(norm: Any) -> None:
    norm.train()


def _forget(norm: Any) -> None:
    norm.running_mean.zero_()
    norm.running_var.fill_(1)


def _set(norm: Any, epsilon: float) -> None:
    norm.eps = epsilon


def _network(module: nn.Module, inputs: torch.Tensor) -> Logits:
    import torch

    with torch.inference_mode():
        return np.asarray(module(inputs).float().numpy())
