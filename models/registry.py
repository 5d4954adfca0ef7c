"""The catalogue of architectures: one dict, one decorator, and `create`."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol, TypeVar, runtime_checkable

from torch import Tensor, nn

Build = Callable[..., nn.Module]
Decorated = TypeVar("Decorated", bound=Build)
LISTED = 60
"""Names that an error lists at most."""


class UnknownModelError(LookupError):
    """No architecture has this name. `choices` are the nearest names, or all of them where none is near.

    reason: what is the matter with the name, where it is more than that nobody has it.
    """

    def __init__(self, name: str, known: list[str], reason: str = "") -> None:
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
        self.name = name
        self.choices = near or known
        rest = f" and {len(known) - LISTED:,} more" if len(known) > LISTED else ""
        hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(known[:LISTED]) or 'none'}{rest}"
        super().__init__(f"unknown architecture {name!r}: {reason or hint}")


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
    size: tuple[int, int]
    """Height and width in pixels it was designed for."""
    channels: tuple[int, ...] = (3,)
    """Numbers of input channels it can be built for; 1 is grey, 3 is RGB."""
    sizes: tuple[tuple[int, int], ...] = ()
    """Where it can't take any size: all that it can take."""
    minimum: int = 1
    """Pixels: the smallest height and width it can take, where the size is free."""
    mean: float | tuple[float, ...] = 0.5
    """With `std`, the normalisation it is trained with where nothing else is asked for, on a scale of 0 to 1;
    one value, or one for each of three channels."""
    std: float | tuple[float, ...] = 0.5
    own_scale: bool = False
    """Whether it takes pictures on the scale of `mean` and `std` alone, as where it looks for their grey levels."""
    imagenet: str | None = None
    """The architecture of torchvision whose ImageNet weights it can take, tensor by tensor."""
    aliases: tuple[str, ...] = ()
    """Other names it is found under."""

    @property
    def arguments(self) -> Mapping[str, object]:
        """Its own arguments with their defaults, beyond num_classes and channels."""
        own = [item for item in _parameters(self.build) if item.name not in {"num_classes", "channels"}]
        return {item.name: item.default for item in own if item.kind != inspect.Parameter.VAR_KEYWORD}

    def refusal(self, size: tuple[int, int]) -> str:
        """Why it can't take pictures of this height and width; nothing where it can."""
        if self.sizes and size not in self.sizes:
            choices = " or ".join(f"{height} x {width}" for height, width in self.sizes)
            return f"{self.name} takes {choices} pictures and no others, found {size[0]} x {size[1]}"
        if min(size) < self.minimum:
            least = f"{self.minimum} x {self.minimum}"
            return f"{self.name} needs pictures of at least {least} pixels, found {size[0]} x {size[1]}"
        return ""

    @property
    def takes_any(self) -> bool:
        """Whether `arguments` are not all it takes, as where a library passes on what it is given."""
        return any(item.kind == inspect.Parameter.VAR_KEYWORD for item in _parameters(self.build))


def _parameters(build: Build) -> list[inspect.Parameter]:
    return list(inspect.signature(build).parameters.values())


_SPECS: dict[str, ModelSpec] = {}
_ALIASES: dict[str, str] = {}


def register(
    name: str,
    *,
    summary: str,
    paper: str,
    url: str,
    size: int | tuple[int, int],
    channels: tuple[int, ...] = (3,),
    sizes: tuple[tuple[int, int], ...] = (),
    minimum: int = 1,
    mean: float = 0.5,
    std: float = 0.5,
    own_scale: bool = False,
    imagenet: str | None = None,
    aliases: tuple[str, ...] = (),
) -> Callable[[Decorated], Decorated]:
    """Put the decorated module, or function that makes one, into the catalogue. Raises ValueError for a taken name."""

    def decorate(build: Decorated) -> Decorated:
        for taken in (name, *aliases):
            if taken in _SPECS or taken in _ALIASES:
                raise ValueError(f"two architectures are named {taken!r}: {spec(taken).build} and {build}")
        _SPECS[name] = ModelSpec(
            name=name,
            build=build,
            summary=summary,
            paper=paper,
            url=url,
            size=(size, size) if isinstance(size, int) else size,
            channels=channels,
            sizes=sizes,
            minimum=minimum,
            mean=mean,
            std=std,
            own_scale=own_scale,
            imagenet=imagenet,
            aliases=aliases,
        )
        _ALIASES.update(dict.fromkeys(aliases, name))
        return build

    return decorate


@runtime_checkable
class Adapted(Protocol):
    """A module that looks at the training data once, before the first epoch, and keeps what it saw in its buffers."""

    def adapt(self, images: Tensor) -> None:
        """Take normalised training pictures (N, C, H, W)."""


def names() -> list[str]:
    """Every architecture's name, sorted; aliases are left out."""
    return sorted(_SPECS)


def spec(name: str) -> ModelSpec:
    """What is known about an architecture, by its name, an alias, or the name of one that is brought along.

    Raises UnknownModelError, and MissingLibraryError for torchvision's or timm's where these are not installed.
    """
    from . import brought  # late: it is made of what is defined here

    if brought.kind(name) != "own":
        return brought.spec(name)
    found = _SPECS.get(_ALIASES.get(name, name))
    if found is None:
        known = sorted([*_SPECS, *_ALIASES])
        misspelt = difflib.get_close_matches(name, known, cutoff=0.8)  # then it is not worth importing the libraries
        raise UnknownModelError(name, known if misspelt else [*known, *brought.namesakes(name)])
    return found


def create(name: str, *, num_classes: int, channels: int = 3, **arguments: object) -> nn.Module:
    """Build an architecture with fresh weights, drawn from torch's global generator.

    It takes float32 (B, channels, H, W) and answers logits (B, num_classes); while it is in training mode it may answer
    a tuple, the logits first and then those of its auxiliary classifiers.
    Raises UnknownModelError, and ModelArgumentError for an argument it does not have or can't take.
    """
    found = spec(name)
    if num_classes < 1:
        raise ModelArgumentError(f"{name} needs at least one class, found num_classes = {num_classes}")
    if channels not in found.channels:
        choices = " or ".join(str(count) for count in found.channels)
        raise ModelArgumentError(f"{name} takes {choices} input channels, found {channels}")
    for argument in arguments:
        if argument not in found.arguments and not found.takes_any:
            known = ", ".join(found.arguments) or "none of its own"
            raise ModelArgumentError(f"{name} has no argument {argument!r}; its arguments: {known}")
    return found.build(num_classes=num_classes, channels=channels, **arguments)
