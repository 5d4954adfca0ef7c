"""What a recipe leaves open, decided by the architecture and the data."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from trueport.runtime.errors import UsageError, missing_extra
from trueport.runtime.manifest import Normalisation, Preprocessing

from .data import Dataset
from .initial import expected_normalisation
from .recipe import ModelSection, Recipe

if TYPE_CHECKING:
    from torch import nn

    from trueport.models import ModelSpec


def catalogue() -> list[ModelSpec]:
    """Every architecture. Raises MissingError without torch."""
    try:
        from trueport import models
    except ModuleNotFoundError as error:
        raise missing_extra("torch", "train", "the catalogue of architectures") from error
    return [models.spec(name) for name in models.names()]


def model_spec(arch: str) -> ModelSpec:
    """What is known about an architecture, ours or brought. Raises UsageError with near choices, or MissingError."""
    try:
        from trueport import models
    except ModuleNotFoundError as error:
        raise missing_extra("torch", "train", "building a model") from error
    try:
        with libraries():
            return models.spec(arch)
    except models.UnknownModelError as error:
        raise UsageError(str(error)) from error


@contextmanager
def libraries() -> Iterator[None]:
    """Turn the lack of timm or torchvision into the error that names their install."""
    from trueport import models

    try:
        yield
    except models.MissingLibraryError as error:
        extra = "timm" if error.package == "timm" else "train"
        raise missing_extra(error.package, extra, "a model that is brought along") from error


def new_model(model: ModelSection, num_classes: int, channels: int, size: tuple[int, int] | None = None) -> nn.Module:
    """The architecture with fresh weights. Raises UsageError for arguments it can't be built with.

    size: height and width of the pictures, with which a brought model is tried before anything depends on it.
    """
    model_spec(model.arch)
    from trueport import models

    try:
        module = models.create(model.arch, num_classes=num_classes, channels=channels, **model.args)
        if size is not None and models.brought.kind(model.arch) != "own":
            models.brought.probe(model.arch, module, num_classes, channels, size)
        return module
    except models.ModelArgumentError as error:
        raise UsageError(str(error)) from error
    except (TypeError, ValueError) as error:  # of a right name, but with a value the architecture trips on
        raise UsageError(f"{model.arch} can't be built with {model.args}: {error}") from error


def resolve(recipe: Recipe, dataset: Dataset) -> tuple[Preprocessing, Normalisation]:
    """Preprocessing and normalisation in full: size from the architecture, colour mode from the data.

    Raises UsageError where recipe, architecture, initial weights and data don't go together.
    """
    section, spec = recipe.preprocessing, spec_as_built(recipe.model)
    usual = expected_normalisation(recipe.model, spec) or (spec.mean, spec.std)
    height, width = _size(section.size, spec)
    mode = section.mode or ("L" if 1 in spec.channels and (dataset.grey or 3 not in spec.channels) else "RGB")
    try:
        preprocessing = Preprocessing(
            height=height,
            width=width,
            mode=mode,
            resize=section.resize,
            resize_to=section.resize_to,
            resample=section.resample,
        )
        mean, std = (
            _per_channel(_usual(default, preprocessing) if values is None else values, preprocessing)
            for values, default in zip((section.mean, section.std), usual, strict=True)
        )
        normalisation = Normalisation(mean, std)
    except ValueError as error:
        raise UsageError(f"in the recipe's [preprocessing]: {error}") from error
    if preprocessing.channels not in spec.channels:
        raise UsageError(f"{spec.name} takes no {mode} pictures: change preprocessing.mode or the architecture")
    if spec.own_scale and ({*mean}, {*std}) != ({spec.mean}, {spec.std}):
        raise UsageError(
            f"{spec.name} takes pictures of mean {spec.mean} and std {spec.std} and no others, found mean {list(mean)} "
            f"and std {list(std)}: leave preprocessing.mean and preprocessing.std out"
        )
    return preprocessing, normalisation


def spec_as_built(model: ModelSection) -> ModelSpec:
    """What is known about the architecture as its arguments build it. Raises as `model_spec` does."""
    spec = model_spec(model.arch)
    from trueport.models import brought

    return brought.sized(spec, model.args)


def _usual(values: float | tuple[float, ...], preprocessing: Preprocessing) -> tuple[float, ...]:
    """Values that nobody has chosen: for grey pictures the average of those for colours."""
    if not isinstance(values, tuple):
        return (values,)
    return values if preprocessing.channels == len(values) else (sum(values) / len(values),)


def _size(wanted: int | tuple[int, ...] | None, spec: ModelSpec) -> tuple[int, int]:
    """Height and width, which the architecture must be able to take."""
    if wanted is None:
        return spec.size
    height, width = (wanted, wanted) if isinstance(wanted, int) else wanted
    if refusal := spec.refusal((height, width)):
        raise UsageError(f"{refusal}: change preprocessing.size{_other_sizes(spec)}")
    return height, width


def _other_sizes(spec: ModelSpec) -> str:
    """What else can be done about a size, where something can."""
    from trueport.models import brought

    argument = brought.SIZE_ARGUMENTS.get(brought.kind(spec.name)) if spec.sizes else None
    return f", or set model.args.{argument} where it has that" if argument else ""


def _per_channel(values: tuple[float, ...], preprocessing: Preprocessing) -> tuple[float, ...]:
    channels = preprocessing.channels
    if len(values) not in (1, channels):
        raise ValueError(
            f"mean and std need one value, or {channels} for the channels of {preprocessing.mode} pictures, "
            f"found {list(values)}"
        )
    return values * channels if len(values) == 1 else values
