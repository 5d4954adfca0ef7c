"""TensorFlow's flower photos: 3,670 pictures of daisies, dandelions, roses, sunflowers and tulips (CC BY).

https://www.tensorflow.org/datasets/catalog/tf_flowers, from where size and SHA-256 are (tf_flowers/checksums.tsv).

It has no parts of its own. The course keeps one tenth a class for validation and tests on the same pictures; here one
tenth chooses the epoch (data.validation = 0.1) and another is only looked at in the end (data.test = 0.1).
"""

from __future__ import annotations

from pathlib import Path

from .archives import untar
from .dataset import Dataset
from .download import Remote
from .folder import Folder
from .published import Published


def _unpack(downloads: Path, folder: Path) -> None:
    untar(downloads / FLOWERS.remotes[0].file, folder)


def _read(folder: Path) -> Dataset:
    return Folder(folder / "flower_photos")


FLOWERS = Published(
    "flowers",
    pictures=3_670,
    classes=5,
    pixels="colour",
    remotes=(
        Remote(
            ("https://storage.googleapis.com/download.tensorflow.org/example_images/flower_photos.tgz",),
            228_813_984,
            "4c54ace7911aaffe13a365c34f650e71dd5bf1be0a58b464e5a7183e3e595d9c",
        ),
    ),
    unpack=_unpack,
    read=_read,
)
