"""The catalogue of architectures: one dict, one decorator, and `create`."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import nn

Build = Callable[..., nn.Module]


class UnknownModelError(LookupError):
    """No architecture has this name. `choices` are the nearest names, or all of them where none is near."""

    def __init__(self, name: str, known: list[str]) -> None:
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
        self.name = name
        self.choices = near or known
        hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(known) or 'none'}"
        super().__init__(f"unknown architecture {name!r}: {hint}")


class ModelArgumentError(ValueError):
    """An architecture was asked for something it can't be built with; the message says what it takes."""


@dataclass(frozen=True)
class ModelSpec:
    """What the catalogue knows about one architecture."""

    name: str
    build: Build
    """Called with num_classes, channels and the architecture's own arguments, all by name."""
    summary: str
    """One line for people."""
    paper: str
    url: str
    size: int
    """Height and width in pixels it was designed for."""
    channels: tuple[int, ...] = (3,)
    """Numbers of input channels it can be built for; 1 is grey, 3 is RGB."""
    fixed_size: bool = False
    """Whether `size` is the only one it can take."""

    @property
    def arguments(self) -> Mapping[str, object]:
        """Its own arguments with their defaults, beyond num_classes and channels."""
        parameters = inspect.signature(self.build).parameters.values()
        return {item.name: item.default for item in parameters if item.name not in {"num_classes", "channels"}}


_SPECS: dict[str, ModelSpec] = {}


def register(
    name: str,
    *,
    summary: str,
    paper: str,
    url: str,
    size: int,
    channels: tuple[int, ...] = (3,),
    fixed_size: bool = False,
) -> Callable[[type[nn.Module]], type[nn.Module]]:
    """Put the decorated module into the catalogue. Raises ValueError where the name is taken."""

    def decorate(build: type[nn.Module]) -> type[nn.Module]:
        if name in _SPECS:
            raise ValueError(f"two architectures are named {name!r}: {_SPECS[name].build} and {build}")
        _SPECS[name] = ModelSpec(name, build, summary, paper, url, size, channels, fixed_size)
        return build

    return decorate


def names() -> list[str]:
    """Every architecture's name, sorted."""
    return sorted(_SPECS)


def spec(name: str) -> ModelSpec:
    """What is known about an architecture. Raises UnknownModelError."""
    if name not in _SPECS:
        raise UnknownModelError(name, names())
    return _SPECS[name]


def create(name: str, *, num_classes: int, channels: int = 3, **arguments: object) -> nn.Module:
    """Build an architecture with fresh weights, drawn from torch's global generator.

    It takes float32 (B, channels, H, W) and answers logits (B, num_classes).
    Raises UnknownModelError, and ModelArgumentError for an argument it does not have or can't take.
    """
    found = spec(name)
    if num_classes < 1:
        raise ModelArgumentError(f"{name} needs at least one class, found num_classes = {num_classes}")
    if channels not in found.channels:
        choices = " or ".join(str(count) for count in found.channels)
        raise ModelArgumentError(f"{name} takes {choices} input channels, found {channels}")
    for argument in arguments:
        if argument not in found.arguments:
            known = ", ".join(found.arguments) or "none of its own"
            raise ModelArgumentError(f"{name} has no argument {argument!r}; its arguments: {known}")
    return found.build(num_classes=num_classes, channels=channels, **arguments)
