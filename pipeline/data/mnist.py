"""MNIST and Fashion-MNIST: 70,000 grey pictures of 28 x 28 each, of which 10,000 are their own test part.

LeCun, Cortes, Burges: The MNIST Database of Handwritten Digits. https://yann.lecun.com/exdb/mnist/
Xiao, Rasul, Vollgraf: Fashion-MNIST (2017). https://arxiv.org/abs/1708.07747
Sizes and SHA-256 are those of TensorFlow Datasets (url_checksums/mnist.txt, fashion_mnist.txt).

IDX: two zero bytes, the type (8: uint8), the number of axes, each axis as big-endian uint32, then the values.
"""

from __future__ import annotations

import struct
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from trueport.runtime.errors import UsageError

from .archives import gunzip
from .dataset import Dataset
from .download import Remote
from .pixels import DividedPixels
from .published import Published

FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
UINT8 = 8
DIGITS = tuple("0123456789")
CLOTHES = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)


def read_idx(path: Path, axes: int) -> NDArray[np.uint8]:
    """The array of an IDX file, paged in as it is read. Raises UsageError where the file is of another kind or size."""
    header = 4 + 4 * axes
    with path.open("rb") as file:
        start = file.read(header)
    if len(start) < header or start[:4] != bytes((0, 0, UINT8, axes)):
        raise UsageError(f"{path} is no IDX file of {axes} axes of uint8: delete its folder, and prepare it anew")
    shape = struct.unpack(f">{axes}I", start[4:])
    expected = header + int(np.prod(shape, dtype=np.int64))
    if path.stat().st_size != expected:
        raise UsageError(
            f"{path} has {path.stat().st_size:,} bytes, its header states {expected:,}: "
            "delete its folder, and prepare it anew"
        )
    return np.memmap(path, np.uint8, "r", offset=header, shape=shape)


def _unpack(downloads: Path, folder: Path) -> None:
    for name in FILES:
        gunzip(downloads / f"{name}.gz", folder / name)


def _read(name: str, classes: tuple[str, ...], folder: Path) -> Dataset:
    arrays = [read_idx(folder / file, axes) for file, axes in zip(FILES, (3, 1, 3, 1), strict=True)]
    return DividedPixels(name, classes, train=(arrays[0], arrays[1]), test=(arrays[2], arrays[3]))


def _published(
    name: str, classes: tuple[str, ...], addresses: tuple[str, ...], facts: tuple[tuple[int, str], ...]
) -> Published:
    remotes = tuple(
        Remote(tuple(f"{address}/{file}.gz" for address in addresses), size, sha256)
        for file, (size, sha256) in zip(FILES, facts, strict=True)
    )
    return Published(name, 70_000, len(classes), "grey", remotes, _unpack, partial(_read, name, classes))


MNIST = _published(
    "mnist",
    DIGITS,
    ("https://ossci-datasets.s3.amazonaws.com/mnist", "https://storage.googleapis.com/cvdf-datasets/mnist"),
    (
        (9_912_422, "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609"),
        (28_881, "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c"),
        (1_648_877, "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6"),
        (4_542, "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6"),
    ),
)

FASHION_MNIST = _published(
    "fashion_mnist",
    CLOTHES,
    ("http://fashion-mnist.s3-website.eu-central-1.amazonaws.com",),
    (
        (26_421_880, "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84"),
        (29_515, "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845"),
        (4_422_102, "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073"),
        (5_148, "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5"),
    ),
)
