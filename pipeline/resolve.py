"""What a recipe leaves open, decided by the architecture and the data."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trueport.runtime.errors import UsageError, missing_extra
from trueport.runtime.manifest import Normalisation, Preprocessing

from .data import Dataset
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
    """What the catalogue knows about an architecture. Raises UsageError with near choices, or MissingError."""
    try:
        from trueport import models
    except ModuleNotFoundError as error:
        raise missing_extra("torch", "train", "building a model") from error
    try:
        return models.spec(arch)
    except models.UnknownModelError as error:
        raise UsageError(str(error)) from error


def new_model(model: ModelSection, num_classes: int, channels: int) -> nn.Module:
    """The architecture with fresh weights. Raises UsageError for arguments it can't be built with."""
    model_spec(model.arch)
    from trueport import models

    try:
        return models.create(model.arch, num_classes=num_classes, channels=channels, **model.args)
    except models.ModelArgumentError as error:
        raise UsageError(str(error)) from error
    except (TypeError, ValueError) as error:  # of a right name, but with a value the architecture trips on
        raise UsageError(f"{model.arch} can't be built with {model.args}: {error}") from error


def resolve(recipe: Recipe, dataset: Dataset) -> tuple[Preprocessing, Normalisation]:
    """Preprocessing and normalisation in full: size from the architecture, colour mode from the data.

    Raises UsageError where recipe, architecture and data don't go together.
    """
    section, spec = recipe.preprocessing, model_spec(recipe.model.arch)
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
            _per_channel((default,) if values is None else values, preprocessing)
            for values, default in ((section.mean, spec.mean), (section.std, spec.std))
        )
        normalisation = Normalisation(mean, std)
    except ValueError as error:
        raise UsageError(f"in the recipe's [preprocessing]: {error}") from error
    if preprocessing.channels not in spec.channels:
        raise UsageError(f"{spec.name} takes no {mode} pictures: change preprocessing.mode or the architecture")
    return preprocessing, normalisation


def _size(wanted: int | tuple[int, ...] | None, spec: ModelSpec) -> tuple[int, int]:
    """Height and width, which the architecture must be able to take."""
    if wanted is None:
        return spec.size
    height, width = size = (wanted, wanted) if isinstance(wanted, int) else wanted
    if spec.fixed_size and size != spec.size:
        raise UsageError(
            f"{spec.name} takes {spec.size[0]} x {spec.size[1]} pictures and no others, "
            f"found preprocessing.size = {size[0]} x {size[1]}"
        )
    if min(size) < spec.minimum:
        raise UsageError(
            f"{spec.name} needs pictures of at least {spec.minimum} x {spec.minimum} pixels, "
            f"found preprocessing.size = {size[0]} x {size[1]}"
        )
    return height, width


def _per_channel(values: tuple[float, ...], preprocessing: Preprocessing) -> tuple[float, ...]:
    channels = preprocessing.channels
    if len(values) not in (1, channels):
        raise ValueError(
            f"mean and std need one value, or {channels} for the channels of {preprocessing.mode} pictures, "
            f"found {list(values)}"
        )
    return values * channels if len(values) == 1 else values
