"""The data sets that have a name, and what is known of each without opening or downloading it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from .cifar10 import CIFAR10
from .dataset import Dataset
from .digits import Digits
from .flowers import FLOWERS
from .imagenette import IMAGENETTE, IMAGENETTE_160
from .mnist import FASHION_MNIST, MNIST
from .plates import Plates
from .published import Published
from .shapes import Shapes


@dataclass(frozen=True)
class BuiltIn:
    """A data set that is part of a package or rendered here."""

    name: str
    pictures: int
    classes: int
    pixels: Literal["grey", "colour"]
    open: Callable[[], Dataset]


Named = BuiltIn | Published

_ALL: tuple[Named, ...] = (
    BuiltIn("digits", 1_797, 10, "grey", Digits),
    BuiltIn("plates", 6_000, 10, "colour", Plates),
    BuiltIn("plates_grey", 6_000, 10, "grey", lambda: Plates("plates_grey", grey=True)),
    BuiltIn("shapes", 10_000, 10, "colour", Shapes),
    FLOWERS,
    CIFAR10,
    MNIST,
    FASHION_MNIST,
    IMAGENETTE,
    IMAGENETTE_160,
)
NAMED: dict[str, Named] = {known.name: known for known in _ALL}
